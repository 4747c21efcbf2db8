"""The pages, one module per section: parse the request, call queries or actions, render."""
