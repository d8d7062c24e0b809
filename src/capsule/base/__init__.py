"""Small things below all: errors, values, text, paths, signals, descriptors."""
