"""One capsule, from its plan to its result."""
