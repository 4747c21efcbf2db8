"""Who operates the fleet: tokens and their scopes."""
