"""A worker: the loop around an engine, its desk in a thread beside it, what it saves."""
