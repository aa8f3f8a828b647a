"""Reads and writes the files of a project: fledge.toml, fledge.lock and provenance."""
