"""Safe repetition of POST requests."""
