"""How a capsule reaches the network, and is reached: the proxy's process, and what it tells."""
