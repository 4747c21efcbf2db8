"""What happened to devices, in a chain: each entry holds the hash of the one before, so that none changes alone."""
