"""The content-addressed store and its upkeep."""
