"""Capsule beside bubblewrap and a bare spawn, in one run; docs/benchmarks.md."""
