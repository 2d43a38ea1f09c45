"""What happened: the database, its tables, and every statement that reads or writes them.

Imports nothing of the project. Optuna's own tables hold studies and trials; ours, in the Postgres
schema `shoal`, hold experiments, attempts, per-epoch curves and readings of the test set.
"""
