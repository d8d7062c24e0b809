"""Many capsules: made ahead, on an event loop, for Python functions."""
