"""Who decides and who runs: experiment files, search spaces, samplers, pruners, workers, reports."""
