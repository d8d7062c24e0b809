"""What lies where a policy points, looked at without trusting it."""
