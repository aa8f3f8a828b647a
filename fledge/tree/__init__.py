"""A filesystem tree in memory. Sources fill it; formats write it."""

from fledge.tree.nodes import (
    MAX_SOURCE_STEPS,
    NANOSECONDS,
    NO_XATTRS,
    TYPE_NAMES,
    BlockDevice,
    CharDevice,
    Device,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
    TreeError,
    put,
)

__all__ = [
    "MAX_SOURCE_STEPS",
    "NANOSECONDS",
    "NO_XATTRS",
    "TYPE_NAMES",
    "BlockDevice",
    "CharDevice",
    "Device",
    "Directory",
    "Fifo",
    "File",
    "Node",
    "Symlink",
    "Tree",
    "TreeError",
    "put",
]
