"""Builds bootable plugin artifacts for the Volant microVM engine, reproducibly and without root."""

__version__ = "0.1.0"
