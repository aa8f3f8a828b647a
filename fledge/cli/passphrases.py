"""Asks for passphrases on the terminal."""

from __future__ import annotations

import sys
from getpass import getpass

from fledge.errors import ConfigError


def can_ask() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask() -> str:
    """Ask for the passphrase of a private key, without showing it."""
    return getpass("passphrase of the private key: ")


def ask_for_new() -> str:
    """Ask for a new passphrase, twice. Empty: none. Raises `ConfigError` if the two differ."""
    first = getpass("new passphrase (empty for none): ")
    if first and getpass("the same again: ") != first:
        raise ConfigError("the two passphrases differ", "Run the command again.")
    return first
