"""Bounds the memory that an image or artifact takes."""

from __future__ import annotations

from collections.abc import Mapping

from fledge.errors import MalformedError
from fledge.report import human_size
from fledge.tree.nodes import Directory, Tree

MIN_MEMORY = 160 << 20
"""Bytes of memory that any image or artifact may take."""

SIZE_PER_MEMORY = 2
"""Bytes of uncompressed layers or artifact for which it may take another byte of memory. Real
images have thousands of bytes for each file."""

MAX_MEMORY = 2 << 30
"""Bytes of memory that no image or artifact may exceed: those of 1.8 million files."""

DIRECTORY_COST = 2400
"""Bytes that a directory takes at the peak of a build, without its name."""

NODE_COST = 1200
"""Bytes that any other node takes at the peak of a build, without its name."""

XATTR_COST = 200
"""Bytes that an extended attribute takes, without its name and value."""


class Budget:
    """The memory that one image or artifact may take for names and metadata.

    What is charged is an estimate of the peak of a build, or of a comparison. The budget grows
    with the size of the input: a small one cannot take much memory, and a large one may have many
    files.
    """

    def __init__(self, size: int = 0) -> None:
        """``size`` is that of the input in bytes, uncompressed, as far as it is known already."""
        self._limit = MIN_MEMORY
        self._used = 0
        self.grow(size)

    def grow(self, size: int) -> None:
        """Grant what another ``size`` bytes of input may take."""
        self._limit = min(self._limit + size // SIZE_PER_MEMORY, MAX_MEMORY)

    def charge(self, cost: int) -> None:
        """Count ``cost`` bytes. Raises `MalformedError` if that exceeds the budget."""
        self._used += cost
        if self._used > self._limit:
            raise MalformedError(
                f"names and metadata up to here take more than {human_size(self._limit)} of"
                " memory, the limit for an input of this size"
            )

    def charge_paths(self, tree: Tree) -> None:
        """Count the bytes of all paths. Below long symlinks they are longer than those of entries.

        Raises as `charge`.
        """
        pending = [(tree.root, 0)]
        while pending:
            directory, size = pending.pop()
            children = directory.children
            self.charge(len(children) * size + sum(map(len, children)))
            pending.extend(
                (child, size + len(name) + 1)
                for name, child in children.items()
                if isinstance(child, Directory)
            )


def xattrs_cost(xattrs: Mapping[bytes, bytes]) -> int:
    """Return the bytes of memory that extended attributes take."""
    return sum(XATTR_COST + len(name) + len(value) for name, value in xattrs.items())
