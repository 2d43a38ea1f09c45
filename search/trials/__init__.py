"""The life of trials: claimed, started, shared, ended, retrained; between the workers and the database."""
