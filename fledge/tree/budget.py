"""Bounds the memory that an image or artifact takes."""

from __future__ import annotations

from collections.abc import Mapping

from fledge.errors import MalformedError
from fledge.report import human_size
from fledge.tree.growth import Growth
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
        self._used = 0
        self._size = 0
        self._input: Growth | None = None
        self._granted = 0
        """Bytes of ``_input`` that are in the limit."""
        self.grow(size)

    def grow(self, size: int) -> None:
        """Grant what another ``size`` bytes of input may take."""
        self._size += size
        self._limit = min(MIN_MEMORY + self._size // SIZE_PER_MEMORY, MAX_MEMORY)

    def follow(self, growth: Growth) -> None:
        """Grant what another input may take, which may still be written by another thread.

        A charge that exceeds what the part so far may take waits for more of the input. The one
        that was followed before must be complete.
        """
        self._grant()
        self._input, self._granted = growth, 0

    def _grant(self) -> None:
        """Grant what the part of the input may take that is there by now."""
        if self._input:
            size = self._input.size
            self.grow(size - self._granted)
            self._granted = size

    def charge(self, cost: int) -> None:
        """Count ``cost`` bytes. Raises `MalformedError` if that exceeds the budget."""
        self._used += cost
        if self._used > self._limit:
            self._await_grant()

    def _await_grant(self) -> None:
        """Wait for enough of the input. Raises `MalformedError` if all of it is not enough."""
        while self._used > self._limit:
            if not self._input or (self._input.complete and self._input.size == self._granted):
                raise MalformedError(
                    f"names and metadata up to here take more than {human_size(self._limit)} of"
                    " memory, the limit for an input of this size"
                )
            self._input.reach(self._granted + 1)
            self._grant()

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
