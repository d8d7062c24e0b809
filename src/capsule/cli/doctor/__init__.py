"""What this host can enforce, what stands in the way, and what to do about it."""
