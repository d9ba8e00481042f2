"""The commands: one module each, with `main(argv)`. `ilrec NAME` and tools/ start them.

compare (rankings of several models).
"""
