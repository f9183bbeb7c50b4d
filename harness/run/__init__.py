"""One video of scripts/generate.py, after its arguments were read: what it would take, and making it."""
