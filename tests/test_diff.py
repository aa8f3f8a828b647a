"""What two trees are said to differ in."""

from __future__ import annotations

from hypothesis import given
from trees import describe, trees

from fledge.diff import compare
from fledge.tree import CharDevice, Directory, File, Symlink, Tree


def tree(**changes: bytes) -> Tree:
    made = Tree(mtime_ns=0)
    made.add(b"etc/motd", File(mode=0o644, content=changes.get("motd", b"one\ntwo\nthree\n")))
    made.add(b"bin/tool", File(mode=0o755, content=changes.get("tool", b"\x7fELF\0")))
    made.add(b"link", Symlink(target=changes.get("link", b"target")))
    return made


@given(trees())
def test_a_tree_is_no_other_than_itself(one: Tree) -> None:
    assert list(compare(one, one)) == []
    assert list(compare(one, one, coarse=True)) == []


@given(trees(), trees())
def test_two_trees_differ_where_their_listings_do(one: Tree, two: Tree) -> None:
    rows = [{row.path: row for row in describe(each)} for each in (one, two)]
    changed = {
        path
        for path in rows[0].keys() | rows[1].keys()
        if _without_group(rows[0].get(path)) != _without_group(rows[1].get(path))
    }
    told = {change.path for change in compare(one, two) if set(change.fields) != {"names"}}
    assert told == changed


def _without_group(row: object) -> object:
    """Which names are of one file is told of each of them, not only of the later ones."""
    if row is None:
        return None
    fields = row._replace(same_as=b"")  # type: ignore[attr-defined]
    return fields._replace(mode=0) if fields.kind == "Symlink" else fields


def test_lines_of_a_text() -> None:
    [change] = compare(tree(), tree(motd=b"one\n2\nthree\n"))
    assert change.path == b"etc/motd"
    assert set(change.fields) == {"content", "size"}
    assert change.lines == ("@@ -1,3 +1,3 @@", " one", "-two", "+2", " three")


def test_no_lines_of_anything_else() -> None:
    [change] = compare(tree(), tree(tool=b"\x7fELF\1\0"))
    assert (change.kind, change.lines) == ("changed", ())
    long = b"line\n" * 10_000
    [change] = compare(tree(), tree(motd=long))
    assert change.lines == ()


def test_every_field() -> None:
    one, two = tree(), tree(link=b"elsewhere")
    motd, tool = (two.get(path) for path in (b"etc/motd", b"bin/tool"))
    assert motd and tool
    motd.uid, motd.gid, motd.mode, motd.mtime_ns = 1, 2, 0o4600, 5
    motd.xattrs = {b"user.a": b"b"}
    two.add(b"bin/other", tool)
    two.add(b"link", Symlink(target=b"elsewhere"))
    two.add(b"new", Directory(mode=0o755))
    two.add(b"dev", CharDevice(mode=0o600, major=1, minor=3))
    changes = {change.path: change for change in compare(one, two)}
    assert changes.keys() == {
        *(b"bin/other", b"bin/tool", b"dev", b"etc/motd", b"link", b"new"),
    }
    assert changes[b"etc/motd"].fields == {
        "uid": (0, 1),
        "gid": (0, 2),
        "mode": ("0644", "4600"),
        "mtime_ns": (0, 5),
        "xattrs": ({}, {b"user.a": b"b"}),
    }
    assert changes[b"bin/tool"].fields == {"names": ([b"bin/tool"], [b"bin/other", b"bin/tool"])}
    assert changes[b"link"].fields == {"target": (b"target", b"elsewhere")}
    assert changes[b"new"].kind == "added"
    assert {change.kind for change in compare(two, one)} == {"removed", "changed"}
    coarse = {change.path: change for change in compare(one, two, coarse=True)}
    assert coarse[b"etc/motd"].fields.keys() == {"uid", "gid", "mode"}


def test_another_kind() -> None:
    one, two = Tree(mtime_ns=0), Tree(mtime_ns=0)
    one.add(b"a", File(mode=0o644, content=b""))
    two.add(b"a", Directory(mode=0o644))
    [change] = compare(one, two)
    assert change.fields == {"type": ("file", "directory"), "size": (0, None)}
