"""The commands: one module each, with `main(argv)`. `ilrec NAME` and tools/ start them.

prepare (raw interactions), sasrec (the filter), ids (semantic IDs), merge and average (weights),
report (table and picture), compare (rankings of several models), experiment (a grid of methods).
"""
