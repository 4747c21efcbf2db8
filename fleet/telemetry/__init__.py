"""What devices measure: ingest, storage, queries."""
