"""The report's figures, one module per family."""
