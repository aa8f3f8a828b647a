"""What stands in a project's folder: fledge.toml, fledge.lock, provenance."""
