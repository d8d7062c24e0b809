"""Policies as TOML: read, written, checked against their schema, found in a directory."""
