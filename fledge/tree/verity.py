r"""The hash tree of dm-verity, by which a kernel checks each block of a disk that it reads.

The data, a superblock and the tree follow each other, in blocks of 4096 bytes. The tree may also be
in a file of its own, which then begins with the superblock::

    0                    data
    data_blocks          superblock   512 bytes, and zeros
    data_blocks + 1      level N      one block with the digests of the blocks of level N - 1
                         ...
                         level 1      the digests of the blocks of level 0
                         level 0      the digests of the data blocks, 128 in a block

A digest is SHA-256 of the salt and the block. The root hash is that of the top block, or, if there
is only one block of data, of that block. Zeros fill the last block of each level.

Superblock, all numbers in little endian::

    0x00  signature "verity\0\0"          0x40  data_block_size
    0x08  version                          0x44  hash_block_size
    0x0C  hash_type                        0x48  data_blocks
    0x10  uuid                             0x50  salt_size
    0x20  algorithm                        0x58  salt

See Documentation/admin-guide/device-mapper/verity.rst of Linux, and "DMVerity" in cryptsetup's wiki
(gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity) for the superblock.
"""

from __future__ import annotations

import errno
import os
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator
from hashlib import sha256
from operator import attrgetter
from typing import Annotated, NamedTuple

import msgspec

from fledge.errors import MalformedError
from fledge.tree.binary import Layout, octets, u16, u32, u64
from fledge.tree.block_digests import (
    BLOCK_SIZE,
    DIGEST_SIZE,
    block_digests,
    write_digests,
)
from fledge.tree.digest import Digest

SIGNATURE = b"verity\0\0"
VERSION = 1
"""Of the superblock."""
NORMAL = 1
"""The hash type of dm-verity, which puts the salt before the block. The other is that of the first
Chrome OS."""
ALGORITHM = b"sha256"
MAX_SALT_SIZE = 256
DIGESTS_PER_BLOCK = BLOCK_SIZE // DIGEST_SIZE

MAX_DATA_BLOCKS = (1 << 63) // BLOCK_SIZE
"""Blocks of data of the largest file."""

MAX_DAMAGES = 100
"""Damages that a check looks for before it gives up."""


class Superblock(NamedTuple):
    """struct verity_sb of cryptsetup."""

    signature: Annotated[bytes, octets(0x0, 8)]
    version: Annotated[int, u32(0x8)]
    hash_type: Annotated[int, u32(0xC)]
    uuid: Annotated[bytes, octets(0x10, 16)]
    algorithm: Annotated[bytes, octets(0x20, 32)]
    data_block_size: Annotated[int, u32(0x40)]
    hash_block_size: Annotated[int, u32(0x44)]
    data_blocks: Annotated[int, u64(0x48)]
    salt_size: Annotated[int, u16(0x50)]
    salt: Annotated[bytes, octets(0x58, MAX_SALT_SIZE)]


SUPERBLOCK = Layout(Superblock, size=512)


class Level(NamedTuple):
    """A level of a tree. Numbers of blocks count from the superblock on."""

    start: int
    blocks: int
    covers: int
    """Data blocks that a block of the level stands for; the last one may have fewer."""


class HashTree(msgspec.Struct, frozen=True):
    """A hash tree of a disk, as its superblock describes it."""

    data_blocks: int
    """Blocks of data, of `BLOCK_SIZE` bytes."""
    salt: bytes
    uuid: uuid.UUID
    offset: int = 0
    """Where the superblock is in the file that has it, in bytes."""

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return self.data_blocks * BLOCK_SIZE

    @property
    def levels(self) -> list[Level]:
        """The levels, that of the digests of the data first. None if there is one block of data."""
        return find_levels(self.data_blocks)

    @property
    def size(self) -> int:
        """Bytes of superblock and tree."""
        return tree_blocks(self.data_blocks) * BLOCK_SIZE

    def position(self, block: int) -> int:
        """Return where a block of the tree is in the file, in bytes."""
        return self.offset + block * BLOCK_SIZE


class Damage(NamedTuple):
    """Blocks that a kernel does not read, because their digests differ from those in the tree."""

    first: int
    """The first block of data."""
    blocks: int
    """How many there are."""
    level: int | None
    """The level of the tree whose block is damaged. None: the data itself is."""


def find_levels(data_blocks: int) -> list[Level]:
    """Return the levels of a tree over so many blocks, that of the digests of the data first."""
    sizes = []
    blocks, covers = data_blocks, 1
    while blocks > 1:
        blocks, covers = -(-blocks // DIGESTS_PER_BLOCK), covers * DIGESTS_PER_BLOCK
        sizes.append((blocks, covers))
    levels: list[Level] = []
    start = 1
    for blocks, covers in reversed(sizes):  # the top is first in the file
        levels.insert(0, Level(start, blocks, covers))
        start += blocks
    return levels


def tree_blocks(data_blocks: int) -> int:
    """Return the blocks of superblock and tree over so many blocks of data."""
    return 1 + sum(level.blocks for level in find_levels(data_blocks))


def find_data_blocks(size: int) -> int | None:
    """Return the blocks of data of a file with ``size`` bytes that ends with their tree.

    None: no tree fits such a file.
    """
    blocks, remainder = divmod(size, BLOCK_SIZE)
    if remainder:
        return None
    # The tree grows with the data, so at most one number fits.
    low, high = 1, blocks
    while low < high:
        middle = (low + high) // 2
        if middle + tree_blocks(middle) < blocks:
            low = middle + 1
        else:
            high = middle
    return low if low + tree_blocks(low) == blocks else None


def derive(image: Digest, data_blocks: int, offset: int) -> HashTree:
    """Return the tree, yet to be written, of data with the digest ``image``.

    Salt and UUID come from the data, so that equal data gets an equal root hash. The salt is no
    secret, and never was: it stands in the superblock and on the kernel's command line. It keeps
    equal blocks of different images from having equal digests, which it does, and the root hash
    depends on nothing but SHA-256 for the rest.
    """
    salt = bytes.fromhex(image.hex)
    number = sha256(b"UUID of a dm-verity hash tree" + salt).digest()[:16]
    return HashTree(data_blocks, salt, uuid.UUID(bytes=number, version=4), offset)


Hashing = Callable[[int, int, int, bytes, int, int], None]
"""A function like `write_digests`."""


def write(data: int, tree: HashTree, target: int, hash_data: Hashing = write_digests) -> Digest:
    """Write superblock and tree over the open file ``data`` to the open file ``target``, which may
    be the same, and return the root hash.

    ``hash_data`` writes the digests of the data; it may use other processes. Memory does not grow
    with the data. Raises `OSError`.
    """
    os.ftruncate(target, tree.offset)
    os.ftruncate(target, tree.offset + tree.size)  # all that is not written is zeros
    os.pwrite(target, _superblock(tree), tree.offset)
    source, first, count = data, 0, tree.data_blocks
    hashing = hash_data
    for level in tree.levels:
        hashing(source, first, count, tree.salt, target, tree.position(level.start))
        source, first, count = target, tree.position(level.start) // BLOCK_SIZE, level.blocks
        hashing = write_digests
    return Digest(next(block_digests(source, first, 1, tree.salt)).hex())


def _superblock(tree: HashTree) -> bytes:
    return SUPERBLOCK.pack(
        Superblock(
            signature=SIGNATURE,
            version=VERSION,
            hash_type=NORMAL,
            uuid=tree.uuid.bytes,
            algorithm=ALGORITHM,
            data_block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
            data_blocks=tree.data_blocks,
            salt_size=len(tree.salt),
            salt=tree.salt,
        )
    )


def find_appended(file: int, size: int) -> HashTree | None:
    """Return the hash tree at the end of an open file with ``size`` bytes; None: it has none.

    Raises `MalformedError` if it has one that fledge cannot check, `OSError` if the file cannot be
    read.
    """
    data_blocks = find_data_blocks(size)
    if data_blocks is None:
        return None
    start = os.pread(file, SUPERBLOCK.size, data_blocks * BLOCK_SIZE)
    if not start.startswith(SIGNATURE):
        return None
    tree = parse(start, data_blocks * BLOCK_SIZE)
    if tree.data_blocks != data_blocks:
        raise MalformedError(
            f"its superblock says {tree.data_blocks} blocks of data, and there are {data_blocks}"
        )
    return tree


def parse(data: bytes, offset: int) -> HashTree:
    """Read a superblock; ``offset`` is where it is in its file.

    Raises `MalformedError` if it is none, or of a tree that fledge cannot check.
    """
    if len(data) < SUPERBLOCK.size:
        raise MalformedError("its superblock is cut off")
    found = SUPERBLOCK.unpack_from(data)
    if found.signature != SIGNATURE:
        raise MalformedError("it has no superblock of dm-verity")
    if (found.version, found.hash_type) != (VERSION, NORMAL):
        raise MalformedError(
            f"its superblock has version {found.version} and hash type {found.hash_type}, of"
            " which fledge knows 1 and 1"
        )
    algorithm = found.algorithm.partition(b"\0")[0]
    if algorithm != ALGORITHM:
        name = algorithm.decode("ascii", "backslashreplace")
        raise MalformedError(f"its hash algorithm is {name}, and fledge knows only sha256")
    if (found.data_block_size, found.hash_block_size) != (BLOCK_SIZE, BLOCK_SIZE):
        raise MalformedError(f"its blocks do not have {BLOCK_SIZE} bytes")
    if found.salt_size > MAX_SALT_SIZE:
        raise MalformedError(f"its salt has {found.salt_size} bytes, more than {MAX_SALT_SIZE}")
    if not 0 < found.data_blocks <= MAX_DATA_BLOCKS:
        raise MalformedError(f"its superblock says {found.data_blocks} blocks of data")
    salt = found.salt[: found.salt_size]
    return HashTree(found.data_blocks, salt, uuid.UUID(bytes=found.uuid), offset)


def root_hash(file: int, data: int, tree: HashTree) -> Digest:
    """Return the root hash that a tree gives, of which nothing else is checked.

    ``file`` has the tree, ``data`` the data. Raises `OSError`.
    """
    levels = tree.levels
    block = tree.position(levels[-1].start) // BLOCK_SIZE if levels else 0
    return Digest(next(block_digests(file if levels else data, block, 1, tree.salt)).hex())


def check(
    file: int, data: int, tree: HashTree, root: Digest, advance: Callable[[int], None]
) -> Iterator[Damage]:
    """Yield what is damaged in the data and the tree under a root hash, at most `MAX_DAMAGES`.

    ``file`` has the tree, ``data`` the data; ``advance`` is told the bytes of data that are
    checked. What is below a damaged block of the tree counts as damaged with it, for nothing says
    what it should be. Raises `OSError`.
    """
    levels = tree.levels
    found: list[Damage] = []
    parents = iter([bytes.fromhex(root.hex)])
    for number in range(len(levels), -1, -1):
        # Each level is compared with the digests in the one above, both from front to back.
        if number:
            level = levels[number - 1]
            source, first = file, tree.position(level.start)
        else:
            level = Level(0, tree.data_blocks, 1)
            source, first = data, 0
        distrusted = sorted(found, key=attrgetter("first"))
        digests = block_digests(source, first // BLOCK_SIZE, level.blocks, tree.salt)
        for position, expected, actual in _pairs(parents, digests):
            if not number:
                advance(len(actual) // DIGEST_SIZE * BLOCK_SIZE)
            if expected == actual:
                continue
            for block in _different(expected, actual):
                start = (position + block) * level.covers
                if _covers(distrusted, start):
                    continue
                count = min(level.covers, tree.data_blocks - start)
                found.append(Damage(start, count, number - 1 if number else None))
                yield found[-1]
                if len(found) == MAX_DAMAGES:
                    return
        if number:
            parents = _read_level(file, first, level.blocks)


def _pairs(
    expected: Iterator[bytes], actual: Iterator[bytes]
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number of a block and, from it on, as many expected digests as actual ones."""
    known = b""
    block = 0
    for digests in actual:
        while len(known) < len(digests):
            known += next(expected)
        yield block, known[: len(digests)], digests
        known = known[len(digests) :]
        block += len(digests) // DIGEST_SIZE


def _different(expected: bytes, actual: bytes) -> Iterator[int]:
    """Yield the positions of digests that differ."""
    for block in range(len(actual) // DIGEST_SIZE):
        part = slice(block * DIGEST_SIZE, (block + 1) * DIGEST_SIZE)
        if expected[part] != actual[part]:
            yield block


def _covers(damages: list[Damage], block: int) -> bool:
    """Return whether a block is in one of the ascending damages."""
    position = bisect_right(damages, block, key=attrgetter("first")) - 1
    return position >= 0 and block < damages[position].first + damages[position].blocks


def _read_level(file: int, position: int, blocks: int) -> Iterator[bytes]:
    """Yield the blocks of a level of the tree."""
    for block in range(blocks):
        data = os.pread(file, BLOCK_SIZE, position + block * BLOCK_SIZE)
        if len(data) < BLOCK_SIZE:
            raise OSError(errno.EIO, "the file has become shorter")
        yield data
