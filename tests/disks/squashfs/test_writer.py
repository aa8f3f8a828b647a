"""Images of fledge's squashfs writer, judged by unsquashfs and the kernel."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.disks.squashfs import fits
from fledge.disks.squashfs.format import Squashfs
from fledge.disks.squashfs.reader import Image, InodeFacts, read
from fledge.disks.squashfs.structures import Flag
from fledge.errors import CorruptError, FledgeError
from fledge.tree import Directory, File, Node, Symlink, Tree
from fledge.tree.content import (
    Content,
    DataExtent,
    Span,
    Sparse,
    content_size,
    read_content,
    read_range,
)
from fledge.tree.digest import Digest
from tests.support import golden
from tests.support.bounded import in_a_child
from tests.support.mounted import list_folder, list_image, list_tree
from tests.support.samples import sample
from tests.support.squashed import fit, write
from tests.support.trees import NAMES, describe, trees

KIB, MIB = 1 << 10, 1 << 20
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an image")

OPTIONS = {
    "usual": Squashfs(),
    "small": Squashfs(compression_level=22, block_size=4),
    "gzip": Squashfs(compression="gzip"),
    "gzip-large": Squashfs(compression="gzip", compression_level=1, block_size=1024),
}


@pytest.fixture(scope="module")
def fast() -> Iterator[Path]:
    """A folder in memory if there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def noise(seed: int, size: int) -> bytes:
    """Return bytes that cannot be compressed, the same every time."""
    return random.Random(seed).randbytes(size)  # noqa: S311


def rich() -> Tree:
    """The sample, and contents of every kind and size."""
    tree = sample()
    data = noise(1, 300 * KIB)
    contents: dict[bytes, bytes] = {
        b"noise": data,
        b"noise again": data,
        b"text": b"some text\n" * 40_000,
        b"holes": data[:5000] + bytes(700 * KIB) + data[: 200 * KIB],
        b"zeros at the end": data[: 128 * KIB] + bytes(1000),
    }
    for name, content in contents.items():
        tree.add(b"contents/" + name, File(mode=0o644, content=content))
    for number in range(2000):
        node = Symlink(target=b"%d" % number) if number % 3 else File(mode=0, content=b"same")
        tree.add(b"many/%04d, a name that takes some space" % number, node)
    return tree


def digest(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_golden(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, image, options = rich(), tmp_path / "image", OPTIONS[name]
    assert digest(write(tree, image, options)) == golden.SQUASHFS[name]
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    before = os.umask(0o777)
    with ExitStack() as after:
        after.callback(os.umask, before)
        assert digest(write(tree, image, options)) == golden.SQUASHFS[name]


@pytest.mark.real
@as_root
@pytest.mark.parametrize("name", OPTIONS)
def test_the_kernel_and_unsquashfs_see_the_tree(name: str, tmp_path: Path) -> None:
    image = write(rich(), tmp_path / "image", OPTIONS[name])
    expected = list_tree(fit(rich()))
    assert list_image(image) == expected
    assert list_tree(read(image).tree) == expected
    unpack = ["unsquashfs", "-no-progress", "-quiet", "-dest"]
    done = subprocess.run([*unpack, tmp_path / "unpacked", image], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list_folder(tmp_path / "unpacked") == expected


@pytest.mark.real
def test_unsquashfs_shows_the_superblock(tmp_path: Path) -> None:
    image = write(rich(), tmp_path / "image", OPTIONS["gzip-large"])
    shown = subprocess.check_output(["unsquashfs", "-stat", image], text=True)
    assert "valid SQUASHFS 4:0 superblock" in shown
    assert "Creation or last append time Mon Jan  1" in shown
    for line in (
        "Compression gzip",
        "compression-level 1",
        "window-size 15",
        "Block size 1048576",
        "Filesystem is exportable via NFS",
        "Duplicates are removed",
        "Number of ids 5",
    ):
        assert line in shown
    assert image.stat().st_size % 4096 == 0


XATTRS = st.dictionaries(
    st.tuples(
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=30).map(lambda name: name.replace(b"\0", b"0")),
    ).map(b"".join),
    st.binary(max_size=60) | st.sampled_from([b"", b"x" * 9, b"x" * 9000]),
    max_size=4,
)

NEAR_BLOCKS = st.builds(
    lambda blocks, more: max(0, blocks * 4 * KIB + more),
    st.sampled_from([0, 1, 2, 7]),
    st.integers(-1, 1),
)
"""Sizes near multiples of the block size."""


@st.composite
def sparse(draw: st.DrawFn, source: Path) -> Content:
    """Pieces of a file that touch, share blocks or are far apart."""
    extents: list[DataExtent] = []
    end = 0
    for gap, start, length in draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 4095, 4096, 5000, 1 << 20]),
                st.integers(0, 32 << 10),
                st.integers(1, 9000),
            ),
            max_size=6,
        )
    ):
        extents.append(DataExtent(end + gap, start, length))
        end += gap + length
    return Sparse(end + draw(st.sampled_from([0, 1, 4096, 1 << 21])), source, tuple(extents))


@pytest.mark.real
@as_root
def test_a_thousand_trees(fast: Path) -> None:
    """Each is read back, and a hundred at a time go to the kernel and to unsquashfs."""
    (fast / "source").write_bytes(bytes(range(1, 256)) * 257)
    contents = st.one_of(
        st.binary(max_size=50),
        NEAR_BLOCKS.map(lambda size: b"c" * size),
        NEAR_BLOCKS.map(bytes),
        sparse(fast / "source"),
    )
    batch: list[Directory] = []
    options = Squashfs(compression_level=1, block_size=4)

    def judge() -> None:
        tree = Tree(mtime_ns=0)
        for number, root in enumerate(batch):
            tree.root.children[b"%d" % number] = root
        batch.clear()
        image = write(tree, fast / "batch", options)
        assert list_image(image) == list_tree(tree)
        done = subprocess.run(["unsquashfs", "-lln", image], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        tree=trees(
            names=NAMES, times=st.integers(-(1 << 66), 1 << 66), contents=contents, xattrs=XATTRS
        )
    )
    def check(tree: Tree) -> None:
        for number, (_, node) in enumerate(tree.walk()):
            node.origin = number % 3
            if not isinstance(node, File | Directory):  # Linux lists what it does not give
                node.xattrs = {
                    name: value
                    for name, value in node.xattrs.items()
                    if not name.startswith(b"user.")
                }
        fit(tree)
        assert describe(read(write(tree, fast / "image", options)).tree) == describe(tree)
        batch.append(tree.root)
        if len(batch) == 100:
            judge()

    check()
    judge()


def written(tree: Tree, path: Path, options: Squashfs | None = None) -> Image:
    """Write a tree, and read it back."""
    return read(write(tree, path, options))


def facts(image: Image, path: bytes) -> InodeFacts:
    node = image.tree.get(path)
    assert node
    return image.inodes[node]


def files(contents: dict[bytes, Content]) -> Tree:
    tree = Tree(mtime_ns=0)
    for path, content in contents.items():
        tree.add(path, File(mode=0o644, content=content))
    return tree


def test_equal_contents_are_stored_once(tmp_path: Path) -> None:
    data = noise(2, 300 * KIB)
    (tmp_path / "source").write_bytes(data)
    contents: dict[bytes, Content] = {
        b"a": data,
        b"b": Span(tmp_path / "source", 0, len(data)),
        b"c": data[:-1] + b"x",
        b"small": b"the same",
        b"small too": b"the same",
        b"hole": bytes(5 << 20),
        b"hole too": Sparse(5 << 20, tmp_path / "source", ()),
    }
    image = written(files(contents), tmp_path / "image")
    places = {name: (facts(image, name).start, facts(image, name).fragment) for name in contents}
    assert places[b"a"] == places[b"b"] != places[b"c"]
    assert places[b"small"] == places[b"small too"]
    assert places[b"hole"] == places[b"hole too"] == (0, None)
    # Three whole blocks, and the ends of two files that have much in common.
    assert 550 * KIB < image.superblock.bytes_used < 560 * KIB


def test_ends_of_files_share_blocks(tmp_path: Path) -> None:
    data = noise(3, 130 * KIB)
    tree = files({b"%d" % number: data[number : number + 129 * KIB] for number in range(200)})
    image = written(tree, tmp_path / "image")
    assert image.superblock.fragments == 2  # 200 KiB
    assert image.superblock.flags & Flag.ALWAYS_FRAGMENTS
    places = [facts(image, b"%d" % number).fragment for number in range(200)]
    assert len(set(places)) == 200
    for path, node in tree.walk():
        if isinstance(node, File):
            found = image.tree.get(path)
            assert isinstance(found, File)
            assert b"".join(read_content(found.content)) == node.content


def test_parts_of_a_content_are_read_alone(tmp_path: Path) -> None:
    data = noise(4, 10_000) + bytes(9000) + b"x" * 10_001
    image = written(files({b"f": data}), tmp_path / "image", Squashfs(block_size=4))
    file = image.tree.get(b"f")
    assert isinstance(file, File)
    for offset in range(0, len(data) + 5000, 997):
        for size in (0, 1, 4096, 20_000):
            assert read_range(file.content, offset, size) == data[offset : offset + size]


@pytest.mark.slow
def test_large_directories_have_an_index(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    names = [b"%05d-" % number + b"n" * (number % 200) for number in range(3000)]
    for name in names:
        tree.add(b"d/" + name, Directory(mode=0))
    image = written(tree, tmp_path / "image")
    found = image.tree.get(b"d")
    assert isinstance(found, Directory)
    assert list(found.children) == names
    assert image.inodes[found].size > 300_000
    if os.geteuid() == 0:
        assert list_image(tmp_path / "image") == list_tree(tree)


@pytest.mark.slow
def test_a_deep_tree(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    parent = tree.root
    for _ in range(2000):
        child = Directory(mode=0o755)
        parent.children[b"d"] = child
        parent = child
    assert describe(written(tree, tmp_path / "image").tree) == describe(tree)


def test_nothing_at_all(tmp_path: Path) -> None:
    image = written(Tree(mtime_ns=5 * 10**9), tmp_path / "image")
    assert image.superblock.mkfs_time == 5
    assert image.superblock.fragments == 0
    assert image.superblock.flags & Flag.NO_XATTRS
    assert (tmp_path / "image").stat().st_size == 4096


def test_a_later_source_moves_no_block_of_an_earlier_one(tmp_path: Path) -> None:
    data = noise(5, 256 * KIB)
    tree = files({b"b": data})
    before = facts(written(tree, tmp_path / "image"), b"b").start
    tree.origin = 1
    tree.add(b"a", File(mode=0o644, content=data[::-1]))
    assert facts(written(tree, tmp_path / "image"), b"b").start == before


def with_xattr(name: bytes, value: bytes) -> Node:
    return File(mode=0, content=b"", xattrs={name: value})


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (with_xattr(b"user." + b"n" * 251, b""), "attribute user.nnn"),
        (with_xattr(b"user.n", bytes(65_537)), "over 65536"),
        (File(mode=0, content=Sparse(1 << 60, Path("x"), ())), "larger block_size"),
        (Symlink(target=b"t" * 4096), "the symlink's target is 4096 bytes"),
        (File(mode=0, uid=0xFFFFFFFF, content=b""), "no owner 4294967295"),
    ],
)
def test_what_does_not_fit_is_named(node: Node, words: str, tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"d/x\n", node)
    with pytest.raises(CorruptError, match=r"^/d/x\\n") as error:
        write(tree, tmp_path / "image")
    assert words in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_as_many_owners_as_there_are_numbers(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    for number in range(0, 65_534, 2):
        tree.root.children[b"%d" % number] = Directory(mode=0, uid=number + 1, gid=number + 2)
    assert written(tree, tmp_path / "image").superblock.ids == 65_535
    tree.add(b"x", File(mode=0, gid=70_000, content=b""))
    with pytest.raises(CorruptError, match=r"^/x: .* more than 65535 owners and groups"):
        write(tree, tmp_path / "image")


def test_what_goes_lost_is_noted() -> None:
    tree = sample()
    assert list(fits.losses(tree)) == [
        "1 extended attribute left out, which squashfs cannot hold, such as"
        " system.posix_acl_access of /acl",
        "2 times set to the nearest that squashfs can hold, from 1970 to 2106, such as that of"
        " /run/-q\\n\"'\\xff $(x)",
    ]
    assert list(fits.losses(fit(tree))) == []
    tree.add(b"x", with_xattr(b"user.", b"has no name"))
    assert [note.partition(" of ")[2] for note in fits.losses(tree)] == ["/x"]


def test_a_content_that_changes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"hello")
    content = Span(tmp_path / "source", 0, 5, Digest.of(b"jello"))
    with pytest.raises(FledgeError, match="changed while it was read"):
        write(files({b"f": content}), tmp_path / "image")
    with pytest.raises(FledgeError, match="changed while it was read"):
        write(files({b"f": Span(tmp_path / "source", 0, 9)}), tmp_path / "image")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_files(tmp_path: Path) -> None:
    """Of 256 MiB that cannot be compressed, partly the same again, and of 400 GiB of holes."""
    with (tmp_path / "source").open("wb") as file:
        for number in range(256):
            file.write(noise(number, MIB))
    source = tmp_path / "source"
    contents: dict[bytes, Content] = {
        b"all": Span(source, 0, 256 * MIB),
        b"half": Span(source, 0, 128 * MIB),
        b"other half": Span(source, 128 * MIB, 128 * MIB),
        b"sparse": Sparse(400 << 30, source, (DataExtent(200 << 30, 5, MIB),)),
    }

    def work() -> int:
        image = written(files(contents), tmp_path / "image")
        for name in (b"all", b"half"):
            node = image.tree.get(name)
            assert isinstance(node, File)
            assert sum(map(len, read_content(node.content))) == content_size(node.content)
        return image.superblock.bytes_used

    used, memory = in_a_child(work, 60)
    assert used > 512 * MIB
    assert memory < 100 * MIB


def test_extended_attributes_are_shared(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    value = noise(6, 5000)
    for number in range(50):
        xattrs = {b"user.value": value, b"user.number": b"%d" % (number % 7)}
        tree.add(b"%d" % number, File(mode=0, content=b"", xattrs=xattrs))
    image = written(tree, tmp_path / "image")
    assert describe(image.tree) == describe(tree)
    assert image.superblock.bytes_used < 7000
    (entries,) = struct.unpack_from(
        "<I", (tmp_path / "image").read_bytes(), image.superblock.xattr_table + 8
    )
    assert entries == 7
