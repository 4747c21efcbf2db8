"""The agent's TUF client behind the command line that theupdateframework/tuf-conformance drives."""
