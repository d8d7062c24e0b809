"""Walls beside the view: pure compilers, one acting file a wall. They know no policy."""
