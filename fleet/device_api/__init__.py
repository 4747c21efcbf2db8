"""What devices call, below /device/v1/. No tables of its own but the nonces."""
