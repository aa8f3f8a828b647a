"""Runs the command line for ``python -m fledge``."""

from fledge.cli.app import main

main()
