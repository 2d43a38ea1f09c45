"""Experiment files that ship, and the functions that one of them calls."""
