"""Experiments: a grid of methods, each trained and ranked, and one table of them all.

grid.py (rows), read by grid_file.py and checked by grid_checks.py; plan.py (its steps, and what a
result is made of), runs.py (runs what is not done), results.py (what is kept), comparisons.py and
table.py (the report). rank_baselines.py and train_dpo.py are programs that the steps call.
"""
