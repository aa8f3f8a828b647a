"""Finds the entries of an open artifact: one of them, or all below a directory.

It loads nothing of projects and images, so that a single file is shown at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from fledge.errors import ConfigError
from fledge.formats import Opened
from fledge.tree import Directory, Node, Tree
from fledge.tree.names import printable, split_path


def find_node(artifact: Opened, path: bytes, *, follow: bool) -> Node:
    """Return the node at ``path``. With ``follow``, follow symlinks, except one that leads nowhere.

    Raises `ConfigError` if the path does not exist.
    """
    tree = artifact.tree
    node = (tree.get(path, follow=True) if follow else None) or tree.get(path)
    if node is None:
        raise ConfigError(
            f"{artifact.path} has no {printable(path)}", "Use -l without a path to list everything."
        )
    return node


def walk_below(path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """Yield the node at ``path`` and all nodes below it, in the order of `Tree.walk`.

    Paths start at the root of the artifact, without a leading slash.
    """
    prefix = b"/".join(split_path(path))
    if not isinstance(node, Directory):
        yield prefix, node
        return
    tree = Tree(mtime_ns=0)
    tree.root = node
    for name, child in tree.walk():
        yield b"/".join(filter(None, (prefix, name))), child


def sockets_below(artifact: Opened, path: bytes) -> list[bytes]:
    """Return the paths of sockets below ``path``, which are not in the tree."""
    prefix = b"".join(part + b"/" for part in split_path(path))
    return [name for name in artifact.contents.sockets if name.startswith(prefix)]
