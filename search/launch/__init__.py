"""Launching on machines elsewhere: as a job of a Ray cluster, and as workers that need no Ray."""
