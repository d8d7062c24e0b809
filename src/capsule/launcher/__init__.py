"""The Python half of the C launcher: its words, its descriptors, its records and the binary."""
