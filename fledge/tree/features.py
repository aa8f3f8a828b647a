"""The features of a tree that some formats cannot store."""

from __future__ import annotations

from enum import Enum


class Feature(Enum):
    """A feature of a tree. The value is its name in messages."""

    XATTRS = "extended attributes"
    SUBSECONDS = "parts of a second"
