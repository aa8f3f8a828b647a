"""Random trees, trees of folders, and listings to compare trees."""

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from fledge.tree import BlockDevice, CharDevice, Device, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.content import Content, read_content

MAX_ID = 0xFFFFFFFF

PLAIN_NAMES = st.text("abcXYZ019._-+", min_size=1, max_size=9).map(str.encode)
"""Characters that no tool quotes in a listing."""

NAMES = st.one_of(
    st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"\0", b"0")),
    st.sampled_from([b"n" * 255, b"a", b"a-b", b"a.b", b"\xff\n\t\x1b[m", "ü".encode()]),
).map(lambda name: name.replace(b"/", b"|"))
"""Names that Linux allows, except . and .., which `trees` leaves out."""

SECONDS = st.integers(0, 0xFFFFFFFF).map(lambda seconds: seconds * 1_000_000_000)
"""Times that newc can store."""

CONTENTS: st.SearchStrategy[Content] = st.binary(max_size=50)

NO_XATTRS: st.SearchStrategy[dict[bytes, bytes]] = st.builds(dict)


class Row(NamedTuple):
    """The facts about one path in a tree."""

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[bytes, bytes]
    data: bytes | tuple[int, int] | None
    """A file's content, a symlink's target, or a device's major and minor number."""
    same_as: bytes
    """The first path of the same node."""


def describe(tree: Tree) -> list[Row]:
    """Return the whole tree as plain values, in the order of `Tree.walk`."""
    first: dict[Node, bytes] = {}
    return [
        Row(
            path,
            type(node).__name__,
            node.mode,
            node.uid,
            node.gid,
            node.mtime_ns,
            dict(node.xattrs),
            _holds(node),
            first.setdefault(node, path),
        )
        for path, node in tree.walk()
    ]


@st.composite
def trees(
    draw: st.DrawFn,
    *,
    names: st.SearchStrategy[bytes] = NAMES,
    times: st.SearchStrategy[int] = SECONDS,
    contents: st.SearchStrategy[Content] = CONTENTS,
    xattrs: st.SearchStrategy[dict[bytes, bytes]] = NO_XATTRS,
    max_nodes: int = 12,
) -> Tree:
    """Trees of every kind of node, with hard links between all but directories.

    A path has at most ``max_nodes`` names.
    """
    tree = Tree(mtime_ns=draw(times))
    root, nodes = _nodes(names, times, contents, xattrs)
    tree.root = draw(root)
    directories = [tree.root]
    linkable: list[Node] = []
    numbers = st.integers(0, max_nodes)
    for parent, name, new in draw(
        st.lists(st.tuples(numbers, names, nodes | numbers), max_size=max_nodes)
    ):
        children = directories[parent % len(directories)].children
        if name in children or name in (b".", b".."):
            continue
        if isinstance(new, Directory):
            directories.append(new)
        elif isinstance(new, Node):
            linkable.append(new)
        if isinstance(new, Node):
            children[name] = new
        elif linkable:
            children[name] = linkable[new % len(linkable)]
    return tree


def tree_on_disk(folder: Path) -> Tree:
    """Return the tree that lstat(2) and readlink(2) describe."""
    tree = Tree(mtime_ns=0)
    root = _node_on_disk(folder, {})
    assert isinstance(root, Directory)
    tree.root = root
    return tree


def _holds(node: Node) -> bytes | tuple[int, int] | None:
    if isinstance(node, File):
        return b"".join(read_content(node.content))
    if isinstance(node, Symlink):
        return node.target
    if isinstance(node, Device):
        return node.major, node.minor
    return None


def _nodes(
    names: st.SearchStrategy[bytes],
    times: st.SearchStrategy[int],
    contents: st.SearchStrategy[Content],
    xattrs: st.SearchStrategy[dict[bytes, bytes]],
) -> tuple[st.SearchStrategy[Directory], st.SearchStrategy[Node]]:
    """A root with anything below it."""
    ids = st.integers(0, MAX_ID)
    common: dict[str, st.SearchStrategy[Any]] = {
        "mode": st.integers(0, 0o7777),
        "uid": ids,
        "gid": ids,
        "mtime_ns": times,
        "xattrs": xattrs,
    }
    numbers = {"major": st.integers(0, (1 << 12) - 1), "minor": st.integers(0, (1 << 20) - 1)}
    paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
    directories = st.builds(Directory, **common)
    return directories, st.one_of(
        directories,
        st.builds(File, content=contents, **common),
        st.builds(Symlink, target=paths | paths.map(b"/".__add__), **common),
        st.builds(CharDevice, **numbers, **common),
        st.builds(BlockDevice, **numbers, **common),
        st.builds(Fifo, **common),
    )


def _node_on_disk(path: Path, seen: dict[tuple[int, int], Node]) -> Node:
    status = path.lstat()
    identity = status.st_dev, status.st_ino
    if identity not in seen:
        node = _new_node(path, status, seen)
        node.uid, node.gid, node.mtime_ns = status.st_uid, status.st_gid, status.st_mtime_ns
        seen[identity] = node
    return seen[identity]


def _new_node(path: Path, status: os.stat_result, seen: dict[tuple[int, int], Node]) -> Node:
    mode = stat.S_IMODE(status.st_mode)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        children = {os.fsencode(child.name): _node_on_disk(child, seen) for child in path.iterdir()}
        return Directory(mode=mode, children=children)
    if kind == stat.S_IFREG:
        return File(mode=mode, content=path.read_bytes())
    if kind == stat.S_IFLNK:
        return Symlink(mode=mode, target=os.readlink(os.fsencode(path)))
    if kind == stat.S_IFIFO:
        return Fifo(mode=mode)
    device = CharDevice if kind == stat.S_IFCHR else BlockDevice
    return device(mode=mode, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev))
