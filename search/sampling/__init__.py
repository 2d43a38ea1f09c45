"""How the next trial's values are chosen: Optuna's samplers, our own faster TPE, grids."""
