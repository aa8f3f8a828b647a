"""The version, apart from everything else so that every module may import it."""

__version__ = "0.1.0"
