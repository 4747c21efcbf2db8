"""Changes of what devices shall have, and how far each device has come."""
