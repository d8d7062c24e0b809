"""What is to be run, and what it needs to be seen."""
