"""Runs in the single file before fledge: says which Pythons it has compiled modules for."""

import sys

if sys.implementation.name != "cpython" or not (3, 10) <= sys.version_info < (3, 15):
    sys.exit("fledge: this file runs with CPython 3.10 to 3.14; try: python3.12 FILE")
