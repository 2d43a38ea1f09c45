"""One run of an experiment: who is hired, watched and replaced, and what is heard of it."""
