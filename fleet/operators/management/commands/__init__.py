"""Commands for operator tokens."""
