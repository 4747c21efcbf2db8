"""`./dev bench plugins`: what several businesses get on one device that can do one thing at a time.

The agent's own host and local API run here without a fleet, on the demo's trained models grown to the shape of a larger
one: real answers at full cost. Knows agent and engine; nothing of the server.
"""
