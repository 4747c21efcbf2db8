"""The demo model: its data, its training, and the measured results that the product demo serves."""
