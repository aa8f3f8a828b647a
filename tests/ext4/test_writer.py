"""Images of fledge's ext4 writer, judged by e2fsck, the kernel and other tools."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fledge.cpio import newc
from fledge.errors import CorruptError, FledgeError, MalformedError
from fledge.ext4 import directory, inodes, structures, writer, xattr
from fledge.ext4.format import Builder, Ext4
from fledge.ext4.plan import Room, Space, make_plan, smallest_geometry
from fledge.ext4.reader import read
from fledge.host import output
from fledge.tree import CharDevice, Directory, File, Symlink, Tree
from fledge.tree.content import (
    Content,
    DataExtent,
    Span,
    Sparse,
    hash_file,
    read_content,
)
from fledge.tree.digest import Digest
from tests.support import daemons, golden, vm
from tests.support.disks import write_ext4
from tests.support.files import irregular
from tests.support.mounted import list_folder, list_image, list_tree, writable, writable_size
from tests.support.samples import EPOCH, TIMES, sample
from tests.support.trees import MAX_ID, NAMES, trees

MIB = 1 << 20
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an image")


@pytest.fixture(scope="module")
def fast() -> Iterator[Path]:
    """A folder in memory if there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def write(
    tree: Tree,
    image: Path,
    *,
    size_buffer_mb: int = 1,
    builder: Builder = "native",
    read_only: bool = False,
) -> Path:
    options = Ext4(0 if read_only else size_buffer_mb, builder, read_only=read_only)
    return write_with(options, tree, image)


def write_with(options: Ext4, tree: Tree, image: Path) -> Path:
    image.unlink(missing_ok=True)
    image.touch()
    write_ext4(tree, image, options, EPOCH)
    return image


def write_large(tree: Tree, image: Path, size_buffer_mb: int) -> Path:
    """Write an image without its digest, because hashing hundreds of GiB takes minutes."""
    tree.add(b"lost+found", Directory(mode=0o700))
    with image.open("w+b", buffering=0) as file:
        writer.write(make_plan(tree, Room(size_buffer_mb), EPOCH), file, EPOCH)
    return image


def assert_clean(image: Path) -> None:
    """Check with e2fsck, which must report only its passes."""
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert all(re.match(r"Pass [1-5]: |.*: \d+/\d+ files ", line) for line in said if line), said
    assert len(done.stderr.splitlines()) == 1, done.stderr


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="backslashreplace", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


NEAR_BLOCKS = st.builds(
    lambda blocks, more: max(0, blocks * structures.BLOCK_SIZE + more),
    st.sampled_from([0, 1, 2, 5, 300, 341]),
    st.integers(-1, 1),
)
"""Sizes near multiples of the block size."""


NAMED_ACL = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 6, MAX_ID, 2, 7, 4_000_000_000, 4, 4, MAX_ID, 16, 7, MAX_ID, 32, 4, MAX_ID),
)
"""As in system calls: user, user 4000000000, group, mask, other."""

PIECES = (0, 0, 0, 1, 4, 5, 340, 341, 1360, 1361)
"""As many extents as fit into an inode, a block and four blocks, and one more."""

CROWDS = st.tuples(st.sampled_from([0, 0, 0, 14, 15, 16, 50, 400]), st.integers(3, 255))
"""The number and length of the names in a directory."""

MISTAKEN = range(5 << 31, 3 << 32)
"""Seconds from 2310 to 2378, which e2fsck takes for 1901 to 1969 of old kernels."""


@st.composite
def sparse(draw: st.DrawFn, source: Path) -> Content:
    """Pieces of a 64 KiB file that touch, share blocks or are far apart."""
    extents: list[DataExtent] = []
    end = 0
    for gap, start, length in draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 4095, 4096, 5000, 1 << 20, 1 << 30]),
                st.integers(0, 32 << 10),
                st.integers(1, 9000),
            ),
            max_size=12,
        )
    ):
        extents.append(DataExtent(end + gap, start, length))
        end += gap + length
    for _ in range(draw(st.sampled_from(PIECES))):
        extents.append(DataExtent(end + 8192, 0, 1))
        end += 8193
    return Sparse(end + draw(st.sampled_from([0, 1, 4096, 1 << 33])), source, tuple(extents))


XATTRS = st.dictionaries(
    st.sampled_from([b"user.", b"trusted.", b"security."]).flatmap(
        lambda prefix: st.binary(min_size=1, max_size=30).map(
            lambda name: prefix + name.replace(b"\0", b"0")
        )
    ),
    st.binary(max_size=900) | st.sampled_from([b"", b"x" * 40, b"x" * 3900]),
    max_size=4,
)


@pytest.mark.real
def test_a_thousand_trees(fast: Path) -> None:
    (fast / "source").write_bytes(bytes(range(1, 256)) * 257)
    contents = st.one_of(
        st.binary(max_size=50), NEAR_BLOCKS.map(lambda size: b"c" * size), sparse(fast / "source")
    )

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        tree=trees(
            names=NAMES.filter(lambda name: name != b"lost+found"),
            times=(TIMES | st.integers(-(1 << 66), 1 << 66)).filter(
                lambda time: time // 10**9 not in MISTAKEN
            ),
            contents=contents,
            xattrs=XATTRS,
        ),
        crowd=CROWDS,
        depth=st.integers(1, 30),
        read_only=st.booleans(),
    )
    def check(tree: Tree, crowd: tuple[int, int], depth: int, read_only: bool) -> None:
        parent = tree.root
        for _ in range(depth):
            child = Directory(mode=0o755)
            parent.children[b"deep"] = child
            parent = child
        count, length = crowd
        file = File(mode=0o644, content=b"")
        for number in range(count):
            parent.children[b"%d" % number + b"-" * (length - len(str(number)))] = file
        for number, (_, node) in enumerate(tree.walk()):
            node.origin = number % 3
            node.uid, node.gid = min(node.uid, MAX_ID - 1), min(node.gid, MAX_ID - 1)
        try:
            write(tree, fast / "image", read_only=read_only)
        except CorruptError as error:
            assert "extended attributes" in error.message
            assume(False)
        assert_clean(fast / "image")

    check()


@pytest.mark.real
@as_root
def test_the_kernel_sees_what_mke2fs_would_have_made(tmp_path: Path) -> None:
    tree = sample()
    images = write(tree, tmp_path / "native"), write(tree, tmp_path / "mkfs", builder="mkfs")
    listings = [list_image(image) for image in images]
    assert listings[0] == listings[1] == list_tree(tree)
    fields = []
    for image in images:
        paths = "\n".join(
            f'stat "/{path.decode()}"'
            for path, node in tree.walk()
            if not set(path) & set(b'\xff\n"')
        )
        (tmp_path / "script").write_text(paths)
        said = run("debugfs", "-f", tmp_path / "script", image)
        fields.append(re.findall(r"(Links: \d+|[acm]time: .*|crtime: .*)", said))
    assert len(fields[0]) >= 100
    assert fields[0] == fields[1]


@pytest.mark.real
@pytest.mark.parametrize("size_buffer_mb", [40, 3000])
def test_it_is_divided_as_by_mke2fs(tmp_path: Path, size_buffer_mb: int) -> None:
    """Except for zeros, which mke2fs makes holes, bytes of names, which it reads as signed, and
    the seed of checksums, which it computes from the UUID."""
    differ = ("Filesystem flags:", "Free blocks:", "Lifetime writes:", "Checksum")
    divisions = []
    for builder in get_args(Builder):
        image = write(sample(), tmp_path / builder, builder=builder, size_buffer_mb=size_buffer_mb)
        header = run("dumpe2fs", "-h", image).splitlines()
        copies = re.findall(r"(?:superblock|Reserved GDT blocks) at .*", run("dumpe2fs", image))
        divisions.append([line for line in header if not line.startswith(differ)] + copies)
    assert divisions[0] == divisions[1]
    assert len(divisions[0]) > 40


@pytest.mark.real
@as_root
def test_the_kernel_sees_what_just_fits(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    for length in (59, 60, 4095):
        xattrs = {b"trusted.long": b"x" * 500}
        tree.add(b"symlinks/%d" % length, Symlink(target=b"t" * length))
        tree.add(b"symlinks/%d-block" % length, Symlink(target=b"t" * length, xattrs=xattrs))
    for major, minor in ((0, 0), (0, 256), (255, 255), (256, 0), (4095, (1 << 20) - 1)):
        tree.add(b"dev/%d-%d" % (major, minor), CharDevice(mode=0, major=major, minor=minor))
    for number, xattrs in enumerate(
        (
            *({b"trusted.a": b"v" * size} for size in (0, 1, 68, 69, 72, 73, 4040)),
            {b"trusted.a": b"v" * 68, b"trusted.b": b"w" * 4040},
            {b"trusted.%d" % count: b"" for count in range(170)},
            {b"user." + b"\xff" * 250: b"\x80", b"security.\xfe": b""},
            {b"system.posix_acl_access": NAMED_ACL},
        )
    ):
        tree.add(b"xattrs/%d" % number, File(mode=0o674, content=b"", xattrs=xattrs))
    tree.add(b"xattrs/d", Directory(mode=0o755, xattrs={b"system.posix_acl_default": NAMED_ACL}))
    for size in (1 << 27, (1 << 27) + 1):
        content = Sparse(size, tmp_path / "data", (DataExtent(size - 4097, 0, 4097),))
        tree.add(b"sparse/%d" % size, File(mode=0o644, content=content))
    (tmp_path / "data").write_bytes(b"d" * 4097)
    image = write(tree, tmp_path / "image")
    assert_clean(image)
    assert list_image(image) == list_tree(tree)


@pytest.mark.real
@as_root
def test_a_system_can_live_on_it(tmp_path: Path) -> None:
    tree = sample()
    for number in range(2000):
        tree.add(b"many/file-%d" % number, File(mode=0o644, content=b"x" * number))
    image = write(tree, tmp_path / "image", size_buffer_mb=64)
    with writable(image) as root:
        assert list_folder(root) == list_tree(tree)
        workload(root)
        os.sync()
        shutil.copy(image, tmp_path / "dirty")
        before = run("dumpe2fs", "-h", tmp_path / "dirty")
        fill(root / "full")
    assert_clean(image)
    assert "needs_recovery" in before
    shutil.copy(tmp_path / "dirty", tmp_path / "replayed")
    done = subprocess.run(
        ["e2fsck", "-fy", tmp_path / "replayed"], capture_output=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout
    assert_clean(tmp_path / "replayed")
    with writable(tmp_path / "dirty") as root:
        assert (root / "new/renamed").read_bytes() == b"created, appended"
        assert len(os.listdir(root / "many")) == 2000 - 500 + 3000
    assert_clean(tmp_path / "dirty")


def workload(root: Path) -> None:
    """Do some of the things that a running system does."""
    (root / "new/deeper").mkdir(parents=True)
    (root / "new/file").write_bytes(b"created")
    with (root / "new/file").open("ab") as file:
        file.write(b", appended")
    (root / "new/file").rename(root / "new/renamed")
    os.link(root / "new/renamed", root / "many/link")
    (root / "many/link").unlink()
    for number in range(0, 2000, 4):
        (root / f"many/file-{number}").unlink()
    for number in range(3000):
        (root / f"many/new-{number}").write_bytes(b"y")
    os.setxattr(root / "usr/bin/su", b"user.long", b"v" * 3000)
    os.truncate(root / "many/file-1999", 5)
    (root / "new/symlink").symlink_to("t" * 2000)
    with (root / "zeros").open("r+b") as file:
        file.seek(1 << 22)
        file.write(b"far")
    run("fallocate", "--punch-hole", "--offset", "4096", "--length", "8192", root / "zeros")
    os.sync()


def fill(folder: Path) -> None:
    """Make files until no inode is free, then write until no space is free."""
    folder.mkdir()
    with pytest.raises(OSError, match="No space left"):
        for number in range(100_000):
            (folder / str(number)).touch()
    assert os.statvfs(folder).f_ffree == 0
    with pytest.raises(OSError, match="No space left"), (folder / "0").open("wb") as file:
        while True:
            file.write(bytes(MIB))
            file.flush()


@pytest.mark.real
@as_root
@pytest.mark.parametrize("size_buffer_mb", [1, 40, 3000])
def test_it_grows_and_shrinks(tmp_path: Path, size_buffer_mb: int) -> None:
    tree = sample()
    (tmp_path / "data").write_bytes(bytes(range(1, 251)) * 80_000)
    tree.add(b"data", File(mode=0o644, content=Span(tmp_path / "data", 0, 20_000_000)))
    image = write(tree, tmp_path / "image", size_buffer_mb=size_buffer_mb)
    size = image.stat().st_size
    for name, arguments in (("larger", [f"{2 * size // 1024}K"]), ("least", [])):
        copy = tmp_path / name
        run("cp", "--sparse=always", image, copy)
        run("resize2fs", *([] if arguments else ["-M"]), copy, *arguments)
        assert (copy.stat().st_size > size) == bool(arguments)
        assert_clean(copy)
        assert list_image(copy) == list_tree(tree)


@pytest.mark.real
def test_the_kernel_enlarges_it_while_it_is_mounted(tmp_path: Path) -> None:
    daemons.need("busybox", "resize2fs", "ldd")
    image = write(sample(), tmp_path / "image", size_buffer_mb=8)
    os.truncate(image, 3 << 30)
    tree = Tree(mtime_ns=0)
    script = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t ext4 /dev/nvme0n1 /mnt
/sbin/resize2fs /dev/nvme0n1
/bin/busybox df -m /mnt
/bin/busybox umount /mnt
/bin/busybox poweroff -f
"""
    tree.add(b"init", File(mode=0o755, content=script))
    for folder in (b"mnt", b"dev", b"proc"):
        tree.add(folder, Directory(mode=0o755))
    busybox, resize2fs = shutil.which("busybox") or "", shutil.which("resize2fs") or ""
    libraries = re.findall(r"(/\S+) \(", run("ldd", resize2fs))
    sources = [(busybox, "bin/busybox"), (resize2fs, "sbin/resize2fs")]
    for source, goal in [*sources, *((library, library) for library in libraries)]:
        tree.add(goal.encode(), File(mode=0o755, content=Path(source).read_bytes()))
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"".join(newc.write(tree)))
    console = vm.boot(initrd, disk=image)
    found = re.search(r"/dev/nvme0n1 +(\d+)", console)
    assert found, console
    assert int(found[1]) > 2800
    assert_clean(image)


@pytest.mark.real
def test_its_features(tmp_path: Path) -> None:
    said = run("dumpe2fs", "-h", write(sample(), tmp_path / "image"))
    [features] = re.findall(r"Filesystem features: +(.*)", said)
    assert set(features.split()) == {
        *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit"),
        *("flex_bg", "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize"),
        *("metadata_csum", "metadata_csum_seed"),
    }
    assert re.search(r"Total journal size: +4M|Total journal size: +4096k", said), said
    assert "Filesystem state:         clean" in said


@pytest.mark.real
@as_root
def test_large_directories_are_hash_trees(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    names = [b"%0200d" % number for number in range(100_000)]
    parent = Directory(mode=0o755)
    tree.add(b"large", parent)
    for name in names:
        parent.children[name] = Symlink(target=b"x")
    image = write(tree, tmp_path / "image")
    assert_clean(image)
    said = run("debugfs", "-R", "htree_dump /large", image)
    assert "Indirect levels: 1" in said
    assert "Hash Version: 1" in said or "Hash Version: half_md4" in said
    assert len(re.findall(r"Reading directory block \d+, phys \d+", said)) > 5000
    with writable(image) as root:
        for name in names:
            assert os.path.lexists(os.fsencode(root) + b"/large/" + name)
        (root / "large/new").write_bytes(b"")
        (root / "large" / os.fsdecode(names[0])).unlink()
    assert_clean(image)


@pytest.mark.real
@as_root
@pytest.mark.parametrize("count", [507 * 12, 507 * 12 + 1])
def test_a_full_index_takes_more_names(fast: Path, count: int) -> None:
    """One level of index leads to 507 leaves with twelve of the longest names each."""
    tree = Tree(mtime_ns=0)
    parent = tree.root.children[b"d"] = Directory(mode=0o755)
    for number in range(count):
        parent.children[long_name(number)] = Symlink(target=b"x")
    image = write(tree, fast / "image", size_buffer_mb=60)
    assert_clean(image)
    levels = 0 if count == 507 * 12 else 1
    assert f"Indirect levels: {levels}" in run("debugfs", "-R", "htree_dump /d", image)
    with writable(image) as root:
        for name in parent.children:
            assert os.path.lexists(root / "d" / os.fsdecode(name))
        for number in range(3000):
            (root / "d" / os.fsdecode(long_name(count + number))).symlink_to("y")
        for number in range(0, count, 3):
            (root / "d" / os.fsdecode(long_name(number))).unlink()
    assert_clean(image)


def long_name(number: int) -> bytes:
    """255 bytes of any value that a name can have."""
    drawn = hashlib.shake_256(b"%d" % number).digest(255)
    return drawn.replace(b"/", b"|").replace(b"\0", b"0")


COLLISIONS = (
    *(37335, 39363, 30394, 75238, 11826, 89013, 12032, 104429, 76719, 121330, 17077, 148529),
    *(77346, 150447, 131619, 159167, 77890, 167510, 128481, 170624, 143704, 172680, 129040),
    *(172842, 13346, 173261, 97212, 177033, 143077, 180623, 91585, 198665, 182270, 207136),
    *(26749, 229023, 20168, 236708, 231922, 245613, 31084, 262331),
)
"""Pairs of numbers whose names have equal hashes, with the seed of the test."""

LOWEST = 172936
"""A name that sorts first, so that a leaf of 30 names ends within a pair."""


@pytest.mark.real
@as_root
def test_names_of_the_same_hash_in_two_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = uuid.UUID(bytes=bytes(range(16)), version=4).bytes
    for module in (inodes, structures):
        monkeypatch.setattr(module, "HASH_SEED", seed)
    tree = Tree(mtime_ns=0)
    names = [str(number).ljust(100, "-") for number in (*COLLISIONS, LOWEST)]
    for name in names:
        tree.add(b"d/" + name.encode(), File(mode=0o644, content=name.encode()))
    image = write(tree, tmp_path / "image")
    assert_clean(image)
    hashes = re.findall(r"Entry #\d+: Hash (0x\w+)", run("debugfs", "-R", "htree_dump /d", image))
    assert [int(first, 16) & 1 for first in hashes[:2]] == [0, 1]
    with writable(image) as root:
        for name in names:
            assert (root / "d" / name).read_text() == name
            (root / "d" / name).unlink()
            (root / "d" / name).write_bytes(b"new")
            (root / "d" / f"another {name}").write_bytes(b"")
    assert_clean(image)


@pytest.mark.real
@as_root
def test_more_directories_than_can_be_counted(fast: Path) -> None:
    tree = Tree(mtime_ns=0)
    for count in (64_998, 64_999):
        parent = tree.root.children[b"%d" % count] = Directory(mode=0o755)
        for number in range(count):
            parent.children[b"%d" % number] = Directory(mode=0o755)
    # The kernel reserves up to 16 MiB for itself (ext4_set_resv_clusters).
    image = write(tree, fast / "image", size_buffer_mb=20)
    assert_clean(image)
    with writable(image) as root:
        assert [(root / name).stat().st_nlink for name in ("64998", "64999")] == [65_000, 1]
        (root / "64998/more").mkdir()
        (root / "64999/7").rmdir()
        assert [(root / name).stat().st_nlink for name in ("64998", "64999")] == [1, 1]
    assert_clean(image)


@pytest.mark.real
def test_as_many_hard_links_as_ext4_takes(fast: Path) -> None:
    tree = Tree(mtime_ns=0)
    file = File(mode=0o644, content=b"")
    parent = tree.root.children[b"d"] = Directory(mode=0o755)
    parent.children.update({b"%d" % number: file for number in range(65_000)})
    assert_clean(write(tree, fast / "image"))
    tree.root.children[b"e"] = file
    with pytest.raises(CorruptError, match="/d/0: 65001 hard links"):
        write(tree, fast / "image")


def test_more_names_than_two_levels_of_index_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_LEAVES", 2)
    tree = Tree(mtime_ns=0)
    for number in range(24):
        tree.add(b"d/%0255d" % number, Symlink(target=b"x"))
    write(tree, tmp_path / "image")
    tree.add(b"d/" + b"n" * 255, Symlink(target=b"x"))
    with pytest.raises(CorruptError, match="/d: 3 blocks of names in one directory"):
        write(tree, tmp_path / "image")


@pytest.mark.real
@pytest.mark.parametrize("size_buffer_mb", [2048, 17 << 10, 80 << 10])
def test_many_groups(tmp_path: Path, size_buffer_mb: int) -> None:
    """More than one flex group, more than 128 groups, and a journal of many extents."""
    image = write_large(sample(), tmp_path / "image", size_buffer_mb)
    assert image.stat().st_blocks * 512 < 32 * MIB
    assert_clean(image)
    said = run("dumpe2fs", "-h", image)
    found = re.search(r"^Free blocks: +(\d+)$", said, re.MULTILINE)
    assert found
    wanted = size_buffer_mb * MIB // 4096 + 4096
    assert wanted < int(found[1]) < wanted + wanted // 100_000 + 3


@pytest.mark.real
@as_root
@pytest.mark.parametrize(("content_mb", "size_buffer_mb"), [(1, 1), (900, 16), (30, 200)])
def test_what_is_asked_for_can_be_written(fast: Path, content_mb: int, size_buffer_mb: int) -> None:
    """The kernel withholds 2 % of an ext4, at most 16 MiB, and a large file needs extents."""
    tree = Tree(mtime_ns=0)
    zeros = DataExtent(0, 0, content_mb * MIB)
    (fast / "source").touch()
    os.truncate(fast / "source", zeros.length)
    tree.add(b"content", File(mode=0o644, content=Sparse(zeros.length, fast / "source", (zeros,))))
    image = write(tree, fast / "image", size_buffer_mb=size_buffer_mb)
    with writable(image) as root:
        for uid in (0, 1000):
            written = writable_size(root, uid)
            assert size_buffer_mb * MIB <= written < (size_buffer_mb + 1) * MIB
    image.unlink()


def fill_with_files(folder: Path, uid: int, sizes: Sequence[int]) -> None:
    """Make files of these sizes, over and over, until the disk is full."""
    folder.mkdir()
    os.chown(folder, uid, uid)
    lines = (
        "import itertools, os, sys",
        "try:",
        "    for number, size in enumerate(itertools.cycle(map(int, sys.argv[1:]))):",
        "        if number % 64 == 0:",
        "            os.mkdir(f'{number}')",
        "        with open(f'{number // 64 * 64}/{number}', 'wb') as file:",
        "            file.write(bytes(size))",
        "    os.sync()",
        "except OSError as error:",
        "    sys.exit(error.strerror)",
    )
    command = ["/usr/bin/python3", "-c", "\n".join(lines), *map(str, sizes)]
    done = subprocess.run(
        command, user=uid, cwd=folder, capture_output=True, text=True, check=False
    )
    assert "No space left on device" in done.stderr, done.stderr


NODE_MODULES = [
    *(40, 90, 180, 350, 520, 700, 900, 1200, 1500, 1900, 2300, 2900, 3600, 4700, 6200, 8900),
    *(14_000, 31_000, 110_000),
]
"""Sizes of files as they are distributed in a real node_modules: 19 take about 240 KB on disk."""


@pytest.mark.real
@as_root
@pytest.mark.parametrize(
    ("content", "sizes"),
    [([100 * MIB], [3000]), ([100 * MIB], NODE_MODULES), (NODE_MODULES * 200, NODE_MODULES)],
    ids=["3kB", "node_modules", "more-node_modules"],
)
def test_inodes_last_as_long_as_the_free_space(
    fast: Path, content: list[int], sizes: list[int]
) -> None:
    (fast / "source").touch()
    os.truncate(fast / "source", 100 * MIB)
    tree = Tree(mtime_ns=0)
    for number, size in enumerate(content):
        span = Span(fast / "source", 0, size)
        tree.add(b"in/%d/%d" % (number // 64, number), File(mode=0o644, content=span))
    image = write(tree, fast / "image", size_buffer_mb=64)
    with writable(image) as root:
        root.chmod(0o777)
        for uid in (0, 1000):
            before = os.statvfs(root)
            fill_with_files(root / f"by-{uid}", uid, sizes)
            after = os.statvfs(root)
            assert after.f_bavail < before.f_bavail / 10
            shutil.rmtree(root / f"by-{uid}")
            os.sync()
    image.unlink()


@pytest.mark.real
def test_an_inode_for_as_many_bytes_as_asked_for(tmp_path: Path) -> None:
    for ratio, most in ((4096, 17_000), (65_536, 1100)):
        image = write_with(
            Ext4(size_buffer_mb=64, bytes_per_inode=ratio), sample(), tmp_path / "image"
        )
        assert_clean(image)
        found = re.search(r"^Inode count: +(\d+)$", run("dumpe2fs", "-h", image), re.MULTILINE)
        assert found
        assert 64 * MIB // ratio <= int(found[1]) <= most


@pytest.mark.real
@pytest.mark.parametrize("align_mb", [1, 2, 7])
@pytest.mark.parametrize("size_buffer_mb", [1, 120, 127])
def test_a_size_that_a_hypervisor_wants(align_mb: int, size_buffer_mb: int, tmp_path: Path) -> None:
    options = Ext4(size_buffer_mb=size_buffer_mb, align_mb=align_mb)
    image = write_with(options, sample(), tmp_path / "image")
    plain = write_with(Ext4(size_buffer_mb=size_buffer_mb), sample(), tmp_path / "plain")
    assert image.stat().st_size % (align_mb * MIB) == 0
    # Less than a block group more, because the last group has a smallest size.
    assert 0 <= image.stat().st_size - plain.stat().st_size < align_mb * MIB
    assert_clean(image)


@pytest.mark.real
def test_no_extent_has_the_bit_for_unwritten_ones(tmp_path: Path) -> None:
    """32,768 blocks are right, but some readers take the length's top bit for "unwritten"."""
    (tmp_path / "source").touch()
    os.truncate(tmp_path / "source", 500 * MIB)
    tree = Tree(mtime_ns=0)
    span = Span(tmp_path / "source", 0, 500 * MIB)
    tree.add(b"large", File(mode=0o644, content=span))
    image = write(tree, tmp_path / "image")
    assert_clean(image)
    shown = run("debugfs", "-R", "ex /large", image)
    lengths = [int(each) for each in re.findall(r"- *\d+ +(\d+) *$", shown, re.MULTILINE)]
    assert sum(lengths) == 500 * MIB // 4096
    assert max(lengths) == 32_767


@pytest.mark.real
def test_every_copy_of_the_superblock_is_whole(tmp_path: Path) -> None:
    image = write(sample(), tmp_path / "image", size_buffer_mb=1200)
    for group in (1, 3, 5, 7, 9):
        run("e2fsck", "-fn", "-b", str(group * 32_768), "-B", "4096", image)


@pytest.mark.real
@as_root
def test_a_journal_of_many_extents_is_replayed(tmp_path: Path) -> None:
    image = write_large(sample(), tmp_path / "image", 300 << 10)
    assert "1/ 1   9/  9" in run("debugfs", "-R", "ex <8>", image)
    with writable(image) as root:
        for number in range(1000):
            (root / f"new-{number}").write_bytes(b"y" * 5000)
        os.sync()
        run("cp", "--sparse=always", image, tmp_path / "dirty")
    assert_clean(image)
    assert "needs_recovery" in run("dumpe2fs", "-h", tmp_path / "dirty")
    with writable(tmp_path / "dirty") as root:
        assert (root / "new-999").read_bytes() == b"y" * 5000
    assert_clean(tmp_path / "dirty")


@pytest.mark.real
@as_root
def test_a_file_of_20_gib(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"data" * 5000)
    extents = tuple(DataExtent(number << 30, number, 9000) for number in range(20))
    tree = Tree(mtime_ns=0)
    content = Sparse(20 << 30, tmp_path / "source", extents)
    tree.add(b"large", File(mode=0o644, content=content))
    image = write(tree, tmp_path / "image")
    assert image.stat().st_size < 16 * MIB
    assert_clean(image)
    with writable(image) as root, (root / "large").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 20 << 30
        for offset, start, length in extents:
            file.seek(offset)
            expected = (b"data" * 5000)[start : start + length]
            assert file.read(length + 100) == expected + bytes(100)


class CountedExtents(tuple[DataExtent, ...]):
    """Counts how often one of them is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[DataExtent]:
        for extent in super().__iter__():
            self.looks += 1
            yield extent


@pytest.mark.slow
def test_the_time_to_copy_many_runs_grows_with_their_number(tmp_path: Path) -> None:
    """Not with its square, as it did when each run was searched for from the first one on."""
    count = 4096
    (tmp_path / "source").write_bytes(bytes(range(1, 256)) * 20)
    extents = CountedExtents(DataExtent(number * 8192, number, 1) for number in range(count))
    content = Sparse(count * 8192, tmp_path / "source", extents)
    tree = Tree(mtime_ns=0)
    tree.add(b"f", File(mode=0o644, content=content))
    image = write(tree, tmp_path / "image")
    assert extents.looks < 50 * count
    node = read(image).tree.get(b"f")
    assert isinstance(node, File)
    assert b"".join(read_content(node.content)) == b"".join(read_content(content))


@pytest.mark.real
def test_a_file_of_several_groups_is_in_few_extents(fast: Path) -> None:
    (fast / "dense").touch()
    os.truncate(fast / "dense", 600 * MIB)
    extents = (DataExtent(0, 0, 600 * MIB),)
    tree = Tree(mtime_ns=0)
    content = Sparse(600 * MIB, fast / "dense", extents, Digest("0" * 64))
    tree.add(b"dense", File(mode=0o644, content=content))
    tree.add(b"small", File(mode=0o644, content=b"s" * 5000))
    image = write(tree, fast / "image")
    assert_clean(image)
    said = run("debugfs", "-R", "ex /dense", image)
    assert len(re.findall(r"^ *1/ ", said, re.MULTILINE)) <= 8
    assert len(re.findall(r"^ *0/ 0", run("debugfs", "-R", "ex /small", image), re.MULTILINE)) == 1


@pytest.mark.real
def test_a_hundred_thousand_files(fast: Path) -> None:
    tree = Tree(mtime_ns=0)
    for number in range(100_000):
        if number % 5000 == 0:
            parent = tree.root.children[b"%d" % number] = Directory(mode=0o755)
        parent.children[b"%d" % number] = File(mode=0o644, content=b"s")
    assert_clean(write(tree, fast / "image"))


@pytest.mark.real
def test_nothing_at_all(tmp_path: Path) -> None:
    assert_clean(write(Tree(mtime_ns=0), tmp_path / "image"))


@pytest.mark.real
def test_golden(tmp_path: Path, fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this disk and in memory, without e2fsprogs."""
    monkeypatch.setattr("fledge.host.programs.find", None)
    for folder in (tmp_path, fast):
        assert digest(write(sample(), folder / "image")) == golden.EXT4_SAMPLE


def digest(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()).hexdigest()


def test_with_the_page_cache_and_without_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "source").write_bytes(data)
    tree = Tree(mtime_ns=0)
    extents = DataExtent(5, 7, 100_000), DataExtent(1 << 21, 300_000, 2_000_001)
    tree.add(b"f", File(mode=0o644, content=Sparse(1 << 22, tmp_path / "source", extents)))
    first = digest(image := write(tree, tmp_path / "image"))
    found = read(image).tree.get(b"f")
    assert isinstance(found, File)
    expected = bytearray(1 << 22)
    for offset, start, length in extents:
        expected[offset : offset + length] = data[start : start + length]
    assert b"".join(read_content(found.content)) == expected
    monkeypatch.setattr(output, "_set_direct", lambda *_: False)
    assert digest(write(tree, tmp_path / "image")) == first


def test_a_fifo_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    content = Span(irregular(tmp_path, "fifo"), 0, 5, Digest.of(b"hello"))
    tree.add(b"file", File(mode=0o644, content=content))
    with pytest.raises(FledgeError, match="it is a fifo, not a regular file"):
        write(tree, tmp_path / "image")


@pytest.mark.slow
def test_long_runs_of_zeros_take_no_space_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    os.truncate(tmp_path / "source", 64 * MIB)
    with (tmp_path / "source").open("r+b") as file:
        file.seek(33 * MIB)
        file.write(b"data")
    tree = Tree(mtime_ns=0)
    tree.add(b"f", File(mode=0o644, content=hash_file(tmp_path / "source")))
    image = write(tree, tmp_path / "image")
    assert image.stat().st_size > 64 * MIB
    assert image.stat().st_blocks * 512 < 8 * MIB
    found = read(image).tree.get(b"f")
    assert isinstance(found, File)
    assert b"".join(read_content(found.content)) == (tmp_path / "source").read_bytes()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    tree=trees(contents=NEAR_BLOCKS.map(bytes), xattrs=XATTRS),
    size_buffer_mb=st.integers(1, 5000),
)
def test_free_space_is_exact_but_at_the_edge_of_a_group(tree: Tree, size_buffer_mb: int) -> None:
    tree.root.children[b"lost+found"] = Directory(mode=0o700)
    try:
        planned = make_plan(tree, Room(size_buffer_mb), EPOCH)
    except CorruptError:
        assume(False)
    divided = planned.geometry
    free = sum(length for _, length in planned.free)
    asked = size_buffer_mb * MIB // structures.BLOCK_SIZE
    wanted = (
        asked + structures.extent_tree_blocks(asked // 2048 + 5) + min(divided.blocks // 50, 4096)
    )
    last = divided.blocks - (divided.groups - 1) * structures.BLOCKS_PER_GROUP
    assert free == wanted or (free > wanted and last == divided.min_last_group)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(tree=trees(xattrs=XATTRS))
def test_the_order_in_which_a_tree_was_made_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree
) -> None:
    tree.root.children[b"lost+found"] = Directory(mode=0o700)
    folder = tmp_path_factory.getbasetemp()
    try:
        first = digest(write(tree, folder / "image"))
    except CorruptError:
        assume(False)
    for _, node in list(tree.walk()):
        node.xattrs = dict(reversed(list(node.xattrs.items())))
        if isinstance(node, Directory):
            node.children = dict(reversed(node.children.items()))
    assert digest(write(tree, folder / "image")) == first


@pytest.mark.parametrize("count", [20, 4000, 100_000])
@pytest.mark.parametrize("needed", [300, 2000, 32_000, 33_000, 98_304, 500_000, 5_000_000])
def test_what_a_geometry_holds(needed: int, count: int) -> None:
    found = smallest_geometry(needed, count)
    left = found.blocks - found.overhead - found.withheld_blocks - needed
    assert found.inodes >= count
    assert found.table_blocks * 16 == found.inodes_per_group <= 32_768
    last = found.blocks - (found.groups - 1) * 32_768
    assert last >= found.min_last_group
    assert left == 0 or last == found.min_last_group


def test_space_is_taken_in_order() -> None:
    space = Space(100)
    space.reserve(10, 5)
    assert space.take(20) == [(0, 10), (15, 10)]
    assert space.take(4) == [(25, 4)]
    assert space.take_from(50, 10) == 50
    assert space.runs == [(29, 21), (60, 40)]
    assert space.take(50) == [(29, 21), (60, 29)]
    assert space.free == 11
    assert space.take(12) == [(89, 11), (100, 1)]
    assert space.free == -1


def test_space_that_is_left_out_stays_free() -> None:
    space = Space(2000)
    space.reserve(0, 10)
    space.reserve(600, 10)
    space.reserve(1000, 20)
    space.reserve(1024, 976)
    space.align_later_runs()
    assert space.left == [(610, 158), (1020, 4)]
    assert space.take(5) == [(10, 5)]
    space.align()
    assert space.take(400) == [(256, 344), (768, 56)]
    assert space.free == 2000 - 10 - 10 - 20 - 976 - 405
    space.align()
    assert space.free == 2000 - 10 - 10 - 20 - 976 - 405
    assert space.take(1) == [(2048, 1)]
    assert space.end == 2049
    assert space.free == 2000 - 10 - 10 - 20 - 976 - 406


def test_structures_are_what_mke2fs_wrote(tmp_path: Path) -> None:
    if not shutil.which("mkfs.ext4", path="/sbin:/usr/sbin:" + os.environ["PATH"]):
        pytest.skip("mkfs.ext4 is not installed")
    image = tmp_path / "image"
    options = "^orphan_file,^metadata_csum_seed,metadata_csum,64bit"
    run("/sbin/mkfs.ext4", "-q", "-b", "4096", "-O", options, image, "300M")
    with image.open("rb") as file:
        raw = file.read(8192)
        superblock = structures.Superblock.unpack(raw[1024:2048])
        assert superblock.pack() == raw[1024:2048]
        seed = structures.filesystem_seed(superblock.uuid)
        group = structures.GroupDescriptor.unpack(raw[4096:4160])
        assert group.pack(0, seed) == raw[4096:4160]
        file.seek(group.inode_table * 4096)
        for number in range(1, 12):
            packed = file.read(256)
            inode = structures.Inode.unpack(packed)
            assert inode.mode == 0 or inode.pack(number, seed) == packed


def test_extended_attributes_fill_the_inode_first() -> None:
    packed = xattr.pack({b"user.a": b"x" * 40, b"user.b": b"y" * 100})
    assert packed.inode
    assert packed.block.count(b"y" * 100) == 1
    assert b"x" * 40 in packed.inode
    with pytest.raises(MalformedError, match="ext4 has"):
        xattr.pack({b"user.a": b"x" * 4095})
