"""The differences that `diff` finds between artifacts."""

from __future__ import annotations

import gzip
import json
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given

from fledge.cpio import newc
from fledge.cpio.gzip import compress
from fledge.errors import CorruptError
from fledge.ext4.format import Ext4
from fledge.formats import open_artifact
from fledge.oci.manifest import Platform
from fledge.operations import build
from fledge.operations.diff import (
    LINES_NOT_COMPARED,
    MAX_SHOWN_LINES,
    UNCOMPRESSED,
    UNEXPLAINED,
    Detail,
    compare,
    diff,
)
from fledge.tree import CharDevice, Directory, File, Symlink, Tree
from fledge.tree.content import DataExtent, Span, Sparse
from fledge.tree.features import Feature
from tests.support import daemons, project
from tests.support.disks import write_ext4
from tests.support.trees import Row, describe, trees

SUPERBLOCK_FACTS = """
features inodes_count blocks_count reserved_blocks_count free_blocks_count free_inodes_count
first_data_block log_block_size log_cluster_size blocks_per_group clusters_per_group
inodes_per_group mtime wtime mnt_count max_mnt_count magic state errors lastcheck rev_level
first_ino inode_size block_group_nr uuid volume_name last_mounted reserved_gdt_blocks journal_inum
last_orphan hash_seed def_hash_version jnl_backup_type desc_size default_mount_opts first_meta_bg
mkfs_time jnl_blocks min_extra_isize want_extra_isize flags log_groups_per_flex checksum_type
kbytes_written overhead_clusters backup_group_1 backup_group_2 checksum_seed
"""


def tree(**changes: bytes) -> Tree:
    made = Tree(mtime_ns=0)
    made.add(b"etc/motd", File(mode=0o644, content=changes.get("motd", b"one\ntwo\nthree\n")))
    made.add(b"bin/tool", File(mode=0o755, content=changes.get("tool", b"\x7fELF\0")))
    made.add(b"link", Symlink(target=changes.get("link", b"target")))
    return made


@pytest.mark.slow
@given(trees())
def test_a_tree_is_no_other_than_itself(one: Tree) -> None:
    assert list(compare(one, one)) == []
    assert list(compare(one, one, without=frozenset(Feature), own_paths={b"lost+found"})) == []


@pytest.mark.slow
@given(trees(), trees())
def test_two_trees_differ_where_their_listings_do(one: Tree, two: Tree) -> None:
    rows = [{row.path: row for row in describe(each)} for each in (one, two)]
    changed = {
        path
        for path in rows[0].keys() | rows[1].keys()
        if _without_mode_of_link(rows[0].get(path)) != _without_mode_of_link(rows[1].get(path))
    }
    assert {change.path for change in compare(one, two)} == changed


def _without_mode_of_link(row: Row | None) -> Row | None:
    return row._replace(mode=0) if row and row.kind == "Symlink" else row


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


def test_line_ends_are_told() -> None:
    [change] = compare(tree(motd=b"a\nb\n"), tree(motd=b"a\nb\r\n"))
    assert change.lines[-2:] == ("-b", "+b\r")
    [change] = compare(tree(motd=b"a\n"), tree(motd=b"a"))
    assert change.lines[-2:] == ("-a", "+a (no newline at the end)")


def test_what_is_left_out_is_told() -> None:
    many = b"".join(b"%d\n" % number for number in range(300))
    [change] = compare(tree(motd=b""), tree(motd=many))
    assert len(change.lines) == MAX_SHOWN_LINES + 1
    assert change.lines[-1] == "… and 101 more lines"
    [change] = compare(tree(motd=b"x" * 1_000_000), tree(motd=b"y"))
    assert sum(map(len, change.lines)) < 1000
    assert "more characters" in change.lines[1]


@pytest.mark.slow
def test_texts_that_take_long_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes seconds, and a small archive can have a thousand of them."""
    monkeypatch.setattr("fledge.operations.diff.MAX_LINE_PAIRS", 5_000_000)
    common = [f"x{number % 100}" for number in range(1000)]
    texts = ["".join(f"{line}\n{each}{n}\n" for n, line in enumerate(common)) for each in "uv"]
    trees = Tree(mtime_ns=0), Tree(mtime_ns=0)
    for each, text in zip(trees, texts, strict=True):
        for number in range(3):
            content = f"{number}\n{text}".encode()
            each.add(b"%d" % number, File(mode=0o644, content=content))
    first, *others = compare(*trees)
    assert len(first.lines) == MAX_SHOWN_LINES + 1
    assert [change.lines for change in others] == [LINES_NOT_COMPARED, LINES_NOT_COMPARED]
    assert others[0].fields.keys() == {"content"}


def test_hard_links_in_another_order(tmp_path: Path) -> None:
    names = (b"./x", b"./y")
    links = [header(name, 0o100644, ino=3, nlink=2) for name in names]
    (tmp_path / "a").write_bytes(b"".join(links) + END)
    (tmp_path / "b").write_bytes(b"".join(reversed(links)) + END)
    report = diff(tmp_path / "a", tmp_path / "b")
    assert (report.changes, report.details) == ((), {})
    assert report.container["first entry in another place"] == (b"/x", b"/y")


def test_times_are_shown_as_dates(tmp_path: Path, fledge: project.Fledge) -> None:
    for name, time_ns in (("a", 10**9), ("b", -1)):
        one = tree()
        one.root.mtime_ns = time_ns
        (tmp_path / name).touch()
        write_ext4(one, tmp_path / name, Ext4(size_buffer_mb=1), 5)
    lines = fledge("diff", "a", "b").out.splitlines()
    assert "~ /: mtime 1970-01-01 00:00:01 → 1969-12-31 23:59:59.999999999" in lines
    details = json.loads(fledge("diff", "--json", "a", "b").out)["details"]
    assert details["atime_ns"] == {"paths": 1, "first": "/", "before": 10**9, "after": -1}


def test_many_hard_links_are_read_and_told_once(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8 << 20))
    trees = [Tree(mtime_ns=0), Tree(mtime_ns=0)]
    for offset, each in enumerate(trees):
        file = File(mode=0o644, content=Span(path, 0, (8 << 20) - offset))
        each.root.children |= {b"%04d" % number: file for number in range(2000)}
    start = time.perf_counter()
    changes = list(compare(*trees))
    assert time.perf_counter() - start < 5
    assert {tuple(change.fields) for change in changes} == {("size", "content")}
    text = Tree(mtime_ns=0), Tree(mtime_ns=0)
    for each, content in zip(text, (b"a\n", b"b\n"), strict=True):
        each.root.children = dict.fromkeys((b"1", b"2"), File(mode=0o644, content=content))
    assert [bool(change.lines) for change in compare(*text)] == [True, False]


def test_only_an_empty_lost_and_found_is_passed_over() -> None:
    plain = tree()
    for node, told in (
        (Directory(mode=0o700), []),
        (File(mode=0o4755, content=b"#!"), [b"lost+found"]),
        (Directory(mode=0o700, children={b"x": tree().root}), [b"lost+found"]),
    ):
        other = tree()
        other.add(b"lost+found", node)
        assert [
            each.path
            for each in compare(plain, other, without=frozenset(Feature), own_paths={b"lost+found"})
        ][:1] == told


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
    assert changes[b"bin/tool"].fields == {"hard link of": (None, b"bin/other")}
    assert changes[b"link"].fields == {"target": (b"target", b"elsewhere")}
    assert changes[b"new"].kind == "added"
    assert {change.kind for change in compare(two, one)} == {"removed", "changed"}
    coarse = {
        change.path: change
        for change in compare(one, two, without=frozenset(Feature), own_paths={b"lost+found"})
    }
    assert coarse[b"etc/motd"].fields.keys() == {"uid", "gid", "mode"}


def test_another_kind() -> None:
    one, two = Tree(mtime_ns=0), Tree(mtime_ns=0)
    one.add(b"a", File(mode=0o644, content=b""))
    two.add(b"a", Directory(mode=0o644))
    [change] = compare(one, two)
    assert change.fields == {"type": ("file", "directory"), "size": (0, None)}


def make(toml: Path, output: Path) -> Path:
    platform = Platform("linux", "amd64")
    return build.build(toml, output, platform=platform).path


def test_two_builds_of_the_same(tmp_path: Path, fledge: project.Fledge) -> None:
    toml = project.make_rootfs(tmp_path)
    one, two = make(toml, tmp_path / "a.img"), make(toml, tmp_path / "b.img")
    assert diff(one, two).same_bytes
    done = fledge("diff", "a.img", "b.img")
    assert (done.code, done.out) == (0, "all bytes are equal\n")


def test_equal_files_are_compared_by_their_bytes_alone(tmp_path: Path) -> None:
    """Their trees are not read, so that it is no matter if they are damaged."""
    artifact = make(project.make_rootfs(tmp_path), tmp_path / "a.img")
    with artifact.open("r+b") as file:
        file.seek(1024 + 0x68)  # the UUID, over which the checksum of the superblock goes
        file.write(b"damaged")
    (tmp_path / "b.img").write_bytes(artifact.read_bytes())
    with pytest.raises(CorruptError), open_artifact(artifact):
        pass
    assert diff(artifact, tmp_path / "b.img").same_bytes


@pytest.mark.parametrize("made", [project.make, project.make_rootfs])
def test_a_file_that_changed(tmp_path: Path, made: object, fledge: project.Fledge) -> None:
    toml = made(tmp_path)  # type: ignore[operator]
    make(toml, tmp_path / "a")
    project.write(tmp_path, "payload/webserver.yaml", b"port: 81\n")
    make(toml, tmp_path / "b")
    report = diff(tmp_path / "a", tmp_path / "b")
    [change] = report.changes
    assert change.path == b"etc/webserver/config.yaml"
    assert change.lines == ("@@ -1 +1 @@", "-port: 80", "+port: 81")
    done = fledge("diff", "a", "b")
    assert done.code == 1
    assert "1 path differs\n" in done.out
    assert "    +port: 81\n" in done.out
    document = json.loads(fledge("diff", "--json", "a", "b").out)
    assert [change["path"] for change in document["changes"]] == ["etc/webserver/config.yaml"]
    assert not document["same_tree"]


def test_another_level_of_compression(tmp_path: Path) -> None:
    artifact = make(project.make(tmp_path), tmp_path / "a.gz")
    archive = gzip.decompress(artifact.read_bytes())
    (tmp_path / "b.gz").write_bytes(gzip.compress(archive, 1, mtime=5))
    report = diff(artifact, tmp_path / "b.gz")
    assert (report.same_bytes, report.changes) == (False, ())
    # Versions of Python write different values for the system.
    assert report.container.keys() - {"gzip system"} == {"size", "gzip level", "gzip time"}
    assert report.container["gzip level"] == ("best", "fastest")
    assert report.notes == ("the uncompressed archives are equal",)
    (tmp_path / "c").write_bytes(archive)
    report = diff(artifact, tmp_path / "c")
    assert report.container["archives"] == (["gzip"], ["uncompressed"])
    assert report.changes == ()


@pytest.mark.real
def test_another_uuid(tmp_path: Path) -> None:
    daemons.need("tune2fs")
    artifact = make(project.make_rootfs(tmp_path), tmp_path / "a.img")
    other = tmp_path / "b.img"
    other.write_bytes(artifact.read_bytes())
    subprocess.run(["tune2fs", "-U", "random", other], check=True, capture_output=True)
    report = diff(artifact, other)
    assert report.changes == ()
    assert "superblock uuid" in report.container


def test_the_fields_of_a_superblock_are_public_names(tmp_path: Path) -> None:
    """They are keys of ``diff --json``: renaming a field of the struct must not rename one."""
    artifact = make(project.make_rootfs(tmp_path), tmp_path / "a.img")
    with open_artifact(artifact) as opened:
        facts = opened.contents.facts()
    names = [name.removeprefix("superblock ") for name in facts]
    assert names == SUPERBLOCK_FACTS.split()
    # s_jnl_blocks ends with the size of the journal, the upper half first: here 4 MiB.
    assert str(facts["superblock jnl_blocks"]).endswith("00000000" + "00004000")


@pytest.mark.slow
def test_bytes_that_mean_nothing(tmp_path: Path) -> None:
    artifact = make(project.make_rootfs(tmp_path), tmp_path / "a.img")
    data = bytearray(artifact.read_bytes())
    data[-5] ^= 1
    (tmp_path / "b.img").write_bytes(data)
    report = diff(artifact, tmp_path / "b.img")
    assert (report.changes, dict(report.container)) == ((), {})
    assert report.notes == (UNEXPLAINED,)
    assert report.first_difference == len(data) - 5


def test_one_tree_in_two_kinds(tmp_path: Path) -> None:
    one = tree()
    motd = one.get(b"etc/motd")
    assert motd
    motd.xattrs, motd.mtime_ns = {b"user.a": b"b"}, 1_500_000_000
    (tmp_path / "a.gz").write_bytes(b"".join(compress(newc.write(one))))
    (tmp_path / "b.img").touch()
    write_ext4(one, tmp_path / "b.img", Ext4(size_buffer_mb=1), 5)
    report = diff(tmp_path / "a.gz", tmp_path / "b.img")
    assert report.changes == ()
    assert report.container == {"kind": ("initramfs", "ext4")}
    assert "extended attributes" in report.not_compared


def header(name: bytes, mode: int, **fields: int) -> bytes:
    """An entry of newc without data, as other builders make it."""
    names = [
        "ino",
        "mode",
        "uid",
        "gid",
        "nlink",
        "mtime",
        "filesize",
        "devmajor",
        "devminor",
        "rdevmajor",
        "rdevminor",
    ]
    values = {"ino": 900, "mode": mode, "nlink": 1} | fields
    numbers = [*(values.get(each, 0) for each in names), len(name) + 1, 0]
    entry = b"070701" + b"".join(b"%08X" % number for number in numbers) + name + b"\0"
    return entry + bytes(-len(entry) % 4)


D, E = header(b"d", 0o40755), header(b"e", 0o40755)
END = header(b"TRAILER!!!", 0)


@pytest.mark.parametrize(
    ("one", "two", "container", "details"),
    [
        (header(b"s", 0o140777), b"", {"sockets": ([b"s"], []), "entries": ([1], [0])}, {}),
        (D, header(b"d", 0o40755, ino=5), {}, {"inode number": (900, 5)}),
        (D, header(b"d", 0o40755, nlink=2), {}, {"links": (1, 2)}),
        (D, header(b"d", 0o40755, devmajor=5), {}, {"device of its filesystem": ("0:0", "5:0")}),
        (D, header(b"./d", 0o40755), {}, {"before its name": (b"", b"./")}),
        (D + E, E + D, {"first entry in another place": (b"/d", b"/e")}, {}),
        (
            D + E,
            D + E + E,
            {"entries": ([2], [3]), "first entry in another place": (None, b"/e")},
            {},
        ),
    ],
)
def test_archives_of_the_same_tree(
    tmp_path: Path,
    one: bytes,
    two: bytes,
    container: dict[str, object],
    details: dict[str, tuple[object, object]],
) -> None:
    (tmp_path / "a").write_bytes(one + END)
    (tmp_path / "b").write_bytes(two + END)
    report = diff(tmp_path / "a", tmp_path / "b")
    assert report.changes == ()
    found = dict(report.container)
    assert found.pop(UNCOMPRESSED)
    found.pop("size", None)
    assert found == container
    assert report.details == {name: Detail(1, b"d", *both) for name, both in details.items()}
    assert report.notes == ()


def test_padding_and_concatenation(tmp_path: Path) -> None:
    archive = b"".join(newc.write(tree()))
    (tmp_path / "a").write_bytes(archive)
    (tmp_path / "b").write_bytes(archive + bytes(512))
    report = diff(tmp_path / "a", tmp_path / "b")
    assert report.changes == ()
    assert report.container.keys() == {"size"}
    assert report.notes
    (tmp_path / "b").write_bytes(END + bytes(-len(END) % 512) + archive)
    report = diff(tmp_path / "a", tmp_path / "b")
    assert report.changes == ()
    assert report.container["archives"] == (["uncompressed"], ["uncompressed", "uncompressed"])


@pytest.mark.slow
def test_one_tree_in_images_of_two_sizes(tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 200)):
        (tmp_path / name).touch()
        write_ext4(tree(tool=b"t" * 5000), tmp_path / name, Ext4(size_buffer_mb=size), 5)
    report = diff(tmp_path / "a", tmp_path / "b")
    assert report.changes == ()
    assert {"size", "superblock free_blocks_count"} <= report.container.keys()
    place = report.details["place of content"]
    assert (place.paths, place.path) == (2, b"bin/tool")
    for image, offset in (("a", place.before), ("b", place.after)):
        assert isinstance(offset, int)
        assert (tmp_path / image).read_bytes()[offset:].startswith(b"t" * 5000)
    assert report.notes == ()


def test_what_is_no_artifact(tmp_path: Path, fledge: project.Fledge) -> None:
    project.write(tmp_path, "a", b"text")
    assert fledge("diff", "a", "a").code == 4
    assert fledge("diff", "a", "missing").code == 4
    assert "a is not in a known format" in fledge("diff", "a", "missing").err


def test_holes_are_zeros_and_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 5000)
    huge = 1 << 43
    one, two, three = Tree(mtime_ns=0), Tree(mtime_ns=0), Tree(mtime_ns=0)
    for made, extents in (
        (one, ((5, 0, 3000), (1 << 40, 0, 5000))),
        (two, ((5, 0, 1500), (1505, 1500, 1500), (1 << 40, 0, 5000))),
        (three, ((6, 0, 3000), (1 << 40, 0, 5000))),
    ):
        data = tuple(DataExtent(*extent) for extent in extents)
        content = Sparse(huge, tmp_path / "data", data)
        made.add(b"f", File(mode=0o644, content=content))
    assert list(compare(one, two)) == []
    [change] = compare(one, three)
    assert change.fields.keys() == {"content"}


def test_a_hole_is_what_was_written_as_zeros(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 5000)
    one, two = Tree(mtime_ns=0), Tree(mtime_ns=0)
    sparse = Sparse(20_000, tmp_path / "data", (DataExtent(9000, 0, 5000),))
    one.add(b"f", File(mode=0o644, content=sparse))
    two.add(b"f", File(mode=0o644, content=bytes(9000) + b"x" * 5000 + bytes(6000)))
    assert list(compare(one, two)) == []
