"""The host: its files, programs and environment."""
