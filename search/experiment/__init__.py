"""What an experiment is: its file, read and checked once at the door, and what may change of it later."""
