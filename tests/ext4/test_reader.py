"""Reading images of fledge, mke2fs and the kernel, and hostile images."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fledge.errors import CorruptError, FledgeError
from fledge.ext4 import directory
from fledge.ext4.constants import SUPERBLOCK_OFFSET
from fledge.ext4.format import Ext4
from fledge.ext4.reader import Image, read
from fledge.ext4.structures import (
    BLOCK_SIZE,
    INODE_SIZE,
    MAX_SECONDS,
    MIN_SECONDS,
    ROOT,
    Extent,
    GroupDescriptor,
    Incompat,
    Inode,
    InodeFlag,
    RoCompat,
    checksum,
    inode_seed,
    pack_extents,
)
from fledge.tree import CharDevice, Directory, File, Node, Symlink, Tree, TreeError, inodes
from fledge.tree.content import DataExtent, Span, Sparse, content_size, read_content
from tests.support import damage
from tests.support.damage import Places, mutations, overwritten
from tests.support.disks import write_ext4
from tests.support.mounted import list_folder, list_tree, mounted
from tests.support.trees import MAX_ID, NAMES, Row, describe, trees

EPOCH = 1704067200
ACL = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 2, 4, 1000, 4, 4, 0xFFFFFFFF) + struct.pack(
    "<HHIHHI", 16, 6, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF
)

XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=40)
    .filter(lambda name: b"\0" not in name)
    .map(b"trusted.".__add__),
    st.binary(max_size=60),
    max_size=3,
)


def write(tree: Tree, path: Path) -> Path:
    path.touch()
    write_ext4(tree, path, Ext4(size_buffer_mb=1), EPOCH)
    return path


def sample() -> Tree:
    """One node of every type; /d has an index and /sparse an extent block."""
    tree = Tree(mtime_ns=EPOCH * 10**9)
    nodes: dict[bytes, Node] = {
        b"file": File(mode=0o4755, uid=70000, content=b"x" * 9000, mtime_ns=2**33 * 10**9 + 9),
        b"empty": File(mode=0, content=b""),
        b"short": Symlink(target=b"t" * 59),
        b"long": Symlink(target=b"t" * 60),
        b"null": CharDevice(mode=0o666, major=1, minor=3),
        b"acl": File(mode=0o664, content=b"1", xattrs={b"system.posix_acl_access": ACL}),
        b"many": File(mode=0o644, content=b"2", xattrs={b"user.x": b"v" * 900, b"user.y": b""}),
        b"sub/directory/file": File(mode=0o644, content=b"3"),
    }
    for path, node in nodes.items():
        tree.add(path, node)
    tree.add(b"sub/link", nodes[b"file"])
    for number in range(120):
        tree.add(b"d/a name that takes its place %d" % number, nodes[b"empty"])
    return tree


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as an image written by fledge."""
    tree = sample()
    folder = tmp_path_factory.mktemp("written")
    (folder / "data").write_bytes(b"y" * 9 * BLOCK_SIZE)
    extents = tuple(DataExtent(n * 2 * BLOCK_SIZE, n * BLOCK_SIZE, BLOCK_SIZE) for n in range(9))
    content = Sparse(30 * BLOCK_SIZE, folder / "data", extents)
    tree.add(b"sparse", File(mode=0o644, content=content))
    return write(tree, folder / "image")


@pytest.fixture
def image(written: Path, tmp_path: Path) -> Path:
    """A copy of `written` to damage."""
    (tmp_path / "image").write_bytes(written.read_bytes())
    return tmp_path / "image"


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tree=trees(
        names=NAMES.filter(b"lost+found".__ne__),
        times=st.integers(MIN_SECONDS * 10**9, MAX_SECONDS * 10**9),
        xattrs=XATTRS,
    )
)
def test_what_fledge_writes_it_reads_back(tree: Tree) -> None:
    for _, node in tree.walk():
        node.uid, node.gid = min(node.uid, MAX_ID - 1), min(node.gid, MAX_ID - 1)
        if isinstance(node, Symlink):
            node.mode = 0o777
    with tempfile.TemporaryDirectory() as folder:
        assert describe(read(write(tree, Path(folder, "image"))).tree) == describe(tree)


def test_contents_stay_in_the_image(written: Path) -> None:
    tree = read(written).tree
    contents = {path: node.content for path, node in tree.walk() if isinstance(node, File)}
    dense, sparse = contents[b"file"], contents[b"sparse"]
    assert isinstance(dense, Span)
    assert (dense.path, dense.size) == (written, 9000)
    assert isinstance(sparse, Sparse)
    assert (sparse.path, sparse.size, len(sparse.extents)) == (written, 30 * BLOCK_SIZE, 9)
    assert b"".join(read_content(sparse))[: 3 * BLOCK_SIZE] == (
        b"y" * BLOCK_SIZE + bytes(BLOCK_SIZE) + b"y" * BLOCK_SIZE
    )
    assert contents[b"empty"] == b""


def test_an_inode_tells_what_its_node_does_not(written: Path) -> None:
    image = read(written)
    facts = image.inodes[image.tree.root]
    assert (facts.number, facts.links) == (ROOT, 5)  # . and .. count, and sub, d, lost+found
    file = image.inodes[node_at(image, b"file")]
    assert (file.links, file.blocks) == (2, 24)
    assert image.inodes[node_at(image, b"d")].flags & InodeFlag.INDEX
    assert image.superblock.block_size == BLOCK_SIZE
    assert "metadata_csum" in image.superblock.features
    assert image.sockets == []


def node_at(image: Image, path: bytes) -> Node:
    node = image.tree.get(path)
    assert node
    return node


def test_what_is_no_filesystem_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "zeros").write_bytes(bytes(4096))
    for name in ("short", "zeros"):
        with pytest.raises(CorruptError, match=f"{name} is not an ext2, ext3 or ext4"):
            read(tmp_path / name)
    with pytest.raises(FledgeError, match="missing could not be read: no such file"):
        read(tmp_path / "missing")


def test_an_image_that_is_cut_off(image: Path) -> None:
    size = image.stat().st_size
    os.truncate(image, size - 1)
    with pytest.raises(CorruptError, match=f"has {size - 1} bytes, and its filesystem {size}"):
        read(image)


class Editor:
    """Changes an image of fledge and keeps its checksums valid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image = read(path)
        superblock = self.image.superblock
        self.seed = superblock.seed
        descriptor = GroupDescriptor.unpack(self.peek(BLOCK_SIZE, 64))
        self.table = descriptor.inode_table * BLOCK_SIZE

    def peek(self, position: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), size, position)

    def put(self, position: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, position)

    def superblock(self, **changes: Any) -> None:
        self.put(SUPERBLOCK_OFFSET, self.image.superblock._replace(**changes).pack())

    def number(self, path: bytes) -> int:
        return self.image.inodes[node_at(self.image, path)].number

    def get(self, number: int) -> Inode:
        return Inode.unpack(self.peek(self.table + (number - 1) * INODE_SIZE, INODE_SIZE))

    def inode(self, path: bytes, **changes: Any) -> None:
        number = self.number(path)
        inode = replace(self.get(number), **changes)
        self.put(self.table + (number - 1) * INODE_SIZE, inode.pack(number, self.seed))

    def block_of(self, path: bytes) -> int:
        """Return the first block of a file or directory."""
        return int(struct.unpack_from("<I", self.get(self.number(path)).block, 20)[0])

    def entries(self, path: bytes, change: Callable[[bytes], bytes]) -> None:
        """Change the entries in the first block of a directory."""
        number = self.number(path)
        position = self.block_of(path) * BLOCK_SIZE
        data = change(self.peek(position, directory.ENTRY_SPACE))
        assert len(data) == directory.ENTRY_SPACE
        total = checksum(inode_seed(self.seed, number, self.get(number).generation), data)
        tail = directory.Tail(rec_len=12, file_type=directory.TAIL_TYPE, checksum=total)
        self.put(position, data + directory.TAIL.pack(tail))

    def rename(self, path: bytes, old: bytes, new: bytes) -> None:
        assert len(old) == len(new)
        self.entries(path, lambda data: data.replace(old, new, 1))

    def redirect(self, path: bytes, name: bytes, number: int) -> None:
        def change(data: bytes) -> bytes:
            start = data.index(name) - directory.ENTRY.size
            return data[:start] + struct.pack("<I", number) + data[start + 4 :]

        self.entries(path, change)


def refused(path: Path, match: str) -> None:
    """Read the image, which must fail quickly."""
    start = time.process_time()
    with pytest.raises(CorruptError, match=match):
        read(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"feature_incompat": Incompat.ENCRYPT | Incompat.JOURNAL_DEV}, "journal_dev, encrypt"),
        ({"feature_incompat": Incompat.COMPRESSION | 1 << 30}, "compression, FEATURE_I30"),
        ({"feature_ro_compat": RoCompat.SHARED_BLOCKS}, "shared_blocks"),
        ({"feature_incompat": Incompat.RECOVER}, "only in its journal"),
    ],
)
def test_features_that_cannot_be_read_are_named(
    image: Path, changes: dict[str, int], match: str
) -> None:
    Editor(image).superblock(**changes)
    with pytest.raises(FledgeError, match=match) as caught:
        read(image)
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"log_block_size": 7},
        {"log_block_size": 0xFFFFFFFF},
        {"blocks_count": 0},
        {"blocks_per_group": 0},
        {"blocks_per_group": 1},
        {"inodes_per_group": 0},
        {"inodes_count": 0xFFFFFFFF},
        {"inode_size": 0},
        {"inode_size": 200},
        {"inode_size": 8192},
        {"first_data_block": 0xFFFFFFFF},
        {"desc_size": 0},
        {"desc_size": 2048},
        {"rev_level": 2},
    ],
)
def test_impossible_superblocks(image: Path, changes: dict[str, int]) -> None:
    Editor(image).superblock(**changes)
    refused(image, "superblock contradict")


def test_a_filesystem_larger_than_its_image(image: Path) -> None:
    Editor(image).superblock(blocks_count=1 << 40, blocks_per_group=1 << 31, inodes_count=0)
    refused(image, "superblock contradict|cut off")


def test_checksums_name_what_is_damaged(image: Path) -> None:
    editor = Editor(image)
    number = editor.number(b"file")
    (tree,) = struct.unpack_from("<I", editor.get(editor.number(b"sparse")).block, 16)
    places = {
        SUPERBLOCK_OFFSET + 0x78: "superblock",
        BLOCK_SIZE + 5: "descriptor of group 0",
        editor.table + (number - 1) * INODE_SIZE + 4: f"inode {number}, /file: its checksum",
        editor.block_of(b"sub") * BLOCK_SIZE + 30: "/sub: the checksum of its block 0",
        editor.block_of(b"d") * BLOCK_SIZE + 40: "/d: the checksum of its block 0",
        editor.get(editor.number(b"many")).file_acl * BLOCK_SIZE + 40: "/many: .* attributes",
        tree * BLOCK_SIZE + 20: "/sparse: the checksum of its extent tree",
    }
    for place, match in places.items():
        before = editor.peek(place, 1)
        editor.put(place, bytes([before[0] ^ 1]))
        refused(image, match)
        editor.put(place, before)
    read(image)


def test_a_directory_with_two_names(image: Path) -> None:
    editor = Editor(image)
    editor.redirect(b"sub", b"link", editor.number(b"d"))
    refused(image, "/sub/link|/d: it is a directory and has another name")


@pytest.mark.parametrize("ancestor", [b"", b"sub"])
def test_directories_in_a_loop(image: Path, ancestor: bytes) -> None:
    editor = Editor(image)
    editor.redirect(b"sub", b"directory", editor.number(ancestor))
    refused(image, "it is a directory and has another name")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (b"li/k", "'li/k' cannot be a name"),
        (b"li\0k", "cannot be a name"),
        (b"..\0k", "cannot be a name"),
    ],
)
def test_names_that_no_file_can_have(image: Path, name: bytes, match: str) -> None:
    Editor(image).rename(b"sub", b"link", name)
    refused(image, f"/sub: .*{match}")


def test_two_files_of_one_name(image: Path) -> None:
    Editor(image).rename(b"", b"file", b"many")
    refused(image, "inode 2, /: it has two entries 'many'")


@pytest.mark.parametrize("dot", [b"\x01\x02.\0", b"\x02\x02.."])
def test_dots_that_lead_elsewhere(image: Path, dot: bytes) -> None:
    editor = Editor(image)

    def change(data: bytes) -> bytes:
        start = data.index(dot) - 6
        return data[:start] + struct.pack("<I", editor.number(b"d")) + data[start + 4 :]

    editor.entries(b"sub", change)
    refused(image, r"/sub: its \.+ is inode")


@pytest.mark.parametrize("length", [0, 4, 8, 10, 13, 4100, 65532, 65535])
def test_entries_of_impossible_length(image: Path, length: int) -> None:
    Editor(image).entries(b"sub", lambda data: data[:4] + struct.pack("<H", length) + data[6:])
    refused(image, "impossible length|no room")


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (0xFFFFFFFF, "there are only"),
        (8, "reserved"),
        (1, "reserved"),
    ],
)
def test_entries_of_impossible_inodes(image: Path, number: int, match: str) -> None:
    Editor(image).redirect(b"sub", b"link", number)
    refused(image, f"inode {number}, /sub/link: .*{match}")


def test_an_inode_that_is_not_in_use(image: Path) -> None:
    editor = Editor(image)
    editor.inode(b"file", mode=0)
    refused(image, "not in use")


def extents(*some: tuple[int, int, int]) -> bytes:
    return pack_extents(
        [Extent(logical, length, physical) for logical, physical, length in some], [], 0
    )[0]


@pytest.mark.parametrize(
    ("block", "match"),
    [
        (extents((0, 900, 2), (1, 910, 1)), "overlap"),
        (extents((5, 900, 1), (0, 910, 1)), "out of order"),
        (extents((0, 0, 1)), "block 0, which"),
        (extents((0, 1 << 40, 1)), "which no file can have"),
        (extents((0, 0xFFFFFFFF, 32768)), "which no file can have"),
        (extents((0, 900, 0)), "empty"),
        (bytes(60), "malformed"),
        (struct.pack("<HHHHI", 0xF30A, 5, 5, 0, 0).ljust(60, b"\0"), "malformed"),
        (struct.pack("<HHHHI", 0xF30A, 5, 4, 0, 0).ljust(60, b"\0"), "malformed"),
        (struct.pack("<HHHHI", 0xF30A, 1, 4, 6, 0).ljust(60, b"\0"), "too deep"),
        (struct.pack("<HHHHI", 0xF30A, 1, 4, 65535, 0).ljust(60, b"\0"), "too deep"),
    ],
)
@pytest.mark.parametrize("path", [b"file", b"sub"])
def test_impossible_extents(image: Path, path: bytes, block: bytes, match: str) -> None:
    Editor(image).inode(path, block=block)
    refused(image, f"/{path.decode()}: .*{match}")


def without_checksums(path: Path) -> Editor:
    editor = Editor(path)
    features = editor.image.superblock.feature_ro_compat & ~RoCompat.METADATA_CSUM
    editor.superblock(feature_ro_compat=features)
    return editor


@pytest.mark.parametrize("depth", [1, 5])
def test_an_extent_tree_that_comes_back_to_itself(image: Path, depth: int) -> None:
    editor = without_checksums(image)
    block = editor.block_of(b"file")
    node = struct.pack("<HHHHI IIHH", 0xF30A, 1, 4, depth, 0, 0, block, 0, 0)
    editor.put(block * BLOCK_SIZE, node)
    editor.inode(b"file", block=node.ljust(60, b"\0"))
    refused(image, "/file: its extent tree is malformed")


def test_an_extent_tree_of_one_node_over_and_over(image: Path) -> None:
    """Each level leads 340 times to the one below: 340 ** 4 paths, if order were not checked."""
    editor = without_checksums(image)
    block = editor.block_of(b"file")
    entries = struct.pack("<IIHH", 0, block, 0, 0) * 340
    editor.put(block * BLOCK_SIZE, struct.pack("<HHHHI", 0xF30A, 340, 340, 1, 0) + entries)
    root = struct.pack("<HHHHI IIHH", 0xF30A, 1, 4, 2, 0, 0, block, 0, 0)
    editor.inode(b"file", block=root.ljust(60, b"\0"))
    refused(image, "malformed")


def indirect(*pointers: int) -> bytes:
    return struct.pack("<15I", *pointers, *([0] * (15 - len(pointers))))


@pytest.mark.parametrize("level", [12, 13, 14])
@pytest.mark.parametrize("path", [b"file", b"sub"])
def test_a_block_of_pointers_that_leads_to_itself(image: Path, path: bytes, level: int) -> None:
    editor = Editor(image)
    block = editor.block_of(b"file")
    editor.put(block * BLOCK_SIZE, struct.pack("<1024I", *([block] * 1024)))
    pointers = indirect(*([0] * level), block)
    editor.inode(path, block=pointers, size=1 << 40, flags=0)
    if (path, level) == (b"file", 12):
        assert len(contents(read(image), b"file").extents) == 1024
    elif path == b"sub":
        refused(image, "its block 0 is missing|more blocks are in use")
    else:
        refused(image, "more blocks are in use")


def contents(image: Image, path: bytes) -> Sparse:
    node = node_at(image, path)
    assert isinstance(node, File)
    assert isinstance(node.content, Sparse)
    return node.content


def test_a_pointer_beyond_the_end(image: Path) -> None:
    Editor(image).inode(b"file", block=indirect(0xFFFFFFFF), flags=0)
    refused(image, "block 4294967295, which no file can have")


@pytest.mark.parametrize("size", [0, 1, 4097, 1 << 20, 1 << 44, (1 << 64) - BLOCK_SIZE])
def test_directories_of_impossible_size(image: Path, size: int) -> None:
    editor = Editor(image)
    editor.inode(b"sub", size=size)
    if size:
        refused(image, "/sub: ")
    else:
        assert isinstance(node_at(read(image), b"sub"), Directory)


def test_a_file_of_impossible_size(image: Path) -> None:
    Editor(image).inode(b"file", size=1 << 60)
    refused(image, "too many for a file")


@pytest.mark.parametrize(("path", "size"), [(b"short", 0), (b"long", 4096), (b"long", 1 << 50)])
def test_symlinks_of_impossible_size(image: Path, path: bytes, size: int) -> None:
    Editor(image).inode(path, size=size)
    refused(image, f"target cannot have {size} bytes")


def test_a_symlink_through_a_nul(image: Path) -> None:
    Editor(image).inode(b"short", block=b"a\0b".ljust(60, b"c"))
    refused(image, "target contains a NUL")


def in_inode(prefix: int, name: bytes, value: bytes, **changes: int) -> bytes:
    """Return one extended attribute as stored after an inode's fields."""
    offset = changes.get("offset", 40)
    fields = (len(name), prefix, offset, changes.get("inode", 0), changes.get("size", len(value)))
    entry = struct.pack("<BBHIII", *fields, 0) + name
    return struct.pack("<I", 0xEA020000) + entry.ljust(40, b"\0") + value


@pytest.mark.parametrize(
    ("xattrs", "match"),
    [
        (in_inode(1, b"a", b"x", offset=65535), "another size"),
        (in_inode(1, b"a", b"x", size=0xFFFFFFFF), "another size"),
        (in_inode(1, b"a", b"")[:4] + b"\xff" + in_inode(1, b"a", b"")[5:], "impossible name"),
        (in_inode(1, b"a\0", b""), "impossible name"),
        (in_inode(1, b"", b""), "impossible name"),
        (in_inode(2, b"a", b""), "impossible name"),
        (in_inode(2, b"", b""), "ACL is malformed"),
        (in_inode(2, b"", b"\2\0\0\0"), "ACL is malformed"),
        (in_inode(2, b"", b"\1\0\0\0\2\0\0\0"), "ACL is malformed"),
        (in_inode(2, b"", b"\1\0\0\0\3\0\0\0"), "ACL is malformed"),
        (in_inode(1, b"a", b"x", inode=11), "inode 11 cannot be the value"),
        (in_inode(1, b"a", b"x", inode=0xFFFFFFFF), "there are only"),
        (in_inode(1, b"a" * 76, b"", offset=0), "have no end"),
    ],
)
def test_impossible_extended_attributes(image: Path, xattrs: bytes, match: str) -> None:
    Editor(image).inode(b"file", xattrs=xattrs)
    refused(image, f"/file: .*{match}")


def test_extended_attributes_that_the_kernel_does_not_show(image: Path) -> None:
    Editor(image).inode(b"file", xattrs=in_inode(7, b"hidden", b"x"))
    assert node_at(read(image), b"file").xattrs == {}


def test_memory_is_bounded(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.tree.budget.MIN_MEMORY", 100 * inodes.ENTRY_COST)
    monkeypatch.setattr("fledge.tree.budget.SIZE_PER_MEMORY", 1 << 40)
    with pytest.raises(CorruptError, match="of memory"):
        read(written)


def test_paths_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"/".join([b"directory"] * 20), Directory(mode=0o755))
    write(tree, tmp_path / "image")
    read(tmp_path / "image")
    monkeypatch.setattr(inodes, "MAX_PATH", 100)
    refused(tmp_path / "image", "(/directory){10}: its path has more than 99 bytes")


STEPS = st.sampled_from([b"a", b"b", b"c", b"..", b".", b""])
WAYS = st.lists(STEPS, min_size=1, max_size=6).map(b"/".join)


@st.composite
def mazes(draw: st.DrawFn) -> Tree:
    """A tree of few names, with symlinks that form chains and loops or lead nowhere."""
    tree = Tree(mtime_ns=0)
    targets = st.tuples(st.sampled_from([b"", b"/"]), WAYS).map(b"".join).filter(bool)
    nodes = st.one_of(
        st.builds(Directory, mode=st.just(0o755)),
        st.builds(Symlink, target=targets),
        st.builds(File, mode=st.integers(0, 0o777), content=st.binary(max_size=9)),
    )
    for way, node in draw(st.lists(st.tuples(WAYS, nodes), max_size=25)):
        with suppress(TreeError):
            tree.add(way, node)
    return tree


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=mazes(), ways=st.lists(WAYS, min_size=5, max_size=20))
def test_a_path_read_alone_is_as_in_the_whole_image(tree: Tree, ways: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(tree, Path(folder, "image"))
        whole = read(path)
        for way in [*ways, *(name for name, _ in tree.walk())]:
            alone = read(path, only=way)
            assert shown(alone, alone.tree.get(way)) == shown(whole, whole.tree.get(way))
            ends = [image.tree.get(way, follow=True) for image in (whole, alone)]
            assert shown(whole, ends[0]) == shown(alone, ends[1])
            if isinstance(ends[0], Directory) and isinstance(ends[1], Directory):
                listings = [
                    {name: shown(image, node) for name, node in end.children.items()}
                    for image, end in ((whole, ends[0]), (alone, ends[1]))
                ]
                assert listings[0] == listings[1]
            assert {
                type(node.children) for node in alone.inodes if isinstance(node, Directory)
            } == {dict}


def shown(image: Image, node: Node | None) -> object:
    """Return all facts about a node, without its children."""
    if node is None:
        return None
    own = [getattr(node, name, None) for name in ("mode", "target", "mtime_ns", "xattrs")]
    # Without `opened`: each image is opened on its own.
    content = getattr(node, "content", None)
    where = [
        getattr(content, name, content if isinstance(content, bytes) else None)
        for name in ("path", "offset", "size", "extents", "digest", "file_digest")
    ]
    return type(node), own, where, image.inodes[node]


def test_a_path_read_alone_brings_only_what_leads_there(written: Path) -> None:
    found = read(written, b"sub/directory")
    assert [path for path, _ in found.tree.walk()] == [
        b"",
        b"sub",
        b"sub/directory",
        b"sub/directory/file",
    ]
    assert set(found.inodes) == {node for _, node in found.tree.walk()}
    top = read(written, b"/").tree
    assert top.root.children.keys() == read(written).tree.root.children.keys()
    assert [path for path, _ in top.walk() if b"/" in path] == []
    assert [path for path, _ in read(written, b"sub/missing/x").tree.walk()] == [b"", b"sub"]
    assert [path for path, _ in read(written, b"short/x").tree.walk()] == [b"", b"short"]


@pytest.mark.slow
def test_a_path_read_alone_costs_the_same_in_a_large_image(tmp_path: Path) -> None:
    counts = []
    for name, files in (("small", 10), ("large", 5000)):
        tree = Tree(mtime_ns=0)
        tree.add(b"etc/real/file", File(mode=0o644, content=b"x"))
        tree.add(b"link", Symlink(target=b"/etc/real"))
        for number in range(files):
            tree.add(b"many/%d/file-%d" % (number % 7, number), File(mode=0o644, content=b"x"))
        image = write(tree, tmp_path / name)
        counts.append([len(reads(image, only)) for only in (b"link/file", b"etc", b"none/x")])
        assert len(reads(image)) > files
    assert counts[0] == counts[1]
    assert max(counts[0]) <= 15


def test_symlinks_in_a_loop_end_on_the_way(tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    tree.add(b"a", Symlink(target=b"b/x"))
    tree.add(b"b", Symlink(target=b"/a"))
    tree.add(b"deep", Symlink(target=b"deep/" + b"./" * 2000 + b"deep"))
    image = write(tree, tmp_path / "image")
    for way in (b"a", b"a/x", b"deep", b"deep/deep"):
        start = time.process_time()
        assert read(image, way).tree.get(way, follow=True) is None
        assert time.process_time() - start < 1


def test_damage_on_the_way_is_noticed_and_elsewhere_is_not(image: Path) -> None:
    editor = Editor(image)
    editor.redirect(b"sub", b"directory", ROOT)
    for way in (b"sub/directory", b"sub/directory/sub", b"sub"):
        with pytest.raises(CorruptError, match="/sub/directory: it is a directory and has another"):
            read(image, way)
    assert read(image, b"d").tree.get(b"d")
    editor.put(editor.block_of(b"sub") * BLOCK_SIZE + 30, b"x")
    with pytest.raises(CorruptError, match="/sub: the checksum of its block 0"):
        read(image, b"sub/link")
    assert isinstance(node_at(read(image, b"file"), b"file"), File)


def metadata(path: Path) -> Places:
    """Return the positions and sizes that the reader reads, sorted."""
    return sorted(set(reads(path)))


def reads(path: Path, only: bytes | None = None) -> Places:
    return damage.reads(lambda: read(path, only))


def check_survives(path: Path, pieces: list[tuple[int, bytes]]) -> None:
    """Read a mutated image: the result is a valid tree or an error, within a second."""
    with overwritten(path, pieces):
        start = time.process_time()
        try:
            image = read(path)
        except FledgeError:
            return
        finally:
            assert time.process_time() - start < 1
        size = path.stat().st_size
        for name, node in image.tree.walk():
            assert not {b"", b".", b".."} & set(name.split(b"/")) or not name
            assert node in image.inodes
            if not isinstance(node, File):
                continue
            content = node.content
            if isinstance(content, Span):
                assert 0 <= content.offset <= content.offset + content.size <= size
            elif isinstance(content, Sparse):
                end = 0
                for offset, start_, length in content.extents:
                    assert end <= offset < offset + length <= content.size
                    assert 0 < start_ < start_ + length <= size + BLOCK_SIZE
                    end = offset + length


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_fledges_image(data: st.DataObject, spoiled: tuple[Path, Places]) -> None:
    check_survives(spoiled[0], data.draw(mutations(*spoiled)))


@pytest.fixture(scope="module")
def spoiled(written: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Places]:
    """An image without checksums, so that the reader gets to damaged fields."""
    path = tmp_path_factory.mktemp("spoiled") / "image"
    path.write_bytes(written.read_bytes())
    without_checksums(path)
    return path, metadata(path)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(
    data: st.DataObject, written: Path, checked: tuple[Places, list[Row]]
) -> None:
    """Except in fields that disable checksums, and outside of names and blocks."""
    places, intact = checked
    start, size = data.draw(st.sampled_from(places))
    position = start + data.draw(st.integers(0, size - 1))
    with written.open("rb") as file:
        (byte,) = os.pread(file.fileno(), 1, position)
    with overwritten(written, [(position, bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))]):
        try:
            tree = read(written).tree
        except FledgeError:
            return
        assert describe(tree) == intact


@pytest.fixture(scope="module")
def checked(written: Path) -> tuple[Places, list[Row]]:
    """The positions under a checksum (not targets of symlinks), and the expected rows."""
    target = Editor(written).block_of(b"long") * BLOCK_SIZE
    places = [(start, size) for start, size in metadata(written) if start != target]
    return places, describe(read(written).tree)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder for mke2fs -d."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(300):
        name = folder / "directory" / f"a name that takes its place {number}"
        name.parent.mkdir(exist_ok=True)
        name.write_text(str(number))
    for size in (1, 59, 60, 61, 100, 150, 156, 157, 400, 700, 1024, 5000, 900_000):
        (folder / f"file-{size}").write_bytes(bytes(range(1, 251)) * (size // 250 + 1))
        os.truncate(folder / f"file-{size}", size)
    for size in (1, 59, 60, 61, 150, 1023):
        (folder / f"link-{size}").symlink_to("t" * size)
    for count in range(1, 20):
        (folder / f"few-{count}").mkdir()
        for number in range(count):
            (folder / f"few-{count}" / f"{number:03}").touch(0o640)
    with (folder / "holes").open("wb") as file:
        for number in range(400):
            os.pwrite(file.fileno(), b"data", number * 20_000)
        os.truncate(file.fileno(), 20_000_000)
    os.link(folder / "file-1", folder / "few-1" / "link")
    os.mkfifo(folder / "fifo")
    os.setxattr(folder / "file-1", "user.short", b"1")
    os.setxattr(folder / "file-59", "user.long", b"2" * 600)
    if os.geteuid() == 0:
        os.setxattr(folder / "file-60", "system.posix_acl_access", ACL)
        os.mknod(folder / "old", 0o600 | stat.S_IFCHR, os.makedev(5, 1))
        os.mknod(folder / "new", 0o600 | stat.S_IFBLK, os.makedev(511, 70_000))
    return folder


def mke2fs(path: Path, options: str, *more: str | Path, size: str = "40M") -> Path:
    with path.open("wb") as file:
        os.truncate(file.fileno(), int(size[:-1]) << 20)
    subprocess.run(["mke2fs", "-q", "-F", *options.split(), *more, path], check=True)
    return path


@pytest.mark.real
@pytest.mark.parametrize("size", [60, 61, 100, 5000, 100_000])
def test_inline_data_with_a_hole_at_its_end(tmp_path: Path, size: int) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"x" * 50)
    path = mke2fs(tmp_path / "image", "-t ext4 -O inline_data", "-d", tmp_path / "source")
    subprocess.run(["debugfs", "-w", "-R", f"sif /file size {size}", path], check=True)
    subprocess.run(["e2fsck", "-fn", path], check=True)
    found = read(path).tree.get(b"file")
    assert isinstance(found, File)
    with mounted(path) as folder:
        assert b"".join(read_content(found.content)) == (folder / "file").read_bytes()


def dumpe2fs(path: Path) -> dict[str, str]:
    said = subprocess.run(["dumpe2fs", "-h", path], capture_output=True, text=True, check=True)
    return {
        key: value.strip()
        for key, colon, value in (line.partition(":") for line in said.stdout.splitlines())
        if colon
    }


@pytest.mark.real
@pytest.mark.parametrize(
    "options",
    [
        "-t ext2 -b 1024",
        "-t ext2 -r 0 -b 2048",
        "-t ext2 -O ^filetype,^sparse_super,^resize_inode",
        "-t ext3 -I 128",
        "-t ext3 -b 1024 -O ^dir_index",
        "-t ext4",
        "-t ext4 -b 1024 -O inline_data",
        "-t ext4 -b 1024 -I 1024 -O inline_data,mmp,large_dir",
        "-t ext4 -I 512 -O bigalloc",
        "-t ext4 -O ^extents,^64bit",
        "-t ext4 -b 1024 -g 1024 -O meta_bg,^resize_inode",
        "-t ext4 -b 1024 -g 1024 -O meta_bg,sparse_super2,^resize_inode",
        "-t ext4 -O ea_inode,metadata_csum_seed -b 1024",
        "-t ext4 -O orphan_file,^flex_bg",
        "-t ext4 -O ^metadata_csum,uninit_bg",
        "-t ext4 -O ^metadata_csum,uninit_bg,^64bit",
    ],
)
def test_what_mke2fs_makes_reads_as_the_kernel_does(
    source: Path, tmp_path: Path, options: str
) -> None:
    path = mke2fs(tmp_path / "image", options, "-d", source)
    image = read(path)
    with mounted(path) as folder:
        assert list_tree(image.tree) == list_folder(folder)
    said = dumpe2fs(path)
    assert image.superblock.features == said["Filesystem features"].replace("(none)", "").split()
    assert image.superblock.block_size == int(said["Block size"])


@pytest.mark.real
@pytest.mark.parametrize(
    "options",
    [
        "-t ext4 -b 16384",
        "-t ext4 -b 65536 -O ^has_journal",
        "-t ext2 -b 65536 -I 128",
        "-t ext4 -O casefold,quota,project,verity,stable_inodes",
    ],
)
def test_what_no_kernel_here_can_mount(source: Path, tmp_path: Path, options: str) -> None:
    """mke2fs drops parts of a second, makes a new root, and adds a directory."""
    tree = read(mke2fs(tmp_path / "image", options, "-d", source, size="90M")).tree
    del tree.root.children[b"lost+found"]
    for _, node in tree.walk():
        assert node.mtime_ns % 10**9 == 0
    expected = {
        path: entry._replace(mtime_ns=entry.mtime_ns // 10**9 * 10**9)
        for path, entry in list_folder(source).items()
    }
    assert list_tree(tree) | {b"": expected[b""]} == expected


def workload(folder: Path) -> None:
    """Make and remove files and directories, as a running system does."""
    many, emptied = folder / "many", folder / "emptied"
    many.mkdir()
    emptied.mkdir()
    for number in range(3000):
        (many / f"a fairly long name of a file {number:05}").touch()
        (emptied / f"{number % 1000:0200}").touch()
    for number in range(0, 3000, 3):
        (many / f"a fairly long name of a file {number:05}").unlink()
    for file in emptied.iterdir():
        file.unlink()
    for count in range(1, 30):
        (folder / f"few-{count}").mkdir()
        for number in range(count):
            (folder / f"few-{count}" / f"n{number}").touch()
    for number in range(0, 29, 4):
        (folder / "few-29" / f"n{number}").unlink()
    (folder / "/".join(["deep"] * 200)).mkdir(parents=True)
    for size in (10, 60, 61, 100, 150, 160, 400, 1000, 3_000_000):
        (folder / f"file-{size}").write_bytes(os.urandom(size))
    for size in (59, 60, 61, 110, 900):
        (folder / f"link-{size}").symlink_to("t" * size)
    with (folder / "holes").open("wb") as opened:
        for number in range(700):
            os.pwrite(opened.fileno(), b"data", number * 30_000)
        os.truncate(opened.fileno(), 30_000_000)
    subprocess.run(["fallocate", "-p", "-o60000", "-l90000", folder / "holes"], check=False)
    subprocess.run(["fallocate", "-l2M", folder / "unwritten"], check=False)
    (folder / "unwritten-end").touch()
    subprocess.run(["fallocate", "-n", "-l2M", folder / "unwritten-end"], check=False)
    for name in ("unwritten", "unwritten-end"):
        with (folder / name).open("r+b") as opened:
            os.pwrite(opened.fileno(), b"data", 50_000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(folder / "socket"))
    attributed = folder / "file-10"
    os.setxattr(attributed, "user.long", os.urandom(300))
    os.setxattr(attributed, "trusted.empty", b"")
    os.setxattr(attributed, "system.posix_acl_access", ACL)
    os.setxattr(folder / "deep", "system.posix_acl_default", ACL)
    (folder / "deep" / "inherits").touch()
    for number in range(3):
        (folder / f"shares-{number}").touch()
        os.setxattr(folder / f"shares-{number}", "user.shared", b"s" * 500)
    os.utime(folder / "file-60", ns=(-(10**9) - 1, 2**31 * 10**9 - 1))
    os.chown(folder / "file-61", 70_000, 0xFFFFFFFE)


@contextmanager
def mounted_to_write(image: Path, folder: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount an image")
    folder.mkdir()
    command: list[str | Path] = ["mount", "-o", "loop", image, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "failed to setup loop device" in done.stderr:
        pytest.skip("no loop device")
    assert done.returncode == 0, done.stderr
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.real
@pytest.mark.parametrize(
    "options",
    [
        "-t ext2 -b 1024",
        "-t ext3 -I 128",
        "-t ext4",
        "-t ext4 -b 1024 -O inline_data,ea_inode",
        "-t ext4 -b 1024 -I 512 -O meta_bg,^resize_inode,metadata_csum_seed,orphan_file",
        "-t ext4 -b 2048 -O ^metadata_csum,uninit_bg,ea_inode,inline_data",
        "-t ext4 -O ^extents,^64bit",
    ],
)
def test_what_the_kernel_wrote_reads_as_the_kernel_does(tmp_path: Path, options: str) -> None:
    path = mke2fs(tmp_path / "image", options + " -N 6000", size="64M")
    with mounted_to_write(path, tmp_path / "mount") as folder:
        workload(folder)
        if "ea_inode" in options:
            os.setxattr(folder / "file-60", "user.value", os.urandom(20_000))
            os.setxattr(folder / "file-61", "user.value", os.urandom(65_536))
            os.setxattr(folder / "file-100", "user.same", b"=" * 20_000)
            os.setxattr(folder / "file-150", "user.same", b"=" * 20_000)
    image = read(path)
    assert image.sockets == [b"socket"]
    assert read(path, b"socket").sockets == read(path, b"/").sockets == [b"socket"]
    assert read(path, b"many").sockets == []
    with mounted(path) as folder:
        listing = list_folder(folder)
        del listing[b"socket"]
        assert list_tree(image.tree) == listing
        for name, node in image.tree.walk():
            facts, status = image.inodes[node], (folder / os.fsdecode(name)).lstat()
            assert (facts.number, facts.links) == (status.st_ino, status.st_nlink)
            # The kernel reports blocks for inline data.
            inline = isinstance(node, File) and facts.flags & InodeFlag.INLINE_DATA
            assert facts.blocks == status.st_blocks - (-(-status.st_size // 512) if inline else 0)
            assert facts.atime_ns == status.st_atime_ns
            assert facts.ctime_ns == status.st_ctime_ns
            if isinstance(node, File):
                assert content_size(node.content) == status.st_size
        born = subprocess.check_output(["stat", "--format=%W", folder / "many"])
    assert image.inodes[node_at(image, b"many")].crtime_ns // 10**9 == int(born)


@pytest.mark.real
def test_a_journal_must_be_replayed_first(tmp_path: Path) -> None:
    path = mke2fs(tmp_path / "image", "-t ext4")
    with mounted_to_write(path, tmp_path / "mount") as folder:
        (folder / "file").touch()
        with pytest.raises(FledgeError, match="only in its journal") as caught:
            read(path)
    assert "e2fsck -fp" in caught.value.hint
    assert read(path).tree.get(b"file")


@pytest.fixture(scope="module")
def fragile(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Places]]:
    """Small images without checksums, and the parts that the reader reads."""
    folder = tmp_path_factory.mktemp("fragile")
    paths = [
        mke2fs(folder / str(number), options, "-d", source, size="8M")
        for number, options in enumerate(
            (
                "-t ext2 -b 1024",
                "-t ext2 -b 1024 -I 512 -O inline_data,ea_inode",
                "-t ext4 -b 1024 -O ^has_journal,^metadata_csum,inline_data,meta_bg,^resize_inode",
                "-t ext4 -b 4096 -O ^has_journal,^metadata_csum,^uninit_bg,ea_inode",
            )
        )
    ]
    return [(path, metadata(path)) for path in paths]


@pytest.mark.real
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_what_mke2fs_makes(
    data: st.DataObject, fragile: list[tuple[Path, Places]]
) -> None:
    path, places = data.draw(st.sampled_from(fragile))
    check_survives(path, data.draw(mutations(path, places)))
