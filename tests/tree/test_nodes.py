"""The rules for paths in a chroot, in memory."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.tree import (
    CharDevice,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
    TreeError,
)
from fledge.tree.names import printable, split_path
from fledge.tree.nodes import MAX_SYMLINKS
from tests.support.trees import NAMES, describe, trees


def file(content: bytes = b"") -> File:
    return File(mode=0o644, content=content)


def link(target: bytes) -> Symlink:
    return Symlink(target=target)


def tree_of(nodes: dict[bytes, Node]) -> Tree:
    tree = Tree(mtime_ns=7)
    for path, node in nodes.items():
        tree.add(path, node)
    return tree


def paths(tree: Tree) -> list[bytes]:
    return [path for path, _ in tree.walk()]


@pytest.mark.parametrize(
    "path", [b"etc/app/conf", b"/etc/app/conf", b"./etc//app/./conf", b"/../etc/x/../app/conf"]
)
def test_missing_parents_are_made(path: bytes) -> None:
    node = file()
    tree = tree_of({path: node})
    assert paths(tree) == [b"", b"etc", b"etc/app", b"etc/app/conf"]
    assert tree.get(path) is node
    for parent in (b"/", b"/etc", b"/etc/app"):
        made = tree.get(parent)
        assert isinstance(made, Directory)
        assert (made.mode, made.uid, made.gid, made.mtime_ns) == (0o755, 0, 0, 7)


# Where /PATH leads in a tree with one symlink.
@pytest.mark.parametrize(
    ("symlink", "target", "path", "end"),
    [
        (b"bin", b"usr/bin", b"bin/x", b"usr/bin/x"),
        (b"bin", b"/usr/bin", b"bin/x", b"usr/bin/x"),
        (b"bin", b"/usr//bin/.", b"bin/x", b"usr/bin/x"),
        (b"a/b", b"c", b"a/b/x", b"a/c/x"),
        (b"a/b", b"../c", b"a/b/x", b"c/x"),
        (b"a/b", b"/c", b"a/b/x", b"c/x"),
        (b"a/b", b"../../../c", b"a/b/x", b"c/x"),
        (b"a", b"/../../etc", b"a/x", b"etc/x"),
        (b"a", b"/", b"a/x", b"x"),
        (b"a", b"..", b"a/x", b"x"),
        (b"a/b", b".", b"a/b/x", b"a/x"),
        (b"a/b", b"../new/../other", b"a/b/x", b"other/x"),
        (b"a/b", b"/n/e/../w/../../c", b"a/b/x", b"c/x"),
        (b"a/b", b"gone/../../../c", b"a/b/x", b"c/x"),
        (b"a/b/c", b"/d", b"a/b/../b/c/x", b"d/x"),
    ],
)
def test_parents_resolve_in_the_tree(
    symlink: bytes, target: bytes, path: bytes, end: bytes
) -> None:
    tree = tree_of({symlink: link(target)})
    node = file()
    tree.add(path, node)
    assert dict(tree.walk())[end] is node
    assert tree.get(path, lexical=True) is node
    assert isinstance(tree.get(symlink), Symlink)


@pytest.mark.parametrize(
    "target", [b"gone/../etc", b"/gone/on/../../etc", b"file/../etc", b"file/x/../../etc/"]
)
def test_what_is_missing_before_dots(target: bytes) -> None:
    """Linux finds nothing; layers are made by programs that take the component away."""
    old, new = file(), file()
    tree = tree_of({b"etc/old": old, b"file": file(), b"l": link(target)})
    assert tree.get(b"l", follow=True) is None
    assert tree.get(b"l/old") is None
    assert tree.get(b"l", follow=True, lexical=True) is tree.get(b"etc")
    assert tree.get(b"l/old", lexical=True) is old
    tree.add(b"l/new", new)
    assert paths(tree) == [b"", b"etc", b"etc/new", b"etc/old", b"file", b"l"]


def test_a_directory_that_cannot_be_made_leaves_none() -> None:
    tree = tree_of({b"loop": link(b"loop"), b"file": file(), b"l": link(b"new/../file/x")})
    before = describe(tree)
    for path in (b"new/../loop/x", b"l/x", b"file/x/y"):
        with pytest.raises(TreeError):
            tree.add(path, file())
    assert describe(tree) == before


def chain(length: int) -> Tree:
    """Make a folder ``end`` and a chain of symlinks to it."""
    nodes: dict[bytes, Node] = {b"end": Directory(mode=0o755), b"0": link(b"end")}
    nodes |= {b"%d" % i: link(b"%d" % (i - 1)) for i in range(1, length)}
    return tree_of(nodes)


def test_as_many_symlinks_as_linux_follows() -> None:
    tree = chain(MAX_SYMLINKS + 1)
    last = b"%d" % (MAX_SYMLINKS - 1)
    assert tree.get(last, follow=True) is tree.get(b"end")
    tree.add(last + b"/x", file())
    assert tree.get(b"end/x")
    too_long = b"%d" % MAX_SYMLINKS
    assert tree.get(too_long, follow=True) is None
    with pytest.raises(TreeError, match="too many symlinks on the way to /40"):
        tree.add(too_long + b"/x", file())


@pytest.mark.parametrize(
    "nodes",
    [
        {b"a": link(b"a")},
        {b"a": link(b"b"), b"b": link(b"/a")},
        {b"a": link(b"a/a")},
        {b"a": link(b"./d/../a"), b"d": Directory(mode=0o755)},
    ],
)
def test_loops(nodes: dict[bytes, Node]) -> None:
    tree = tree_of(nodes)
    before = describe(tree)
    assert isinstance(tree.get(b"a"), Symlink)
    assert tree.get(b"a", follow=True) is None
    assert tree.get(b"a/x") is None
    with pytest.raises(TreeError, match="too many symlinks"):
        tree.add(b"a/x", file())
    assert describe(tree) == before


@pytest.mark.parametrize(
    "node",
    [file(), Fifo(mode=0o600), CharDevice(mode=0o600, major=1, minor=3), link(b"other")],
    ids=lambda node: type(node).__name__,
)
def test_what_is_no_directory_is_no_parent(node: Node) -> None:
    tree = tree_of({b"other": file(), b"a": node})
    with pytest.raises(TreeError, match="on the way to /a/b is not a directory"):
        tree.add(b"a/b/x", file())
    with pytest.raises(TreeError, match="/a is not a directory"):
        tree.add(b"a/x", file())
    assert tree.get(b"a/x") is None
    assert paths(tree) == [b"", b"a", b"other"]


def test_dangling_symlink_leads_to_a_new_parent() -> None:
    tree = tree_of({b"var/run": link(b"/run")})
    tree.add(b"var/run/pid", file())
    assert paths(tree) == [b"", b"run", b"run/pid", b"var", b"var/run"]


@pytest.mark.parametrize("target", [b"missing", b"file", b"folder", b"loop"])
def test_last_component_is_never_followed(target: bytes) -> None:
    folder = Directory(mode=0o700)
    tree = tree_of({b"file": file(b"old"), b"folder": folder, b"loop": link(target)})
    for new in (file(b"new"), Directory(mode=0o711), link(b"new")):
        tree.add(b"loop", new)
        assert tree.get(b"loop") is new
        tree.add(b"loop", link(target))
    assert tree.get(b"folder") is folder
    assert folder.mode == 0o700
    assert folder.children == {}


@pytest.mark.parametrize("path", [b"d", b"d/", b"/x/../d"])
def test_directory_over_directory_updates_it(path: bytes) -> None:
    tree = tree_of({b"d": Directory(mode=0o755), b"d/child": file()})
    new = Directory(mode=0o2770, uid=1, gid=2, mtime_ns=3, xattrs={b"user.a": b"b"})
    tree.add(path, new)
    _, row, child = describe(tree)
    assert row[2:7] == (0o2770, 1, 2, 3, {b"user.a": b"b"})
    assert child.path == b"d/child"


@pytest.mark.parametrize("path", [b"", b"/", b".", b"./", b"/..", b"a/.."])
def test_root(path: bytes) -> None:
    tree = tree_of({b"child": file()})
    root = tree.root
    tree.add(path, Directory(mode=0o700, uid=5))
    assert tree.get(path) is tree.root is root
    assert (root.mode, root.uid, list(root.children)) == (0o700, 5, [b"child"])
    with pytest.raises(TreeError, match="root"):
        tree.add(path, file())


@pytest.mark.parametrize("new", [file(), link(b"/"), Fifo(mode=0o600)])
def test_anything_else_replaces(new: Node) -> None:
    tree = tree_of({b"d/child": file()})
    tree.add(b"d", new)
    assert paths(tree) == [b"", b"d"]
    tree.add(b"d", Directory(mode=0o755))
    assert isinstance(tree.get(b"d"), Directory)
    assert paths(tree) == [b"", b"d"]


def test_hard_link_is_one_node() -> None:
    node = file(b"data")
    tree = tree_of({b"a": node, b"z/b": node})
    assert [(row.path, row.same_as) for row in describe(tree)[1:]] == [
        (b"a", b"a"),
        (b"z", b"z"),
        (b"z/b", b"a"),
    ]
    tree.add(b"a", file(b"other"))
    assert tree.get(b"z/b") is node


def test_walk_sorts_by_component() -> None:
    names = [b"a", b"a b", b"a-", b"a.b", b"aa", b"\xff", b"B", b"a/z", b"a/b/c", b"a/b.c"]
    tree = tree_of({name: Directory(mode=0o755) for name in names})
    assert paths(tree) == [
        *(b"", b"B", b"a", b"a/b", b"a/b/c", b"a/b.c", b"a/z"),
        *(b"a b", b"a-", b"a.b", b"aa", b"\xff"),
    ]


def test_walk_keeps_one_path() -> None:
    """Ten thousand names below a path of 4 KiB would be 40 MiB of paths."""
    parent = Directory(mode=0o755, children={b"%d" % n: file() for n in range(10_000)})
    tree = tree_of({b"/".join([b"d" * 255] * 16): parent})
    tracemalloc.start()
    assert sum(1 for _ in tree.walk()) == 1 + 16 + 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_depth_is_no_problem() -> None:
    tree = tree_of({b"/".join([b"d"] * 4000): file()})
    assert len(paths(tree)) == 4001


def without_children(node: Node) -> Node:
    return replace(node, children={}) if isinstance(node, Directory) else node


@pytest.mark.slow
@given(trees())
def test_walk_finds_everything(tree: Tree) -> None:
    found = list(tree.walk())
    assert [path for path, _ in found] == sorted(
        {path for path, _ in found}, key=lambda path: path.split(b"/") if path else []
    )
    assert all(tree.get(path) is node for path, node in found)
    copy = tree_of({path: without_children(node) for path, node in found})
    assert describe(copy) == describe(tree)


@pytest.mark.slow
@given(trees(), st.lists(NAMES | st.just(b".."), max_size=4).map(b"/".join))
def test_what_is_added_is_found(tree: Tree, path: bytes) -> None:
    node = file()
    try:
        tree.add(path, node)
    except TreeError:
        assert tree.get(path) is not node
    else:
        assert tree.get(path, lexical=True) is node
        assert [found for _, found in tree.walk()].count(node) == 1


FEW_NAMES = st.sampled_from([b"a", b"b", b"c"])
FEW_PATHS = st.lists(FEW_NAMES, min_size=1, max_size=3).map(b"/".join)
TARGETS = st.builds(
    lambda start, names, end: start + b"/".join(names) + end,
    st.sampled_from([b"", b"/", b"../"]),
    st.lists(FEW_NAMES | st.sampled_from([b".", b".."]), min_size=1, max_size=3),
    st.sampled_from([b"", b"/", b"//"]),
)
FEW_NODES = st.one_of(TARGETS.map(link), st.builds(file), st.builds(Directory, mode=st.just(0o755)))


LOOKUPS = [
    ("/".join(names), follow)
    for length in (1, 2, 3)
    for names in product("abc", repeat=length)
    for follow in (False, True)
]


@contextmanager
def chroot(folder: Path) -> Iterator[None]:
    """Make a folder the root of this process for a while."""
    before, root = os.open(".", os.O_PATH), os.open("/", os.O_PATH)
    try:
        os.chroot(folder)
        yield
    finally:
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(before)
        os.close(before)
        os.close(root)


def inode(path: str, *, follow: bool) -> int | None:
    try:
        return Path("/", path).stat(follow_symlinks=follow).st_ino
    except OSError:
        return None


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can chroot")
@given(st.lists(st.tuples(FEW_PATHS, FEW_NODES), max_size=8))
def test_same_as_the_kernel_in_a_chroot(entries: list[tuple[bytes, Node]]) -> None:
    tree = Tree(mtime_ns=0)
    for path, node in entries:
        with suppress(TreeError):
            tree.add(path, node)
    with TemporaryDirectory() as folder:
        nodes: dict[int, Node] = {}
        for path, node in tree.walk():
            there = Path(folder, path.decode())
            if isinstance(node, Directory):
                there.mkdir(exist_ok=True)
            elif isinstance(node, Symlink):
                there.symlink_to(node.target.decode())
            else:
                there.touch()
            nodes[there.lstat().st_ino] = node
        with chroot(Path(folder)):
            seen = [(path, follow, inode(path, follow=follow)) for path, follow in LOOKUPS]
    for wanted, follow, number in seen:
        found = tree.get(wanted.encode(), follow=follow)
        assert found is (nodes[number] if number else None), (wanted, follow)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (b"", []),
        (b"///", []),
        (b"/a/./b//c/", [b"a", b"b", b"c"]),
        (b"a/../../../b", [b"b"]),
        (b"..a/...", [b"..a", b"..."]),
        (b"\xff\n", [b"\xff\n"]),
    ],
)
def test_split_path(path: bytes, parts: list[bytes]) -> None:
    assert split_path(path) == parts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name", "plain name"),
        ("Größe 日本".encode(), "Größe 日本"),
        (b"\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        (b"a\rb\nc\td\x07\x7f", r"a\rb\nc\td\x07\x7f"),
        ("\x9b2J\u202e\u2028\xa0".encode(), r"\x9b2J\u202e\u2028\xa0"),
        (b"caf\xe9 \xff", r"caf\xe9 \xff"),
        ("Größe \x1b\n", r"Größe \x1b\n"),
    ],
)
def test_printable(name: bytes | str, shown: str) -> None:
    assert printable(name) == shown


@given(st.binary() | st.text(st.characters()))
def test_anything_becomes_printable(name: bytes | str) -> None:
    assert printable(name).isprintable()


def test_where_a_path_leads() -> None:
    """As realpath(3): symlinks come before ``..``."""
    tree = Tree(mtime_ns=0)
    tree.add(b"/opt/x/app", File(mode=0o755, content=b""))
    tree.add(b"/w", Symlink(target=b"opt/x"))
    tree.add(b"/loop", Symlink(target=b"loop"))
    for path, real in {
        b"/w/app": b"/opt/x/app",
        b"w/../x/./app": b"/opt/x/app",
        b"/w/..": b"/opt",
        b"/": b"/",
        b"/../..": b"/",
        b"/w/app/..": None,
        b"/gone/../w": None,
        b"/loop": None,
        b"/w/gone": None,
    }.items():
        assert tree.real_path(path) == real, path


def test_the_nodes_of_all_names() -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"a/b/c", file := File(mode=0o755, content=b""))
    tree.add(b"d", file)
    tree.add(b"a/b/e", Directory(mode=0o755))
    assert Counter(tree.nodes()) == Counter(node for _, node in tree.walk())


def test_what_nodes_without_attributes_share_cannot_change() -> None:
    first, second = Directory(mode=0o755), File(mode=0o755, content=b"")
    assert first.xattrs is second.xattrs
    with pytest.raises(TypeError):
        first.xattrs[b"user.x"] = b""  # type: ignore[index]
