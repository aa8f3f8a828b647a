"""Reading images of fledge, mksquashfs and tar2sqfs, and hostile images."""

from __future__ import annotations

import lzma
import os
import random
import socket
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import lz4.block
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.disks.squashfs import structures, volume
from fledge.disks.squashfs.codecs import decompressor
from fledge.disks.squashfs.constants import SUPERBLOCK_SIZE
from fledge.disks.squashfs.format import Squashfs
from fledge.disks.squashfs.metadata import Metadata
from fledge.disks.squashfs.reader import Image, read
from fledge.disks.squashfs.structures import (
    DIRECTORY_ENTRY,
    DIRECTORY_HEADER,
    INODE_HEADER,
    METADATA_HEADER,
    METADATA_PLAIN,
    SUPERBLOCK,
    Codec,
    Superblock,
)
from fledge.errors import CorruptError, FledgeError, MalformedError
from fledge.tree import CharDevice, Directory, File, Node, Symlink, Tree
from fledge.tree.content import read_content
from tests.support.damage import Places, mutations, overwritten, reads
from tests.support.mounted import list_folder, list_image, list_tree
from tests.support.squashed import write
from tests.support.trees import describe

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices and mount")

MIB = 1 << 20


def noise(seed: int, size: int) -> bytes:
    """Return bytes that cannot be compressed, the same every time."""
    return random.Random(seed).randbytes(size)  # noqa: S311


def sample() -> Tree:
    """One inode of every type, basic and extended, and contents of every kind."""
    tree = Tree(mtime_ns=1704067200 * 10**9)
    xattrs = {b"user.a": b"value that is long", b"trusted.b": b""}
    nodes: dict[bytes, Node] = {
        b"file": File(mode=0o4755, uid=70_000, content=noise(1, 9000)),
        b"tail": File(mode=0o644, content=b"tail"),
        b"empty": File(mode=0, content=b"", xattrs=dict(xattrs)),
        b"sparse": File(mode=0o600, content=b"x" + bytes(50_000) + b"y"),
        b"link": Symlink(target=b"sub/directory"),
        b"marked": Symlink(target=b"link", xattrs=dict(xattrs)),
        b"null": CharDevice(mode=0o666, major=1, minor=70_000),
        b"sub/directory/file": File(mode=0o644, content=b"3", xattrs={b"security.x": b"1"}),
        b"sub": Directory(mode=0o755, xattrs={b"user.c": b"value that is long"}),
    }
    for path, node in nodes.items():
        tree.add(path, node)
    tree.add(b"sub/again", nodes[b"file"])
    for number in range(40):
        tree.add(b"d/a name that takes its place %d" % number, nodes[b"tail"])
    return tree


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as an image written by fledge."""
    folder = tmp_path_factory.mktemp("written")
    return write(sample(), folder / "image", Squashfs(compression="gzip", block_size=4))


@pytest.fixture
def image(written: Path, tmp_path: Path) -> Path:
    """A copy of `written` to damage."""
    (tmp_path / "image").write_bytes(written.read_bytes())
    return tmp_path / "image"


def test_what_fledge_writes_it_reads_back(written: Path) -> None:
    image = read(written)
    assert describe(image.tree) == describe(sample())
    node = image.tree.get(b"file")
    assert node
    facts = image.inodes[node]
    assert (facts.size, facts.links) == (9000, 2)
    assert facts.start and facts.start >= SUPERBLOCK_SIZE
    assert facts.fragment
    assert image.sockets == []


def test_data_may_follow_an_image(image: Path) -> None:
    with image.open("ab") as file:
        file.write(noise(2, 5000))
    assert describe(read(image).tree) == describe(sample())


def test_a_path_read_alone(written: Path) -> None:
    whole = dict(read(written).tree.walk())
    for path, expected in {
        b"": set(sample().root.children),
        b"link": {b"link", b"sub", b"sub/directory", b"sub/directory/file"},
        b"marked/file": {b"marked", b"link", b"sub", b"sub/directory", b"sub/directory/file"},
        b"sub/again": {b"sub", b"sub/again"},
        b"d/nothing": {b"d"},
    }.items():
        found = {name: node for name, node in read(written, path).tree.walk() if name}
        assert set(found) == expected
        for name, node in found.items():
            assert (type(node), node.mode, node.uid) == (
                type(whole[name]),
                whole[name].mode,
                whole[name].uid,
            )


# Images of other programs


MAKERS = {
    "usual": ["mksquashfs"],
    "lzma": ["mksquashfs", "-comp", "lzma", "-nopad"],
    "xz": ["mksquashfs", "-comp", "xz", "-Xbcj", "x86", "-b", "64K"],
    "lz4": ["mksquashfs", "-comp", "lz4", "-Xhc"],
    "zstd": ["mksquashfs", "-comp", "zstd", "-always-use-fragments", "-b", "4K"],
    "plain": ["mksquashfs", "-noI", "-noD", "-noF", "-noX", "-noId"],
    "bare": ["mksquashfs", "-no-fragments", "-no-exports", "-no-xattrs"],
    "tar2sqfs": ["tar2sqfs"],
    "tar2sqfs-xz": ["tar2sqfs", "--compressor", "xz", "--exportable", "--no-tail-packing"],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that squashfs can hold, sockets too."""
    folder = tmp_path_factory.mktemp("source") / "source"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "file").write_bytes(noise(3, 300_000))
    (folder / "same").write_bytes(noise(3, 300_000))
    (folder / "small").write_bytes(b"small")
    (folder / "sparse").write_bytes(b"x" + bytes(500_000) + b"y")
    (folder / "empty").touch()
    for number in range(1500):
        (folder / "sub" / f"{number}, a name that takes some space").symlink_to("x" * (number + 1))
    for name, mode, device in (
        ("char", 0o20640, os.makedev(1, 3)),
        ("block", 0o60660, os.makedev(259, 70_000)),
        ("fifo", 0o10622, 0),
    ):
        os.mknod(folder / name, mode, device)
    os.link(folder / "file", folder / "sub" / "linked")
    os.chown(folder / "small", 4_000_000_000, 70_000)
    (folder / "sub" / "deep").chmod(0o1750)
    for name in ("file", "sub", "same"):
        os.setxattr(folder / name, "user.long", b"v" * 300)
        os.setxattr(folder / name, "trusted.short", b"")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (5, 1_600_000_000), follow_symlinks=False)
    return folder


@pytest.mark.real
@as_root
@pytest.mark.parametrize("maker", MAKERS)
def test_images_of_other_programs(maker: str, source: Path, tmp_path: Path) -> None:
    program, *options = MAKERS[maker]
    path = tmp_path / "image"
    if program == "mksquashfs":
        command = [program, str(source), str(path), "-quiet", "-no-progress", *options]
        subprocess.run(command, check=True)
    else:
        tar = ["tar", "-c", "--xattrs", "--xattrs-include=*", "--numeric-owner", "."]
        archive = subprocess.run(tar, cwd=source, capture_output=True, check=True).stdout
        subprocess.run([program, "--quiet", *options, str(path)], input=archive, check=True)
    found = read(path)
    assert found.sockets == ([b"socket"] if program == "mksquashfs" else [])
    ours = list_tree(found.tree)
    if maker == "lzma":  # Linux has no decompressor for it
        assert ours == without_sockets(list_folder(source))
    else:
        assert ours == without_sockets(list_image(path))


def without_sockets(listing: dict[bytes, Any]) -> dict[bytes, Any]:
    return {path: entry for path, entry in listing.items() if path != b"socket"}


@pytest.mark.real
def test_lzo_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    options = ["-quiet", "-no-progress", "-comp", "lzo"]
    subprocess.run(["mksquashfs", tmp_path / "source", tmp_path / "image", *options], check=True)
    with pytest.raises(FledgeError, match="is compressed with lzo, which fledge cannot read"):
        read(tmp_path / "image")


# Damaged and hostile images


def superblock(image: Path) -> Superblock:
    return volume.read_superblock(image)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": 1}, "it is no squashfs"),
        ({"major": 3}, "it has version 3.0"),
        ({"block_size": 1 << 21, "block_log": 21}, "blocks cannot have 2097152 bytes"),
        ({"block_log": 13}, "blocks cannot have 4096 bytes"),
        ({"block_log": 0xFFFF}, "blocks cannot have"),
        ({"compression": 7}, "compressor 7 is not known"),
        ({"bytes_used": 1 << 40}, "of 1099511627776"),
        ({"inode_table": 1 << 60}, "beyond the end"),
        ({"directory_table": 0}, "/: "),
        ({"root_inode": 1 << 50}, "beyond the end"),
        ({"ids": 0}, "number 0 of 0 IDs"),
        ({"xattr_table": structures.NONE}, "of which there is no table"),
        ({"bytes_used": 96}, "beyond the end"),
    ],
)
def test_impossible_superblocks(image: Path, changes: dict[str, int], words: str) -> None:
    changed = superblock(image)._replace(**changes)
    with (
        overwritten(image, [(0, SUPERBLOCK.pack(changed))]),
        pytest.raises(CorruptError) as error,
    ):
        read(image)
    assert words in error.value.message


def test_an_image_that_is_cut_off(image: Path) -> None:
    for size in (1000, 96, 95, 4, 0):
        os.truncate(image, size)
        with pytest.raises(CorruptError, match=r"in its superblock|bytes of"):
            read(image)


class Plain:
    """An image without compression, made by hand: an inode table and a directory table."""

    def __init__(self, inodes: bytes, listings: bytes = b"", *, root: int = 0) -> None:
        self.inodes, self.listings, self.root = inodes, listings, root

    def write(self, path: Path) -> Path:
        def piece(data: bytes) -> bytes:
            return METADATA_HEADER.pack(len(data) | METADATA_PLAIN) + data

        inodes, listings, ids = piece(self.inodes), piece(self.listings), piece(bytes(4))
        listing_table = SUPERBLOCK_SIZE + len(inodes)
        id_piece = listing_table + len(listings)
        id_table = id_piece + len(ids)
        header = Superblock(
            magic=0x73717368,
            inodes=1,
            mkfs_time=0,
            block_size=4096,
            fragments=0,
            compression=1,
            block_log=12,
            flags=0,
            ids=1,
            major=4,
            minor=0,
            root_inode=self.root,
            bytes_used=id_table + 8,
            id_table=id_table,
            xattr_table=structures.NONE,
            inode_table=SUPERBLOCK_SIZE,
            directory_table=listing_table,
            fragment_table=structures.NONE,
            export_table=structures.NONE,
        )
        data = SUPERBLOCK.pack(header) + inodes + listings + ids + struct.pack("<Q", id_piece)
        path.write_bytes(data)
        return path


def inode(kind: int, body: bytes) -> bytes:
    return INODE_HEADER.pack(structures.InodeHeader(kind, 0o755, 0, 0, 0, 1)) + body


def directory(size: int, offset: int = 0) -> bytes:
    body = structures.DirectoryInode(start=0, links=2, size=size + 3, offset=offset, parent=2)
    return inode(1, structures.DIRECTORY_INODE.pack(body))


def listing(*entries: tuple[int, int, bytes], count: int | None = None) -> bytes:
    """A run of entries: the offset of an inode, its type, and a name."""
    number = len(entries) if count is None else count
    parts = [DIRECTORY_HEADER.pack(structures.DirectoryHeader(number - 1, 0, 1))]
    for offset, kind, name in entries:
        entry = structures.DirectoryEntry(offset, 0, kind, len(name) - 1)
        parts += DIRECTORY_ENTRY.pack(entry), name
    return b"".join(parts)


def rooted(entries: bytes, *others: bytes) -> Plain:
    return Plain(directory(len(entries)) + b"".join(others), entries)


def file(size: int, sizes: bytes = b"", *, start: int = 96, fragment: int = 0xFFFFFFFF) -> bytes:
    body = structures.LargeFileInode(start, size, 0, 1, fragment, 0, 0xFFFFFFFF)
    return inode(9, structures.LARGE_FILE_INODE.pack(body) + sizes)


HOSTILE: dict[str, tuple[Plain, str]] = {
    "loop": (rooted(listing((0, 1, b"d"))), "/d: it is a directory and has another name"),
    "names": (rooted(listing((32, 6, b"a"), (32, 6, b"a"))), "/: it has two entries 'a'"),
    "dots": (rooted(listing((32, 6, b".."))), "'..' cannot be a name"),
    "slash": (rooted(listing((32, 6, b"a/b"))), "'a/b' cannot be a name"),
    "long": (rooted(listing((32, 6, b"n" * 256))), "cannot be a name"),
    "run": (rooted(listing((32, 6, b"a"), count=257)), "has 257 entries in one run"),
    "short": (Plain(directory(30), listing((32, 6, b"a"))), "/: byte 0 is beyond|/: "),
    "type": (rooted(listing((32, 2, b"a")), inode(6, bytes(4))), "/a: its type is 6, and 2"),
    "unknown": (
        rooted(listing((32, 2, b"a")), inode(15, bytes(4))),
        "/a: its type 15 is not known",
    ),
    "link": (
        rooted(listing((32, 3, b"a")), inode(3, struct.pack("<II", 1, 1 << 31))),
        "/a: a symlink's target cannot have 2147483648 bytes",
    ),
    "blocks": (rooted(listing((32, 2, b"a")), file(1 << 63)), "/a: names and metadata"),
    "list": (rooted(listing((32, 2, b"a")), file(1 << 24)), "/a: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(name: str, tmp_path: Path) -> None:
    plain, words = HOSTILE[name]
    path = plain.write(tmp_path / "image")
    with pytest.raises(CorruptError) as error:
        read(path)
    assert any(each in error.value.message for each in words.split("|"))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (file(4096, struct.pack("<I", 4097)), "the block at byte 96 has 4097 bytes"),
        (file(4096, struct.pack("<I", 50), start=1 << 60), "beyond the end"),
        (file(5000, struct.pack("<I", 0), fragment=7), "number 7 of 0 fragments"),
        (file(100, struct.pack("<I", 200 | 1 << 24)), "more than 100 bytes"),
        (file(4096, struct.pack("<I", 9)), "cannot be decompressed"),
    ],
)
def test_hostile_contents(node: bytes, words: str, tmp_path: Path) -> None:
    path = rooted(listing((32, 2, b"a")), node, bytes(200)).write(tmp_path / "image")
    found = read(path).tree.get(b"a")
    assert isinstance(found, File)
    with pytest.raises(CorruptError, match="inode 1, /a: ") as error:
        for _ in read_content(found.content):
            pass
    assert words in error.value.message


BOMB = bytes(MIB)
PACKED = {
    Codec.GZIP: zlib.compress(BOMB),
    Codec.XZ: lzma.compress(BOMB, check=lzma.CHECK_CRC32),
    Codec.LZMA: lzma.compress(BOMB, lzma.FORMAT_ALONE),
    Codec.LZ4: lz4.block.compress(BOMB, store_size=False),
    Codec.ZSTD: zstandard.compress(BOMB),
}


@pytest.mark.parametrize("codec", PACKED)
def test_a_block_that_unpacks_to_too_much_or_too_little(codec: Codec) -> None:
    unpack, packed = decompressor(codec), PACKED[codec]
    assert unpack
    assert unpack(packed, len(BOMB)) == BOMB
    for most in (8192, len(BOMB) - 1):
        with pytest.raises(MalformedError):
            unpack(packed, most)
    for size in (0, 5, len(packed) - 1):
        with pytest.raises(MalformedError):
            unpack(packed[:size], len(BOMB))


def test_a_window_that_linux_has_no_memory_for() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=21)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(b"x") + stream.flush()
    unpack = decompressor(Codec.ZSTD)
    assert unpack
    with pytest.raises(MalformedError, match="memory"):
        unpack(packed, 8192)


def test_files_that_name_the_same_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of an image could keep a comparison busy for days."""
    one = file(2 * 4096, struct.pack("<II", 1 << 24 | 4096, 0))
    names = [(32 + number * len(one), 2, b"%d" % number) for number in range(10)]
    path = rooted(listing(*names), *[one] * 10).write(tmp_path / "image")
    assert len(read(path).tree.root.children) == 10
    monkeypatch.setattr(volume, "MAX_DECOMPRESSED_SIZE", 9 * 4096)
    with pytest.raises(CorruptError, match=r"/9: files up to here have more than 36.0 KiB"):
        read(path)


def survives(path: Path, pieces: list[tuple[int, bytes]]) -> None:
    """Read a mutated image: the result is a tree or an error, within a second."""
    with overwritten(path, pieces):
        start = time.process_time()
        try:
            found = read(path)
            check_tree(found)
        except FledgeError:
            return
        finally:
            assert time.process_time() - start < 1


def check_tree(found: Image) -> None:
    for name, node in found.tree.walk():
        assert not {b"", b".", b".."} & set(name.split(b"/")) or not name
        assert node in found.inodes
        if isinstance(node, File) and found.inodes[node].size < MIB:
            size = sum(map(len, read_content(node.content)))
            assert size == found.inodes[node].size


@pytest.fixture(scope="module")
def uncompressed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Places]:
    """The sample with all metadata as it is, so that the reader gets to damaged fields."""
    path = tmp_path_factory.mktemp("plain") / "image"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fledge.disks.squashfs.writer.compressor", lambda codec, level: lambda data: data + b"x"
        )
        write(sample(), path, Squashfs(compression="gzip", block_size=4))
    places = sorted(set(reads(lambda: check_tree(read(path)))))
    return path, [place for place in places if place[1] >= 4]


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_plain_metadata(
    data: st.DataObject, uncompressed: tuple[Path, Places]
) -> None:
    survives(uncompressed[0], data.draw(mutations(*uncompressed)))


@pytest.mark.slow
@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_packed_metadata(data: st.DataObject, written: Path) -> None:
    size = superblock(written).bytes_used
    pieces = data.draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.binary(min_size=1, max_size=3)), min_size=1)
    )
    survives(written, [(place, each[: size - place]) for place, each in pieces])


def test_memory_is_bounded(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.tree.budget.MIN_MEMORY", 20_000)
    with pytest.raises(CorruptError, match=r"/d: names and metadata up to here take more than"):
        read(written)


def test_pieces_of_metadata_are_kept_in_bounds(written: Path) -> None:
    with written.open("rb") as opened:
        metadata = Metadata(opened.fileno(), superblock(written).bytes_used, lambda data, _: data)
        for position in (-1, 1 << 62):
            with pytest.raises(Exception, match="beyond the end"):
                metadata.read(position, 5)
