"""How fast a bundle runs on this machine: a table for people, and one JSON document as the last line."""
