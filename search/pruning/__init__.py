"""Which trials stop early: Optuna's rules for one trial, and the same for whole pools."""
