"""The way out of a capsule that may reach some hosts: what decides, and the program that dials.

`serve` runs as a process of its own; the modules here import the standard library and each other.
"""
