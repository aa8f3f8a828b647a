"""Any artifact, whoever made it, as a tree and the facts of what it is in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from fledge.cpio import reader as cpio
from fledge.errors import ConfigError, CorruptError, unreadable
from fledge.ext4 import reader as ext4
from fledge.ext4.structures import MAGIC, SUPERBLOCK_OFFSET
from fledge.tree import Directory, Node, Tree

_MAGIC_OFFSET = SUPERBLOCK_OFFSET + 0x38
_START = 1 << 16
"""Bytes by which the kind is told."""


class Opened(msgspec.Struct, frozen=True, dict=True):
    """An artifact that was read. The contents of its files are to be had while it is open."""

    path: Path
    size: int
    """Bytes in the file."""
    holds: cpio.Initramfs | ext4.Image

    @property
    def kind(self) -> Literal["initramfs", "ext4"]:
        return "initramfs" if isinstance(self.holds, cpio.Initramfs) else "ext4"

    @property
    def tree(self) -> Tree:
        return self.holds.tree

    @property
    def compression(self) -> str | None:
        """Of the last archive of an initramfs, which mostly is the main one."""
        return (
            self.holds.archives[-1].compression if isinstance(self.holds, cpio.Initramfs) else None
        )

    def inode(self, node: Node) -> int | None:
        """Its number in the artifact; None for a directory that an initramfs only implies."""
        if isinstance(self.holds, ext4.Image):
            return self.holds.inodes[node].number
        header = self.holds.headers.get(node)
        return header.ino if header else None

    def links(self, node: Node) -> int:
        """How many names it has, as in stat(2)."""
        if isinstance(self.holds, ext4.Image):
            return self.holds.inodes[node].links
        return self._links[node]

    @cached_property
    def _links(self) -> dict[Node, int]:
        """As the kernel counts them when it has unpacked the initramfs."""
        links: dict[Node, int] = {}
        for _, node in self.tree.walk():
            if isinstance(node, Directory):
                links[node] = node.links
            else:
                links[node] = links.get(node, 0) + 1
        return links


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Read the artifact at ``path``, by its bytes and not by its name.

    A compressed initramfs is unpacked into a private temporary file, which goes with the
    context. Raises `CorruptError` for what is damaged, hostile or of no kind that is known;
    `FledgeError` for what cannot be read.
    """
    try:
        if not (path.is_file() or path.is_block_device()):
            # Nor is it opened: a fifo would wait for someone to write.
            path.stat()
            raise ConfigError(f"{path} is no file", "Name an artifact.")
        with path.open("rb") as file:
            start = file.read(_START)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise unreadable(path, error) from error
    # An initramfs can have any bytes where a superblock has its magic, and begin with zeros.
    if cpio.is_start(start) or (cpio.is_start(start.lstrip(b"\0")) and not _has_magic(start)):
        with tempfile.TemporaryDirectory(prefix="fledge-") as folder:
            yield Opened(path, size, cpio.read(path, Path(folder)))
    elif _has_magic(start):
        yield Opened(path, size, ext4.read(path))
    else:
        raise CorruptError(
            f"{path} is neither an initramfs nor an ext2, ext3 or ext4 filesystem",
            "Mount others to look into them; of a whole disk take one partition.",
        )


def _has_magic(start: bytes) -> bool:
    return start[_MAGIC_OFFSET : _MAGIC_OFFSET + 2] == MAGIC.to_bytes(2, "little")
