"""Reading images of fledge and of mkfs.erofs, and hostile images."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import lz4.block
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.disks.erofs import directory, kernel, xattr
from fledge.disks.erofs.compression import (
    HEADER,
    INDEX,
    INDEX_START,
    Advise,
    ClusterType,
    Codec,
    Index,
)
from fledge.disks.erofs.constants import SUPERBLOCK_OFFSET
from fledge.disks.erofs.format import Compression, Erofs
from fledge.disks.erofs.reader import Image, read
from fledge.disks.erofs.structures import (
    BLOCK_SIZE,
    HOLE,
    INODE,
    SLOT_SIZE,
    SUPERBLOCK,
    Compat,
    Incompat,
    Inode,
    checked_superblock,
)
from fledge.disks.erofs.unpack import lz4_start
from fledge.disks.erofs.volume import read_superblock
from fledge.errors import CorruptError, FledgeError, MalformedError
from fledge.formats import artifact_requirements, open_artifact
from fledge.tree import Device, Directory, File, Node, Symlink, Tree
from fledge.tree.content import (
    READ_SIZE,
    DataExtent,
    Packed,
    Span,
    Sparse,
    content_size,
    read_content,
    read_range,
)
from tests.support import daemons, damage
from tests.support.damage import Places, mutations, overwritten
from tests.support.disks import write
from tests.support.mounted import list_folder, list_tree, mounted
from tests.support.samples import ACL
from tests.support.trees import describe

TEXT = b"".join(b"line %d of a text\n" % number for number in range(6000))
NOISE = Random(1).randbytes(20_000)  # noqa: S311 -- data that does not compress
COMPRESSIONS: tuple[Compression, ...] = ("none", "lz4", "zstd")


def sample(folder: Path) -> Tree:
    """One node of every type and layout, and shared attributes."""
    (folder / "data").write_bytes(TEXT[:20_000])
    extents = DataExtent(8192, 0, 4096), DataExtent(40_960, 4096, 8192)
    shared = {b"user.shared": b"s" * 100, b"security.more": b"m"}
    nodes: dict[bytes, Node] = {
        b"file": File(mode=0o4755, uid=70_000, content=TEXT[:9000], xattrs=dict(shared)),
        b"small": File(mode=0o644, content=b"small", xattrs=dict(shared)),
        b"own": File(mode=0o644, content=b"", xattrs={b"system.posix_acl_access": ACL}),
        b"text": File(mode=0o644, content=TEXT),
        b"noise": File(mode=0o644, content=NOISE + TEXT[:60_000]),
        b"holes": File(mode=0o644, content=Sparse(60_000, folder / "data", extents)),
        b"link": Symlink(target=b"sub/directory"),
        b"sub/directory/file": File(mode=0o644, content=b"3"),
    }
    tree = Tree(mtime_ns=10**18)
    for path, node in nodes.items():
        tree.add(path, node)
    tree.add(b"sub/hard", nodes[b"text"])
    for number in range(150):
        tree.add(b"d/a name that takes its place %d" % number, nodes[b"own"])
    return tree


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Compression, Path]:
    """The sample as images of fledge, without the checksum of the superblock."""
    folder = tmp_path_factory.mktemp("written")
    paths = {compression: folder / compression for compression in COMPRESSIONS}
    for compression, path in paths.items():
        write(sample(folder), path, Erofs(compression))
        Editor(path).superblock(feature_compat=Compat.MTIME)
    return paths


@pytest.fixture
def image(written: dict[Compression, Path], tmp_path: Path) -> Path:
    """An uncompressed image to damage."""
    (tmp_path / "image").write_bytes(written["none"].read_bytes())
    return tmp_path / "image"


@pytest.fixture
def packed(written: dict[Compression, Path], tmp_path: Path) -> Path:
    """An image with LZ4 to damage."""
    (tmp_path / "packed").write_bytes(written["lz4"].read_bytes())
    return tmp_path / "packed"


class Editor:
    """Changes fields of an image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image = read(path)

    def peek(self, position: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), size, position)

    def put(self, position: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, position)

    def superblock(self, **changes: Any) -> None:
        self.put(SUPERBLOCK_OFFSET, SUPERBLOCK.pack(self.image.superblock._replace(**changes)))

    def node(self, path: bytes) -> Node:
        node = self.image.tree.get(path)
        assert node
        return node

    def nid(self, path: bytes) -> int:
        return self.image.inodes[self.node(path)].number

    def position(self, path: bytes) -> int:
        return self.nid(path) * SLOT_SIZE

    def get(self, path: bytes) -> Inode:
        return INODE.unpack_from(self.peek(self.position(path), INODE.size))

    def behind(self, path: bytes) -> int:
        """The position of what is behind an inode and its attributes."""
        size = xattr.body_size(self.get(path).xattr_count)
        return self.position(path) + INODE.size + size

    def inode(self, path: bytes, **changes: Any) -> None:
        self.put(self.position(path), INODE.pack(self.get(path)._replace(**changes)))

    def entries(self, path: bytes, change: Callable[[bytes], bytes]) -> None:
        """Change the end of a directory, which is behind its inode."""
        size = self.get(path).size % BLOCK_SIZE
        data = change(self.peek(self.behind(path), size))
        assert len(data) == size
        self.put(self.behind(path), data)

    def redirect(self, path: bytes, name: bytes, nid: int) -> None:
        """Let an entry name another inode."""
        index = sorted({b".", b"..", *getattr(self.node(path), "children")}).index(name)  # noqa: B009

        def change(data: bytes) -> bytes:
            start = index * directory.ENTRY.size
            return data[:start] + nid.to_bytes(8, "little") + data[start + 8 :]

        self.entries(path, change)


def read_all(path: Path) -> Image:
    """Read an image and all contents in it."""
    image = read(path)
    for _, node in image.tree.walk():
        if isinstance(node, File) and isinstance(node.content, Packed):
            assert sum(map(len, read_content(node.content))) == node.content.size
    return image


def refused(path: Path, match: str) -> None:
    """Read the image, which must fail quickly."""
    start = time.process_time()
    with pytest.raises(CorruptError, match=match):
        read_all(path)
    assert time.process_time() - start < 1


def test_contents_stay_in_the_image(written: dict[Compression, Path]) -> None:
    path = written["none"]
    tree = read(path).tree
    contents = {path: node.content for path, node in tree.walk() if isinstance(node, File)}
    assert contents[b"own"] == b""
    for name in (b"small", b"file", b"text", b"holes"):
        content = contents[name]
        assert isinstance(content, Span | Sparse)
        assert content.path == path
    assert isinstance(contents[b"small"], Span)
    assert isinstance(contents[b"holes"], Sparse)
    assert len(contents[b"holes"].extents) == 2
    compressed = read(written["lz4"]).tree.get(b"text")
    assert isinstance(compressed, File)
    assert isinstance(compressed.content, Packed)
    assert compressed.content.path == written["lz4"]


def test_facts(written: dict[Compression, Path]) -> None:
    with open_artifact(written["none"]) as opened:
        contents, tree = opened.contents, opened.tree
        file = tree.get(b"sub/hard")
        assert file
        status = contents.stat(file)
        assert (status.links, status.size) == (2, len(TEXT))
        assert contents.stat(tree.root).inode == BLOCK_SIZE // SLOT_SIZE
        assert contents.facts()["features"] == ["mtime", "chunked_file"]
        assert contents.facts()["superblock inodes"] == len({node for _, node in tree.walk()})
        assert contents.describe()["filesystem"]["compressed_files"] == 0
        assert contents.describe_node(file) == {"layout": "flat-inline"}
        assert dict(contents.summary())["features"] == "mtime chunked_file"
        assert all(contents.node_facts(node)["extended"] for _, node in tree.walk())
        assert (contents.order(), contents.uncompressed(), contents.sockets) == ((), (), [])
    with open_artifact(written["zstd"]) as opened:
        text = opened.tree.get(b"text")
        assert text
        assert opened.contents.describe_node(text) == {"layout": "compressed-full"}
        assert opened.contents.node_facts(text)["place of content"] is None


def test_only_what_is_asked_for_is_read(written: dict[Compression, Path]) -> None:
    for only, paths in (
        (b"text", {b"text"}),
        (b"link/file", {b"link", b"sub", b"sub/directory", b"sub/directory/file"}),
        (b"sub", {b"sub", b"sub/directory", b"sub/hard"}),
        (b"nothing/here", set[bytes]()),
    ):
        with open_artifact(written["lz4"], only) as opened:
            assert {path for path, _ in opened.tree.walk() if path} == paths
            for _, node in opened.tree.walk():
                assert opened.contents.stat(node).links


def test_parts_of_compressed_contents(written: dict[Compression, Path], tmp_path: Path) -> None:
    expected = sample(tmp_path).get(b"noise")
    assert isinstance(expected, File)
    assert isinstance(expected.content, bytes)
    for compression in ("lz4", "zstd"):
        found = read(written[compression]).tree.get(b"noise")
        assert isinstance(found, File)
        for offset in (0, 1, 19_999, 40_000, len(expected.content) - 1, len(expected.content)):
            for size in (0, 1, 5000, READ_SIZE):
                part = expected.content[offset : offset + size]
                assert read_range(found.content, offset, size) == part


def test_other_data_may_follow(image: Path) -> None:
    """Such as the hash tree of dm-verity."""
    expected = describe(read(image).tree)
    with image.open("ab") as file:
        file.write(NOISE)
    assert describe(read(image).tree) == expected


def test_what_is_no_filesystem_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "zeros").write_bytes(bytes(4096))
    for name in ("short", "zeros"):
        with pytest.raises(CorruptError, match=f"{name} is not an erofs filesystem"):
            read(tmp_path / name)
        with pytest.raises(CorruptError, match=f"{name} is not an erofs filesystem"):
            read_superblock(tmp_path / name)
    for reader in (read, read_superblock):
        with pytest.raises(FledgeError, match="missing could not be read: no such file"):
            reader(tmp_path / "missing")


def test_an_image_that_is_cut_off(image: Path) -> None:
    size = image.stat().st_size
    os.truncate(image, size - 1)
    refused(image, f"has {size - 1} bytes, and its filesystem {size}")


def test_the_checksum_covers_the_first_block(image: Path) -> None:
    editor = Editor(image)
    editor.superblock(feature_compat=Compat.SB_CHKSUM | Compat.MTIME)
    editor.put(0, checked_superblock(editor.peek(0, BLOCK_SIZE)))
    read(image)
    for position in (SUPERBLOCK_OFFSET + 4, SUPERBLOCK_OFFSET + 60, BLOCK_SIZE - 1):
        with overwritten(image, [(position, b"\x99")]):
            refused(image, "the checksum of its superblock is wrong")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"feature_incompat": Incompat.FRAGMENTS | Incompat.METABOX}, "fragments, metabox"),
        ({"feature_incompat": 1 << 30}, "incompat 0x40000000"),
        ({"feature_incompat": Incompat.COMPR_CFGS, "codecs": 0b110}, "lzma, deflate"),
        ({"feature_incompat": Incompat.COMPR_CFGS, "codecs": 1 << 9}, "codec 0x200"),
        ({"extra_devices": 1}, "device_table"),
    ],
)
def test_features_that_cannot_be_read_are_named(
    image: Path, changes: dict[str, int], match: str
) -> None:
    Editor(image).superblock(**changes)
    with pytest.raises(FledgeError, match=f"features that fledge cannot read: {match}") as caught:
        read(image)
    assert not isinstance(caught.value, CorruptError)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"block_bits": 8}, "the size of its blocks is impossible"),
        ({"block_bits": 17}, "the size of its blocks is impossible"),
        ({"block_bits": 13}, "cut off"),
        ({"directory_block_bits": 1}, "directory blocks is impossible"),
        ({"blocks": 0xFFFFFFFF}, "cut off"),
        ({"blocks": 1}, "nid 128, /: it reaches beyond the end"),
        ({"meta_blkaddr": 0xFFFFFFFF}, "nid 128, /: it reaches beyond the end"),
        ({"root_nid": 0}, "nid 0, /: its type 0o0 is not known"),
        ({"root_nid": 0xFFFF}, "nid 65535, /: it reaches beyond the end"),
        ({"xattr_blkaddr": 0xFFFFFFFF}, "/(file|small): it reaches beyond the end"),
    ],
)
def test_impossible_superblocks(image: Path, changes: dict[str, int], match: str) -> None:
    Editor(image).superblock(**changes)
    refused(image, match)


@pytest.mark.parametrize(
    ("path", "changes", "match"),
    [
        (b"small", {"format": 0x10}, "/small: its format 0x10 is not known"),
        (b"small", {"format": 1 | 5 << 1}, "/small: its format 0xb is not known"),
        (b"small", {"mode": 0o070644}, "/small: its type 0o70000 is not known"),
        (b"small", {"size": 1 << 63}, "/small: its size or time is impossible"),
        (b"small", {"mtime_nsec": 10**9}, "/small: its size or time is impossible"),
        (b"small", {"size": 4095}, "/small: the end of its content crosses blocks"),
        (b"small", {"size": 1 << 40}, "/small: it reaches beyond the end|crosses blocks"),
        (b"small", {"xattr_count": 0xFFFF}, "/small: it reaches beyond the end"),
        (b"noise", {"union": 0xFFFFFFF0}, "/noise: it reaches beyond the end"),
        (b"link", {"size": 0}, "/link: a symlink's target cannot have 0 bytes"),
        (b"link", {"size": 4096}, "/link: a symlink's target cannot have 4096 bytes"),
        (b"link", {"format": 1 | 1 << 1}, "/link: only files can be compressed"),
        (b"sub", {"format": 1 | 3 << 1}, "/sub: only files can be compressed"),
        (b"sub", {"size": 0}, "None"),
        (b"holes", {"union": 0x40}, "/holes: the format of its chunks is not known"),
        (b"holes", {"size": 1 << 60}, "/holes: it reaches beyond the end"),
    ],
)
def test_impossible_inodes(image: Path, path: bytes, changes: dict[str, int], match: str) -> None:
    Editor(image).inode(path, **changes)
    if match == "None":
        assert read(image).tree.get(path + b"/directory") is None
    else:
        refused(image, match)


def test_a_chunk_on_another_device(image: Path) -> None:
    editor = Editor(image)
    editor.inode(b"holes", union=0x20 | 2, size=20_000)
    editor.put(editor.behind(b"holes"), (HOLE << 32 | 5 << 16).to_bytes(8, "little"))
    editor.put(editor.behind(b"holes") + 8, (1 << 32 | 5 << 16).to_bytes(8, "little"))
    refused(image, "/holes: its data is on another device")
    editor.put(editor.behind(b"holes") + 8, (1 << 32).to_bytes(8, "little"))
    holes = read(image).tree.get(b"holes")
    assert isinstance(holes, File)
    assert isinstance(holes.content, Sparse)
    assert holes.content.extents == (DataExtent(16384, BLOCK_SIZE, 20_000 - 16384),)


def test_a_directory_with_two_names(image: Path) -> None:
    editor = Editor(image)
    editor.redirect(b"sub", b"hard", editor.nid(b"d"))
    refused(image, "it is a directory and has another name")


@pytest.mark.parametrize("ancestor", [b"", b"sub"])
def test_directories_in_a_loop(image: Path, ancestor: bytes) -> None:
    editor = Editor(image)
    editor.redirect(b"sub", b"directory", editor.nid(ancestor))
    refused(image, "it is a directory and has another name")


@pytest.mark.parametrize(
    ("name", "nid", "match"),
    [
        (b".", 129, "/sub: its . is nid 129"),
        (b"..", 1, "/sub: its .. is nid 1, not 128"),
        (b"hard", 1 << 63, "/sub/hard: it reaches beyond the end"),
        (b"hard", 0, "/sub/hard: its type"),
    ],
)
def test_entries_that_name_the_wrong_inode(image: Path, name: bytes, nid: int, match: str) -> None:
    Editor(image).redirect(b"sub", name, nid)
    refused(image, match)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"hard", b"ha/d", "a name in it is malformed"),
        (b"hard", b"ha\0d", "None"),
        (b"directory", b"\0irectory", "a name in it is malformed"),
        (b"directory", b"zirectory", "its name hard is out of order"),
        (b"directory", b"..rectory", "None"),
    ],
)
def test_names(image: Path, old: bytes, new: bytes, match: str) -> None:
    Editor(image).entries(b"sub", lambda data: data.replace(old, new))
    if match == "None":
        assert read(image).tree.get(b"sub/" + new.partition(b"\0")[0])
    else:
        refused(image, f"/sub: {match}")


@pytest.mark.parametrize("offset", [0, 11, 12, 13, 24, 47, 4096, 0xFFFF])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_offsets_of_names(image: Path, offset: int, index: int) -> None:
    editor = Editor(image)

    def change(data: bytes) -> bytes:
        start = index * directory.ENTRY.size + 8
        return data[:start] + offset.to_bytes(2, "little") + data[start + 2 :]

    editor.entries(b"sub", change)
    with pytest.raises(CorruptError, match=r"/sub: |/sub/"):
        read(image)


def test_names_longer_than_linux_takes(tmp_path: Path) -> None:
    entries = directory.pack([(b"n" * 255, 1, 1), (b".", 1, 2), (b"..", 1, 2)])
    assert len(list(directory.unpack(entries))) == 3
    with pytest.raises(MalformedError, match="a name in it is malformed"):
        list(directory.unpack(entries + b"n"))


@pytest.mark.parametrize(
    ("offset", "data", "match"),
    [
        (4, b"\xff", "its extended attributes are malformed"),
        (4, b"\x01", "its extended attributes are malformed|impossible name"),
        (12, b"\xff\xff\xff\xff", "it reaches beyond the end"),
        (12, b"\x1a\0\0\0", "two extended attributes security.more|None"),
    ],
)
def test_references_to_shared_attributes(image: Path, offset: int, data: bytes, match: str) -> None:
    editor = Editor(image)
    editor.put(editor.position(b"file") + INODE.size + offset, data)
    try:
        read(image)
    except CorruptError as error:
        assert "/file: " in error.message
    else:
        assert match.endswith("None")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (b"\0\1\0\0" + bytes(40), "an extended attribute has an impossible name"),
        (b"\1\2\0\0x" + bytes(40), "an extended attribute has an impossible name"),
        (b"\2\1\0\0x\0" + bytes(40), "an extended attribute has an impossible name"),
        (b"\xff\1\0\0" + bytes(40), "its extended attributes are malformed"),
        (b"\1\1\xff\xff" + bytes(40), "its extended attributes are malformed"),
        (b"\1\1\0\0x\0\0\0" * 2 + bytes(36), "it has two extended attributes user.x"),
    ],
)
def test_entries_of_attributes(image: Path, entry: bytes, match: str) -> None:
    editor = Editor(image)
    editor.put(editor.position(b"own") + INODE.size + xattr.HEADER.size, entry[:44])
    refused(image, match)


def test_an_attribute_that_no_kernel_shows(image: Path) -> None:
    editor = Editor(image)
    editor.put(editor.position(b"own") + INODE.size + xattr.HEADER.size + 1, b"\5")
    own = read(image).tree.get(b"own")
    assert own
    assert own.xattrs == {}


def test_many_inodes_of_the_same_metadata(image: Path) -> None:
    """Reading it again and again would take time without bound."""
    editor = Editor(image)
    size = image.stat().st_size
    for number in range(150):
        # Each is a directory as large as the filesystem, at its own place in the last blocks.
        name = b"a name that takes its place %d" % number
        assert editor.node(b"d/" + name)
    inode = editor.get(b"holes")
    chunked = inode._replace(size=(size // 8) * BLOCK_SIZE, union=0)
    end = size - 4 * BLOCK_SIZE
    for number in range(100):
        editor.put(end + number * INODE.size, INODE.pack(chunked))
    first = sorted({b".", b"..", *getattr(editor.node(b"d"), "children")})  # noqa: B009
    block = editor.peek(editor.get(b"d").union * BLOCK_SIZE, BLOCK_SIZE)
    for index, _ in enumerate(directory.unpack(block)):
        if first[index] not in (b".", b".."):
            start = index * directory.ENTRY.size
            nid = (end + index * INODE.size) // SLOT_SIZE
            block = block[:start] + nid.to_bytes(8, "little") + block[start + 8 :]
    editor.put(editor.get(b"d").union * BLOCK_SIZE, block)
    refused(image, "its metadata overlaps|it reaches beyond the end")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"cluster_bits": 0x80}, "it has a fragment"),
        ({"cluster_bits": 0x08}, "it has a fragment"),
        ({"advise": Advise.BIG_PCLUSTER_1 | Advise.FRAGMENT_PCLUSTER}, "it has a fragment"),
        ({"advise": Advise.INTERLACED_PCLUSTER}, "it has interlaced data"),
        ({"advise": 0}, "its indexes are malformed"),
        ({"codecs": 1}, "it is compressed by codec 1,"),
        ({"codecs": 15}, "it is compressed by codec 15,"),
        ({"codecs": int(Codec.ZSTD)}, "cannot be decompressed"),
        ({"cluster_bits": 1}, "bytes of it are where"),
        ({"advise": Advise.BIG_PCLUSTER_1 | Advise.INLINE_PCLUSTER, "tail_size": 4096}, "crosses"),
        (
            {"advise": Advise.BIG_PCLUSTER_1 | Advise.INLINE_PCLUSTER, "tail_size": 9},
            "cannot be decompressed",
        ),
    ],
)
def test_headers_of_compressed_files(packed: Path, header: dict[str, int], match: str) -> None:
    editor = Editor(packed)
    position = editor.behind(b"text")
    before = HEADER.unpack_from(editor.peek(position, HEADER.size))
    editor.put(position, HEADER.pack(before._replace(**header)))
    refused(packed, f"/text: .*{match}")


@pytest.mark.parametrize(
    ("number", "index", "match"),
    [
        (0, (ClusterType.NONHEAD, 0, 0), "its indexes are malformed"),
        (0, (ClusterType.HEAD, 1, 30), "its indexes are malformed"),
        (0, (ClusterType.HEAD, 0, 0xFFFFFFFF), "it reaches beyond the end"),
        (0, (ClusterType.HEAD, 0, 0), "cannot be decompressed"),
        (0, (ClusterType.PLAIN, 0, 30), "its indexes are malformed"),
        (0, (0x8001, 0, 30), "it shares data"),
        (0, (ClusterType.HEAD2, 0, 30), "its indexes are malformed"),
        (1, (ClusterType.NONHEAD, 0, 0xFFFF), "one of its extents is too large"),
        (1, (ClusterType.NONHEAD, 0, 1), "cannot be decompressed"),
        (2, (ClusterType.NONHEAD, 0, 0x801), "its indexes are malformed"),
        (2, (ClusterType.HEAD, 4096, 30), "its indexes are malformed"),
        (5, (ClusterType.HEAD, 0, 30), "cannot be decompressed|bytes of it are where"),
        (16, (ClusterType.NONHEAD, 0, 5), "its indexes are malformed"),
    ],
)
def test_indexes(packed: Path, number: int, index: tuple[int, int, int], match: str) -> None:
    editor = Editor(packed)
    position = editor.behind(b"text") + INDEX_START + number * INDEX.size
    editor.put(position, INDEX.pack(Index(*index)))
    refused(packed, f"/text: .*({match})")


def test_a_compressed_file_that_claims_to_be_huge(packed: Path) -> None:
    editor = Editor(packed)
    for size in (1 << 20, 1 << 40, 1 << 62):
        editor.inode(b"text", size=size)
        refused(packed, "/text: ")


def test_damaged_data(packed: Path) -> None:
    editor = Editor(packed)
    position = editor.behind(b"text") + INDEX_START
    block = INDEX.unpack_from(editor.peek(position, 8)).block
    for data in (bytes(BLOCK_SIZE), b"\xff" * BLOCK_SIZE):
        editor.put(block * BLOCK_SIZE, data)
        refused(packed, "/text: it cannot be decompressed")


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"abc", b"a" * 300, NOISE[:20], NOISE[:700]]), min_size=1),
    cut=st.floats(0, 1),
    junk=st.binary(max_size=9),
)
def test_lz4_blocks_that_go_on(data: list[bytes], cut: float, junk: bytes) -> None:
    content = b"".join(data)
    size = max(1, int(len(content) * cut))
    block = lz4.block.compress(content, store_size=False)
    start, most = lz4_start(block + junk, size)
    assert lz4.block.decompress(start, most)[:size] == content[:size]
    with pytest.raises(MalformedError, match="its LZ4 data"):
        lz4_start(block, len(content) + 1)


def test_lz4_data_of_hostile_length() -> None:
    with pytest.raises(MalformedError, match="its LZ4 data is too short or too long"):
        lz4_start(b"\x1fa\1\0" + b"\xff" * (1 << 17) + b"\0", 100)


def check_survives(path: Path, pieces: list[tuple[int, bytes]]) -> None:
    """Read a mutated image: the result is a valid tree or an error, within a second or two."""
    with overwritten(path, pieces):
        start = time.process_time()
        try:
            image = read_all(path)
        except FledgeError:
            return
        finally:
            assert time.process_time() - start < 2
        check_contents(image, path)


def check_contents(image: Image, path: Path) -> None:
    image_size = path.stat().st_size
    for name, node in image.tree.walk():
        assert not {b"", b".", b".."} & set(name.split(b"/")) or not name
        assert node in image.inodes
        if not isinstance(node, File):
            continue
        content = node.content
        assert content_size(content) == image.inodes[node].size
        if isinstance(content, Span):
            assert 0 <= content.offset <= content.offset + content.size <= image_size
        elif isinstance(content, Sparse):
            end = 0
            for offset, start, length in content.extents:
                assert end <= offset < offset + length <= content.size
                assert 0 <= start < start + length <= image_size
                end = offset + length


@pytest.mark.slow
@settings(max_examples=1200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_fledges_images(
    data: st.DataObject, fragile: list[tuple[Path, Places]]
) -> None:
    path, places = data.draw(st.sampled_from(fragile))
    check_survives(path, data.draw(mutations(path, places)))


@pytest.fixture(scope="module")
def fragile(
    written: dict[Compression, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, Places]]:
    """Images without a checksum, and the parts that the reader reads."""
    return [(path, metadata(path)) for path in written.values()]


def metadata(path: Path) -> Places:
    """Return the parts that the reader reads; of long ones, the beginning counts."""
    places = damage.reads(lambda: read_all(path))
    return sorted({(SUPERBLOCK_OFFSET, 128), *(place for place in places if place[1] < 60_000)})


def populate(folder: Path) -> None:
    """Fill a folder for mkfs.erofs."""
    for size in (0, 1, 100, 4000, 4096, 4097, 8192, 30_000, 65_536, 300_000):
        (folder / f"text-{size}").write_bytes((TEXT * 3)[:size])
        (folder / f"noise-{size}").write_bytes((NOISE * 15)[:size])
        (folder / f"mixed-{size}").write_bytes(((NOISE[:5000] + TEXT[:9000]) * 22)[:size])
        (folder / f"zeros-{size}").write_bytes(bytes(size))
    for count in (1, 300):
        (folder / f"of-{count}").mkdir()
        for number in range(count):
            (folder / f"of-{count}" / f"a name that takes its place {number}").touch(0o640)
    for size in (1, 60, 4000):
        (folder / f"link-{size}").symlink_to(("t/" * size)[:size])
    with (folder / "holes").open("wb") as file:
        os.pwrite(file.fileno(), b"data", 100_000)
        os.truncate(file.fileno(), 1_000_000)
    os.link(folder / "text-100", folder / "of-1" / "hard")
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "old", 0o600 | stat.S_IFCHR, os.makedev(5, 1))
    os.mknod(folder / "new", 0o600 | stat.S_IFBLK, os.makedev(511, 70_000))
    for number in range(5):
        os.setxattr(folder / f"of-300/a name that takes its place {number}", "user.s", b"s" * 999)
    os.setxattr(folder / "text-100", "user.own", b"o" * 3000)
    os.setxattr(folder / "of-1", "trusted.empty", b"")
    os.setxattr(folder / "text-4000", "system.posix_acl_access", ACL)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    daemons.need("mkfs.erofs")
    if os.geteuid() != 0:
        pytest.skip("only root can make devices")
    folder = tmp_path_factory.mktemp("source")
    populate(folder)
    return folder


def mkfs(path: Path, options: str, source: Path) -> Path:
    command: list[str | Path] = ["mkfs.erofs", "--quiet", *options.split(), path, source]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.real
@pytest.mark.parametrize(
    "options",
    [
        "",
        "-zlz4",
        "-zlz4hc,12 -C65536",
        "-zlz4 -C16384 -Eztailpacking",
        "-zlz4hc -Eztailpacking",
        "-zlz4 -Elegacy-compress",
        "-zlz4 -Elegacy-compress,ztailpacking",
        "-zlz4 -Elegacy-compress -C65536",
        "-zlz4 --max-extent-bytes=16384",
        "-T1000 -Eforce-inode-compact",
        "-Eforce-inode-extended",
        "--chunksize=4096",
        "--chunksize=16384 -Eforce-chunk-indexes",
        "-Enoinline_data -x1",
        "-x-1 --all-root",
    ],
)
def test_what_mkfs_makes_reads_as_the_kernel_does(
    options: str, source: Path, tmp_path: Path
) -> None:
    path = mkfs(tmp_path / "image", options, source)
    image = read(path)
    with mounted(path) as folder:
        assert list_tree(image.tree) == list_folder(folder)
        for name, node in image.tree.walk():
            facts, status = image.inodes[node], (folder / os.fsdecode(name)).lstat()
            assert (facts.number, facts.links) == (status.st_ino, status.st_nlink)
            assert facts.size == status.st_size or isinstance(node, Device)


@pytest.mark.real
def test_a_socket(tmp_path: Path) -> None:
    daemons.need("mkfs.erofs")
    (tmp_path / "source").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "source" / "socket"))
    image = read(mkfs(tmp_path / "image", "", tmp_path / "source"))
    assert image.sockets == [b"socket"]
    assert image.tree.root.children == {}


@pytest.mark.real
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_what_mkfs_makes(
    data: st.DataObject, foreign: list[tuple[Path, Places]]
) -> None:
    path, places = data.draw(st.sampled_from(foreign))
    check_survives(path, data.draw(mutations(path, places)))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Places]]:
    """Small images of mkfs.erofs without a checksum, and the parts that the reader reads."""
    daemons.need("mkfs.erofs")
    folder = tmp_path_factory.mktemp("foreign")
    source = folder / "source"
    source.mkdir()
    for size in (100, 30_000, 100_000):
        (source / f"text-{size}").write_bytes(TEXT[:size])
        (source / f"mixed-{size}").write_bytes((NOISE[:5000] + TEXT)[:size])
    paths = []
    for number, options in enumerate(
        (
            "-T1000 -Eforce-inode-compact",
            "-zlz4",
            "-zlz4 -C16384 -Eztailpacking",
            "-zlz4 -Elegacy-compress",
            "--chunksize=4096 -Eforce-chunk-indexes",
        )
    ):
        path = mkfs(folder / f"image-{number}", options, source)
        Editor(path).superblock(feature_compat=0)
        paths.append((path, metadata(path)))
    return paths


def test_what_an_image_needs_of_a_kernel(written: dict[Compression, Path]) -> None:
    needed = {
        compression: {each.purpose: (each.options, each.since) for each in found}
        for compression, path in written.items()
        for found in [artifact_requirements(path)]
    }
    for found in needed.values():
        assert found["erofs filesystem"] == (("EROFS_FS",), (5, 4))
        assert found["erofs chunked_file"] == ((), (5, 15))
        assert found["file capabilities"] == (("EROFS_FS_SECURITY",), None)
        assert "overlayfs" in found
    assert "lz4 in erofs" not in needed["none"]
    assert needed["lz4"]["lz4 in erofs"] == (("EROFS_FS_ZIP",), (5, 4))
    assert needed["lz4"]["erofs compr_cfgs"] == ((), (5, 13))
    assert needed["zstd"]["zstd in erofs"] == (("EROFS_FS_ZIP_ZSTD",), (6, 10))


def test_what_a_format_needs_of_a_kernel() -> None:
    since = {
        compression: {each.purpose: each.since for each in Erofs(compression).requirements()}
        for compression in COMPRESSIONS
    }
    assert since["none"]["sparse files in erofs"] == (5, 15)
    assert not {"lz4 in erofs", "zstd in erofs"} & since["none"].keys()
    assert since["lz4"]["lz4 in erofs"] == (5, 13)
    assert since["zstd"]["zstd in erofs"] == (6, 10)


def test_an_old_image_with_lz4(image: Path) -> None:
    superblock = read_superblock(image)._replace(feature_incompat=Incompat.ZERO_PADDING)
    purposes = {each.purpose: each.since for each in kernel.read(superblock)}
    assert purposes["lz4 in erofs"] == (5, 4)
    assert not any(purpose.startswith("erofs zero") for purpose in purposes)


def test_contents_are_what_was_written(written: dict[Compression, Path], tmp_path: Path) -> None:
    expected = describe(sample(tmp_path))
    for path in written.values():
        tree = read(path).tree
        assert describe(tree) == expected
        directory_ = tree.get(b"sub")
        assert isinstance(directory_, Directory)
        text = directory_.children[b"hard"]
        assert isinstance(text, File)
        assert b"".join(read_content(text.content)) == TEXT
