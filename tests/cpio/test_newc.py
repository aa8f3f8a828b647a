import operator
import os
import random
import re
import shutil
import stat
import subprocess
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.cpio import gzip, newc, reader
from fledge.cpio.contents import InitramfsContents
from fledge.errors import CorruptError, FledgeError
from fledge.tree import BlockDevice, CharDevice, Device, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.content import (
    READ_SIZE,
    Content,
    Span,
    content_size,
    hash_file,
    read_content,
)
from tests.support.trees import PLAIN_NAMES, describe, tree_on_disk, trees

SECOND = 1_000_000_000
FIELDS = (
    *("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize"),
    *("devmajor", "devminor", "rdevmajor", "rdevminor", "namesize", "check"),
)

# The default deadline of an example is too short on a busy machine.
few = settings(deadline=None, max_examples=40)
with_tools = settings(deadline=None, max_examples=15)


def archive(tree: Tree) -> bytes:
    return b"".join(newc.write(tree))


def entry(name: bytes, mode: int = stat.S_IFREG | 0o644, data: bytes = b"", **fields: int) -> bytes:
    numbers = {"ino": 1, "filesize": len(data), **fields}
    return newc.Entry(name=name, mode=mode, **numbers).pack() + data + b"\0" * (-len(data) % 4)


TRAILER = entry(b"TRAILER!!!", mode=0, ino=0)


def with_field(packed: bytes, field: str, digits: bytes) -> bytes:
    start = 6 + 8 * FIELDS.index(field)
    return packed[:start] + digits + packed[start + 8 :]


def tree_of(**nodes: Node) -> Tree:
    tree = Tree(mtime_ns=0)
    for name, node in nodes.items():
        tree.add(name.encode(), node)
    return tree


def file_of(content: Content = b"", mode: int = 0o644) -> File:
    return File(mode=mode, content=content)


def small_tree() -> Tree:
    fifo = Fifo(mode=0o600)
    file = file_of(b"hello", mode=0o4755)
    folder = Directory(mode=0o1777, children={b"file": file, b"link": Symlink(target=b"file")})
    return tree_of(again=file, folder=folder, pipe=fifo, pipe2=fifo)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path for an archive, which hypothesis may reuse for all examples."""
    return tmp_path_factory.mktemp("newc") / "archive.cpio"


def read(path: Path, data: bytes) -> Tree:
    path.write_bytes(data)
    return reader.read(path, path.parent).tree


def read_entries(path: Path) -> list[tuple[newc.Entry, Span]]:
    """Return all but the trailer."""
    with path.open("rb") as file:
        whole = Span(path, 0, path.stat().st_size)
        return list(reader.read_entries(file, whole))[:-1]


@pytest.mark.slow
@few
@given(trees())
def test_every_field_survives(path: Path, tree: Tree) -> None:
    assert describe(read(path, archive(tree))) == describe(tree)


def test_longest_path(path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"/".join([b"directory"] * 409 + [b"final"]), file_of(b"deep"))
    assert max(len(name) for name, _ in tree.walk()) == 4095
    assert describe(read(path, archive(tree))) == describe(tree)
    tree.add(b"/".join([b"directory"] * 409 + [b"finale"]), file_of())
    with pytest.raises(CorruptError, match=r"/directory/.*: the path is longer than the 4095"):
        archive(tree)


def test_longest_link_target(path: Path) -> None:
    tree = tree_of(link=Symlink(target=b"t" * 4095))
    assert describe(read(path, archive(tree))) == describe(tree)
    with pytest.raises(CorruptError, match="/link: the link target is longer than the 4095 bytes"):
        archive(tree_of(link=Symlink(target=b"t" * 4096)))


def test_names_that_look_special(path: Path) -> None:
    tree = Tree(mtime_ns=0)
    for name in (b"...", b"..a", b".a", b"-", b" ", b"~", b"070701"):
        tree.add(name, file_of(name))
    assert describe(read(path, archive(tree))) == describe(tree)


def test_file_named_like_the_trailer(path: Path) -> None:
    tree = small_tree()
    tree.add(b"TRAILER!!!", file_of(b"not the end"))
    tree.add(b"folder/TRAILER!!!", file_of(b"nor this"))
    assert describe(read(path, archive(tree))) == describe(tree)


@pytest.mark.parametrize(
    ("mtime_ns", "seconds"),
    [
        (-1, 0),
        (999_999_999, 0),
        (1_704_067_200 * SECOND + 5, 1_704_067_200),
        (0xFFFFFFFF * SECOND + 999_999_999, 0xFFFFFFFF),
        (0x100000000 * SECOND, 0xFFFFFFFF),
    ],
)
def test_times_are_whole_seconds_in_range(path: Path, mtime_ns: int, seconds: int) -> None:
    tree = tree_of(file=File(mode=0o644, mtime_ns=mtime_ns, content=b""))
    node = read(path, archive(tree)).get(b"file")
    assert node
    assert node.mtime_ns == seconds * SECOND


def test_span_larger_than_one_read(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(READ_SIZE + 3))
    tree = tree_of(a=file_of(hash_file(source)), b=file_of(Span(source, 1, READ_SIZE + 1)))
    assert describe(read(path, archive(tree))) == describe(tree)


def test_contents_stay_in_the_archive(path: Path) -> None:
    node = read(path, archive(small_tree())).get(b"folder/file")
    assert isinstance(node, File)
    assert isinstance(node.content, Span)
    assert node.content.path == path


def test_order_is_by_component_and_parents_first(path: Path) -> None:
    tree = Tree(mtime_ns=0)
    for name in (b"a-b", b"a/b", b"a/B", b"b", b"a.d/c", b"a/b/c", b"B", b"\xff", b"\xc3\xbc"):
        tree.add(name, Directory(mode=0o755))
    path.write_bytes(archive(tree))
    entries = [entry for entry, _ in read_entries(path)]
    assert [entry.name for entry in entries] == [
        *(b".", b"B", b"a", b"a/B", b"a/b", b"a/b/c", b"a-b", b"a.d", b"a.d/c", b"b"),
        *(b"\xc3\xbc", b"\xff"),
    ]
    assert [entry.ino for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.nlink for entry in entries[:5]] == [9, 2, 4, 2, 3]


@few
@given(trees(), st.randoms(use_true_random=False))
@pytest.mark.slow
def test_order_of_making_makes_no_difference(tree: Tree, random: random.Random) -> None:
    data = archive(tree)
    for _, node in tree.walk():
        if isinstance(node, Directory):
            names = list(node.children)
            random.shuffle(names)
            node.children = {name: node.children[name] for name in names}
    assert archive(tree) == data


def test_hard_links_share_an_inode_and_the_last_has_the_data(path: Path) -> None:
    path.write_bytes(archive(small_tree()))
    assert [
        (entry.name, entry.ino, entry.nlink, b"".join(read_content(data)))
        for entry, data in read_entries(path)
    ] == [
        (b".", 1, 3, b""),
        (b"again", 2, 2, b""),
        (b"folder", 3, 2, b""),
        (b"folder/file", 2, 2, b"hello"),
        (b"folder/link", 4, 1, b"file"),
        (b"pipe", 5, 2, b""),
        (b"pipe2", 5, 2, b""),
    ]


@few
@given(trees())
@pytest.mark.slow
def test_alignment_and_end(path: Path, tree: Tree) -> None:
    data = archive(tree)
    assert len(data) % 512 == 0
    assert data[: -len(data) % 512 or None].rstrip(b"\0").endswith(b"TRAILER!!!")
    path.write_bytes(data)
    for entry, span in read_entries(path):
        assert span.offset % 4 == 0
        assert (entry.devmajor, entry.devminor, entry.check) == (0, 0, 0)


def test_whole_archive_spelled_out() -> None:
    owned = File(mode=0o644, uid=1000, gid=100, mtime_ns=255 * SECOND, content=b"hi\n")
    assert archive(tree_of(f=owned)) == (
        b"070701" b"00000001" b"000041ED" b"00000000" b"00000000" b"00000002" b"00000000"
        b"00000000" b"00000000" b"00000000" b"00000000" b"00000000" b"00000002" b"00000000"
        b".\0"
        b"070701" b"00000002" b"000081A4" b"000003E8" b"00000064" b"00000001" b"000000FF"
        b"00000003" b"00000000" b"00000000" b"00000000" b"00000000" b"00000002" b"00000000"
        b"f\0" b"hi\n\0"
        b"070701" b"00000000" b"00000000" b"00000000" b"00000000" b"00000001" b"00000000"
        b"00000000" b"00000000" b"00000000" b"00000000" b"00000000" b"0000000B" b"00000000"
        b"TRAILER!!!\0"
    ).ljust(512, b"\0")  # fmt: skip


def test_file_of_four_gibibytes(tmp_path: Path) -> None:
    # A missing file shows that nothing tries to read it first.
    tree = tree_of(huge=file_of(Span(tmp_path / "absent", 0, 1 << 32)))
    with pytest.raises(CorruptError, match="/huge has 4294967296 bytes") as caught:
        archive(tree)
    assert 'strategy = "oci_rootfs"' in caught.value.hint


def test_file_of_one_byte_less(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    source.touch()
    os.truncate(source, (1 << 32) - 1)
    pieces = newc.write(tree_of(huge=file_of(Span(source, 0, (1 << 32) - 1))))
    header = next(piece for piece in pieces if piece[110:114] == b"huge")
    assert with_field(header, "filesize", b"FFFFFFFF") == header
    assert next(pieces) == bytes(READ_SIZE)


@pytest.mark.parametrize(
    "node",
    [
        File(mode=0o644, uid=1 << 32, content=b""),
        File(mode=0o644, gid=1 << 32, content=b""),
        File(mode=0o644, uid=-1, content=b""),
        CharDevice(mode=0o644, major=1 << 32, minor=0),
        BlockDevice(mode=0o644, major=0, minor=1 << 32),
    ],
)
def test_numbers_out_of_range(node: Node) -> None:
    with pytest.raises(CorruptError, match="/node"):
        archive(tree_of(node=node))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    return source


def test_source_altered(source: Path) -> None:
    tree = tree_of(file=file_of(hash_file(source)))
    source.write_bytes(b"0123456780")
    with pytest.raises(CorruptError, match="source changed while it was read") as caught:
        archive(tree)
    assert caught.value.hint


@pytest.mark.parametrize("with_digest", [True, False])
def test_source_truncated(source: Path, with_digest: bool) -> None:
    tree = tree_of(file=file_of(hash_file(source) if with_digest else Span(source, 0, 10)))
    os.truncate(source, 9)
    with pytest.raises(CorruptError, match="source changed while it was read"):
        archive(tree)


def test_source_removed(source: Path) -> None:
    tree = tree_of(file=file_of(hash_file(source)))
    source.unlink()
    with pytest.raises(FledgeError, match="source could not be read"):
        archive(tree)


def test_source_grown(path: Path, source: Path) -> None:
    tree = tree_of(file=file_of(hash_file(source)))
    rows = describe(tree)
    source.write_bytes(b"0123456789 and more")
    assert describe(read(path, archive(tree))) == rows


def refuse(path: Path, data: bytes, match: str) -> None:
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match=match) as caught:
            reader.read(path, path.parent)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in caught.value.message


def test_every_truncation(path: Path) -> None:
    tree = small_tree()
    data = archive(tree)
    end = data.index(TRAILER) + len(TRAILER)
    path.write_bytes(data)
    ends = [span.offset + span.size for _, span in read_entries(path)]
    # Behind an entry, nobody can tell. The last bytes are the padding of the name in a header.
    whole = {size for end in ends for size in range(end, end + 4 - (end - 1) % 4)}
    for size in reversed(range(end)):
        os.truncate(path, size)
        if size in whole:
            assert not reader.read(path, path.parent).archives[0].has_trailer
        else:
            with pytest.raises(CorruptError):
                reader.read(path, path.parent)
    assert describe(read(path, data[:end])) == describe(tree)


def test_an_archive_that_ends_within_a_header(path: Path) -> None:
    refuse(path, b"0", "within a header")
    refuse(path, entry(b"a") + b"0", "within a header")
    refuse(path, entry(b"a") + bytes(512) + b"0", "the magic is")


@pytest.mark.parametrize("zeros", [0, 3, 4, 512, 70_000])
@pytest.mark.parametrize("compressed", [False, True])
def test_no_trailer(path: Path, zeros: int, compressed: bool) -> None:
    """The kernel needs none, and archives of u-root have none."""
    data = entry(b"a", data=b"data!") + entry(b"b", data=b"5") + bytes(zeros)
    path.write_bytes(b"".join(gzip.compress([data])) if compressed else data)
    unpacked = reader.read(path, path.parent)
    assert [name for name, _ in unpacked.tree.walk()] == [b"", b"a", b"b"]
    [archive] = unpacked.archives
    assert not archive.has_trailer
    assert "without a trailer" in InitramfsContents(path, unpacked).summary()[0][1]
    assert list(InitramfsContents(path, unpacked).order()) == [b"/a", b"/b"]


@pytest.mark.parametrize("data", [bytes(1080) + b"\x53\xef" + bytes(900), b"hello", b"\x7fELF"])
def test_what_is_compressed_but_no_archive(path: Path, data: bytes) -> None:
    path.write_bytes(b"".join(gzip.compress([data])))
    with pytest.raises(FledgeError, match="compressed with gzip, but there is no cpio") as caught:
        reader.read(path, path.parent)
    assert "decompress it first" in caught.value.hint


def test_a_member_without_a_trailer_before_another(path: Path) -> None:
    first, second = entry(b"a", data=b"12345"), entry(b"b") + TRAILER
    path.write_bytes(b"".join([*gzip.compress([first]), *gzip.compress([second])]))
    unpacked = reader.read(path, path.parent)
    assert [archive.has_trailer for archive in unpacked.archives] == [False, True]
    assert list(InitramfsContents(path, unpacked).order()) == [b"/a", b"/b"]


@pytest.mark.parametrize("magic", [b"070707", b"070703", b"0\x8b\x08\0\0\0"])
def test_magic(path: Path, magic: bytes) -> None:
    refuse(path, magic + entry(b"a")[6:] + TRAILER, "at byte 0: the magic is")


def test_garbage_between_entries(path: Path) -> None:
    first = entry(b"a", data=b"12345")
    refuse(path, first + b"garbage" * 99 + TRAILER, f"at byte {len(first)}: the magic is")


@pytest.mark.parametrize(
    "digits",
    [
        *(b"0000000g", b"+0000001", b"-0000001", b" 0000001", b"0000001 ", b"0000001\n"),
        *(b"0000_001", b"0x000001", b"0X000001", b"0o000001", b"x0000001", b"\0" * 8),
        *("\u0660\u0660\u0660\u0661".encode(), "000001\xb2".encode(), "00000\uff11".encode()),
    ],
)
def test_fields_that_are_no_hexadecimal_number(path: Path, digits: bytes) -> None:
    for field in FIELDS:
        refuse(path, with_field(entry(b"a"), field, digits) + TRAILER, "hexadecimal")


def test_lower_case_digits(path: Path) -> None:
    node = read(path, with_field(entry(b"a"), "uid", b"0000abcd") + TRAILER).get(b"a")
    assert node
    assert node.uid == 0xABCD


@pytest.mark.parametrize("size", [0, 1, 4097, 0x7FFFFFFF, 0xFFFFFFFF])
def test_size_of_name(path: Path, size: int) -> None:
    refuse(path, with_field(entry(b"a"), "namesize", b"%08X" % size) + TRAILER, "bytes long")


@pytest.mark.parametrize(
    ("name", "size"), [(b"ab", 2), (b"a\0b", 4), (b"\0b", 3), (b"a", 3), (b"a", 4096)]
)
def test_end_of_name(path: Path, name: bytes, size: int) -> None:
    refuse(path, with_field(entry(name), "namesize", b"%08X" % size) + TRAILER, "cut short")


@pytest.mark.parametrize("size", [1000, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("file_type", [stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR, 0])
def test_data_beyond_the_end(path: Path, size: int, file_type: int) -> None:
    data = entry(b"a", file_type, filesize=size) + TRAILER
    refuse(path, data, "the archive ends within the data of a")


def test_link_target_too_long(path: Path) -> None:
    refuse(path, entry(b"l", stat.S_IFLNK, b"t" * 4096) + TRAILER, "4096 bytes")


@pytest.mark.parametrize("name", [b"a/b", b"a/b/c", b"./a//b", b"b/../a/b"])
def test_entry_below_a_file(path: Path, name: bytes) -> None:
    refuse(path, entry(b"a") + entry(name) + TRAILER, "no(t a)? directory")


def test_root_that_is_a_file(path: Path) -> None:
    refuse(path, entry(b".") + TRAILER, "the root must be a directory")


def test_parents_that_loop(path: Path) -> None:
    loop = entry(b"a", stat.S_IFLNK, b"b") + entry(b"b", stat.S_IFLNK, b"a")
    refuse(path, loop + entry(b"a/c") + TRAILER, "too many symlinks")


def test_parents_that_double(path: Path) -> None:
    """Every symlink leads through the next one twice: 2^100 steps without a limit."""
    links = [entry(b"%d" % n, stat.S_IFLNK, b"%d/../%d" % (n + 1, n + 1)) for n in range(100)]
    refuse(path, b"".join(links) + entry(b"0/c") + TRAILER, "too many symlinks")


def test_parents_that_climb_stay_in_the_tree(path: Path) -> None:
    data = entry(b"up", stat.S_IFLNK, b"../../..") + entry(b"up/../../etc/passwd") + TRAILER
    assert [row.path for row in describe(read(path, data))] == [b"", b"etc", b"etc/passwd", b"up"]


@pytest.mark.parametrize("mode", [0, 0o644, 0o030000, 0o170000, 0xFFFFFFFF])
def test_unknown_type(path: Path, mode: int) -> None:
    refuse(path, entry(b"a", mode) + TRAILER, f"a: mode {mode:o}")


def test_inode_number_used_for_two_types(path: Path) -> None:
    data = entry(b"a", data=b"x", nlink=2) + entry(b"b", stat.S_IFIFO, nlink=2) + TRAILER
    assert [row.same_as for row in describe(read(path, data))] == [b"", b"a", b"b"]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1000),
            st.integers(0, 8),
            st.binary(max_size=8) | st.text("0123456789ABCDEF", max_size=8).map(str.encode),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_mutations(path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    data = archive(small_tree())
    for start, size, new in edits:
        data = data[:start] + new + data[start + size :]
    try:
        tree = read(path, data)
    except FledgeError:  # damaged, or the magic number of an unsupported compression
        return
    rows = describe(tree)
    # In one call, because the contents are in the file that is overwritten.
    assert describe(read(path, archive(tree))) == rows


def run(*command: str, stdin: bytes, cwd: Path | None = None) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}: run scripts/test-tools")
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    process = subprocess.run(
        command, input=stdin, capture_output=True, cwd=cwd, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr.decode(errors="replace")
    return process.stdout


def listing(data: bytes) -> list[list[str]]:
    """Return GNU cpio's listing of an archive, line by line and in words."""
    text = run("cpio", "-itv", "--numeric-uid-gid", "--quiet", stdin=data).decode()
    return [re.sub(", +", ",", line).split() for line in text.splitlines()]


def expected_listing(tree: Tree) -> list[list[str]]:
    left = Counter(node for _, node in tree.walk())
    names = dict(left)
    lines: list[list[str]] = []
    for path, node in tree.walk():
        nlink, size = names[node], "0"
        left[node] -= 1
        if isinstance(node, Directory):
            nlink = 2 + sum(isinstance(child, Directory) for child in node.children.values())
        elif isinstance(node, File) and left[node] == 0:
            size = str(content_size(node.content))
        elif isinstance(node, Symlink):
            size = str(len(node.target))
        elif isinstance(node, Device):
            size = f"{node.major},{node.minor}"
        date = time.asctime(time.gmtime(node.mtime_ns // SECOND)).split()
        line = [stat.filemode(node.file_type | node.mode), str(nlink), str(node.uid)]
        line += [str(node.gid), size, date[1], date[2], date[4], path.decode() or "."]
        lines.append([*line, "->", node.target.decode()] if isinstance(node, Symlink) else line)
    return lines


def populate(folder: Path) -> Tree:
    """Fill a folder with all that newc can store; owners and devices only as root."""
    (folder / "bin").mkdir()
    (folder / "bin" / "su").write_bytes(b"#!/bin/sh\n")
    (folder / "bin" / "empty").touch()
    (folder / "bin" / "sudo").hardlink_to(folder / "bin" / "su")
    (folder / "bin-link").symlink_to("bin/su")
    (folder / "dangling").symlink_to("/nowhere")
    os.mkfifo(folder / "pipe", 0o640)
    (folder / "pipe2").hardlink_to(folder / "pipe")
    (folder / "tmp").mkdir()
    if os.geteuid() == 0:
        os.mknod(folder / "console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
        os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
        (folder / "disk2").hardlink_to(folder / "disk")
        os.chown(folder / "bin" / "su", 1000, 4_000_000_000)
        os.chown(folder / "bin-link", 7, 8, follow_symlinks=False)
        os.chown(folder / "tmp", 65534, 65534)
    (folder / "bin" / "su").chmod(0o4751)
    (folder / "tmp").chmod(0o1777)
    for days, path in enumerate(sorted([folder, *folder.rglob("*")])):
        os.utime(path, (0, 1_500_000_000 + days * 86_400), follow_symlinks=False)
    return tree_on_disk(folder)


@pytest.mark.real
@with_tools
@given(trees())
def test_other_tools_accept_it(tree: Tree) -> None:
    data = archive(tree)
    run("cpio", "-t", "--quiet", stdin=data)
    run("bsdtar", "-tf", "-", stdin=data)
    run("bsdtar", "-tf", "-", stdin=b"".join(gzip.compress([data])))


@pytest.mark.real
@with_tools
@given(trees(names=PLAIN_NAMES, times=st.integers(0, 1_700_000_000).map(SECOND.__mul__)))
def test_gnu_cpio_lists_what_the_tree_has(tree: Tree) -> None:
    assert listing(archive(tree)) == expected_listing(tree)


@pytest.mark.real
@pytest.mark.parametrize("archive_format", ["newc", "crc"])
def test_archive_of_gnu_cpio(path: Path, tmp_path: Path, archive_format: str) -> None:
    tree = populate(tmp_path)
    names = run("find", ".", stdin=b"", cwd=tmp_path).splitlines()
    command = ("cpio", "-o", "-H", archive_format, "--quiet")
    theirs = run(*command, stdin=b"\n".join(sorted(names)), cwd=tmp_path)
    assert describe(read(path, theirs)) == describe(tree)
    by_name = operator.itemgetter(8)
    assert sorted(listing(theirs), key=by_name) == sorted(listing(archive(tree)), key=by_name)


# GNU cpio sets a directory's time before it fills it, and a symlink's time never.
@pytest.mark.real
@pytest.mark.parametrize(
    ("command", "untimed"),
    [("bsdtar -xpf - --numeric-owner", ()), ("cpio -im --quiet", ("Directory", "Symlink"))],
)
def test_extracted_by_others(tmp_path: Path, command: str, untimed: tuple[str, ...]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    tree = populate(source)
    run(*command.split(), stdin=archive(tree), cwd=target)
    expected, found = (
        [row._replace(mtime_ns=0) if row.kind in untimed else row for row in describe(each)]
        for each in (tree, tree_on_disk(target))
    )
    # The tools do not change the folder that they start in.
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_symlink_that_cannot_be(path: Path, target: bytes) -> None:
    data = archive(tree_of(link=Symlink(target=b"abc")))
    header = with_field(data[data.index(b"link") - 110 :][:110], "filesize", b"%08X" % len(target))
    refuse(
        path,
        header + b"link\0\0" + target.ljust(-len(target) % 4 + len(target), b"\0") + TRAILER,
        "not a valid entry",
    )
