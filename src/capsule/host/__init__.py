"""What this host offers: facts found by trying, places, homes, ids, delegated cgroups."""
