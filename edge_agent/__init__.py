"""The daemon on the device. Imports nothing heavy, so that `edge_agent.protocol` opens with the standard library."""
