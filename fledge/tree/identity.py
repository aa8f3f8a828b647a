"""Identifies a filesystem by its content."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import islice

from fledge.tree.content import Content, Span, Sparse, content_digest, read_extents
from fledge.tree.nodes import Device, File, Node, Symlink, Tree

BATCH = 1000
"""Descriptions of nodes that are hashed at once."""


def tree_uuid(tree: Tree, options: object) -> bytes:
    """Return a UUID that depends on everything in a tree, and on ``options``, by their repr.

    Two different filesystems have different UUIDs. Raises the errors of `read_content`.
    """
    digest = sha256(repr(options).encode())
    descriptions = _descriptions(tree)
    while batch := "".join(islice(descriptions, BATCH)):
        digest.update(batch.encode())
    return uuid.UUID(bytes=digest.digest()[:16], version=4).bytes


def _descriptions(tree: Tree) -> Iterator[str]:
    """Yield everything about each entry, as Python writes it: the UUID comes from these texts."""
    numbers: dict[Node, int] = {}
    for path, node in tree.walk():
        new = len(numbers)
        number = numbers.setdefault(node, new)
        if number != new:
            yield f"({path!r}, {number})"
            continue
        content: object = None
        if isinstance(node, File):
            content = _content_identity(node.content)
        elif isinstance(node, Symlink):
            content = node.target
        elif isinstance(node, Device):
            content = node.major, node.minor
        metadata = _text(node.file_type, node.mode, node.uid, node.gid, node.mtime_ns, node.origin)
        xattrs = sorted(node.xattrs.items()) if node.xattrs else "[]"
        yield f"({path!r}, {metadata}, {xattrs}, {content!r})"


@lru_cache(maxsize=1024)
def _text(*metadata: int) -> str:
    """Metadata as text. Most nodes share it with an earlier one."""
    return repr(metadata)


def _content_identity(content: Content) -> object:
    """A value that is different for each content, from a digest that is known if there is one."""
    if isinstance(content, Span) and content.file_digest and not content.digest:
        return content.file_digest.hex, content.offset, content.size
    if isinstance(content, Sparse) and content.file_digest:
        # As plain tuples, for the UUID comes from how they are printed.
        return content.file_digest.hex, content.size, tuple(map(tuple, content.extents))
    if isinstance(content, Sparse):
        digest = sha256()
        for _, piece in read_extents(content):
            digest.update(piece)
        ends = [(extent.offset, extent.length) for extent in content.extents]
        return digest.hexdigest(), content.size, ends
    return content_digest(content).hex
