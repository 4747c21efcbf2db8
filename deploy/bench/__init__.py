"""Benchmarks of a whole device: agent, engine process and local API together."""
