"""Commands of the audit chain, and those whose steps go into it."""
