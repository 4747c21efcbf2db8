"""Who did what, in a chain: each entry holds the hash of the one before, so that none changes alone."""
