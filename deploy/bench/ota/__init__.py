"""How updates travel, measured: `./dev bench ota`."""
