"""Optuna's storage over Optuna's own tables, made for pools of hundreds of running trials.

`shoal_storage` is what Optuna's studies, samplers and pruners see. Behind it: `cache`, what this
process knows of the trials; `reads` and `studies`, the SQL that asks; `writes` and `creation`, the
SQL that stores; `queue`, what waits to be stored; `wire`, the connection; `values`, how a value
looks in a row and in a `FrozenTrial`.
"""
