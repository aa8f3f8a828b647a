"""Tests of the hash trees of dm-verity."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256, shake_128
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import MalformedError
from fledge.tree import verity
from fledge.tree.block_digests import BLOCK_SIZE
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from fledge.tree.verity import Damage, HashTree, Superblock
from tests.support import golden

SIZES = (1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1)
"""Blocks of data at which the shape of a tree changes."""


@contextmanager
def opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR)
    try:
        yield file
    finally:
        os.close(file)


def make(path: Path, blocks: int) -> Path:
    """Write noise, and holes behind it."""
    noise = shake_128(b"%d" % blocks).digest(min(blocks, 200) * BLOCK_SIZE)
    path.write_bytes(noise)
    os.truncate(path, blocks * BLOCK_SIZE)
    return path


def seal(path: Path) -> tuple[HashTree, Digest]:
    """Append a tree to a file."""
    size = path.stat().st_size
    tree = verity.derive(hash_file(path).digest, size // BLOCK_SIZE, size)
    with opened(path) as file:
        return tree, verity.write(file, tree, file)


def damages(path: Path, tree: HashTree, root: Digest) -> list[Damage]:
    checked: list[int] = []
    with opened(path) as file:
        found = list(verity.check(file, file, tree, root, checked.append))
    assert len(found) == verity.MAX_DAMAGES or sum(checked) == tree.data_size
    return found


def flip(path: Path, offset: int) -> None:
    with opened(path) as file:
        [byte] = os.pread(file, 1, offset)
        os.pwrite(file, bytes([byte ^ 1]), offset)


def plain_root_hash(data: bytes, salt: bytes) -> str:
    """Compute a root hash in the plainest way."""
    while True:
        blocks = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
        digests = b"".join(sha256(salt + each.ljust(BLOCK_SIZE, b"\0")).digest() for each in blocks)
        if len(blocks) == 1:
            return digests.hex()
        data = digests


@pytest.mark.parametrize("blocks", SIZES[:5])
def test_the_root_hash(blocks: int, tmp_path: Path) -> None:
    path = make(tmp_path / "disk", blocks)
    data = path.read_bytes()
    tree, root = seal(path)
    assert root.hex == plain_root_hash(data, tree.salt)
    assert path.read_bytes().startswith(data)
    with opened(path) as file:
        assert verity.find_appended(file, path.stat().st_size) == tree
        assert verity.root_hash(file, file, tree) == root
    assert damages(path, tree, root) == []


def test_golden(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", 129)
    _, root = seal(path)
    assert root.hex == golden.VERITY_ROOT_HASH
    assert hash_file(path).digest.hex == golden.VERITY_DISK


def test_salt_and_uuid_come_from_the_data(tmp_path: Path) -> None:
    trees = []
    for name, byte in (("one", b"1"), ("two", b"2"), ("again", b"1")):
        (tmp_path / name).write_bytes(byte * BLOCK_SIZE)
        trees.append(seal(tmp_path / name))
    assert trees[0] == trees[2]
    assert trees[0][0].salt != trees[1][0].salt
    assert trees[0][0].uuid != trees[1][0].uuid


@pytest.mark.real
@pytest.mark.parametrize("blocks", SIZES)
def test_veritysetup_agrees(blocks: int, tmp_path: Path) -> None:
    path = make(tmp_path / "disk", blocks)
    tree, root = seal(path)
    offset = f"--hash-offset={tree.offset}"
    subprocess.run(["veritysetup", "verify", path, path, root.hex, offset], check=True)
    shown = run("veritysetup", "dump", path, offset)
    for fact in (str(tree.uuid), tree.salt.hex(), f"Data blocks:     \t{blocks}\n", "sha256"):
        assert fact in shown
    os.truncate(path, tree.data_size)
    made = tmp_path / "made"
    salt, number = f"--salt={tree.salt.hex()}", f"--uuid={tree.uuid}"
    assert root.hex in run("veritysetup", "format", path, made, salt, number)
    seal(path)
    assert path.read_bytes()[tree.offset :] == made.read_bytes()


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@given(st.integers(1, 1 << 40))
def test_the_size_of_a_file_tells_where_its_tree_is(blocks: int) -> None:
    size = (blocks + verity.tree_blocks(blocks)) * BLOCK_SIZE
    assert verity.find_data_blocks(size) == blocks
    assert verity.find_data_blocks(size + 1) is None


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, 2 * BLOCK_SIZE - 1])
def test_files_too_small_for_a_tree(size: int) -> None:
    assert verity.find_data_blocks(size) is None


def test_a_flipped_byte_of_data_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", 300)
    tree, root = seal(path)
    flip(path, 150 * BLOCK_SIZE + 17)
    flip(path, 299 * BLOCK_SIZE)
    assert damages(path, tree, root) == [Damage(150, 1, None), Damage(299, 1, None)]


def test_a_flipped_byte_of_the_tree_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", 300)
    tree, root = seal(path)
    flip(path, tree.position(2) + 1 * BLOCK_SIZE)  # the second block of the lowest level
    flip(path, 130 * BLOCK_SIZE)  # which that has been about
    flip(path, 299 * BLOCK_SIZE)
    assert damages(path, tree, root) == [Damage(128, 128, 0), Damage(299, 1, None)]


def test_a_flipped_byte_of_the_top_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", 300)
    tree, root = seal(path)
    flip(path, tree.position(1))
    assert damages(path, tree, root) == [Damage(0, 300, 1)]


def test_not_more_damages_than_enough(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", 300)
    tree, root = seal(path)
    for block in range(200):
        flip(path, block * BLOCK_SIZE)
    assert len(damages(path, tree, root)) == verity.MAX_DAMAGES


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_every_flipped_bit_is_found(data: st.DataObject) -> None:
    path = Path("/dev/shm") / f"fledge-verity-{os.getpid()}"
    try:
        blocks = data.draw(st.integers(1, 140))
        tree, root = seal(make(path, blocks))
        padding = range(tree.offset + verity.SUPERBLOCK.size, tree.position(1))
        offset = data.draw(st.integers(0, path.stat().st_size - 1))
        flip(path, offset)
        in_superblock = tree.offset <= offset < padding.stop
        assert bool(damages(path, tree, root)) is not in_superblock
    finally:
        path.unlink(missing_ok=True)


GOOD = Superblock(b"verity\0\0", 1, 1, bytes(16), b"sha256", 4096, 4096, 1, 4, b"salt")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"signature": b"verity\0\1"}, "no superblock"),
        ({"version": 2}, "version 2"),
        ({"hash_type": 0}, "hash type 0"),
        ({"algorithm": b"sha512"}, "is sha512"),
        ({"data_block_size": 512}, "4096 bytes"),
        ({"hash_block_size": 1 << 31}, "4096 bytes"),
        ({"data_blocks": 0}, "0 blocks"),
        ({"data_blocks": (1 << 64) - 1}, "18446744073709551615 blocks"),
        ({"salt_size": 257}, "257 bytes"),
    ],
)
def test_a_hostile_superblock(change: dict[str, object], problem: str) -> None:
    assert verity.parse(verity.SUPERBLOCK.pack(GOOD), 0).salt == b"salt"
    with pytest.raises(MalformedError, match=problem):
        verity.parse(verity.SUPERBLOCK.pack(GOOD._replace(**change)), 0)  # type: ignore[arg-type]


@given(st.binary(max_size=600), st.integers(0, 512))
def test_any_superblock_is_read_or_refused(data: bytes, position: int) -> None:
    whole = bytearray(verity.SUPERBLOCK.pack(GOOD))
    whole[position : position + len(data)] = data
    with suppress(MalformedError):
        assert 0 < verity.parse(bytes(whole), 0).data_blocks <= verity.MAX_DATA_BLOCKS


def test_a_superblock_that_is_cut_off() -> None:
    with pytest.raises(MalformedError, match="cut off"):
        verity.parse(verity.SUPERBLOCK.pack(GOOD)[:511], 0)


def test_a_tree_of_other_data(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", 100)
    tree, _ = seal(path)
    with opened(path) as file:
        other = GOOD._replace(data_blocks=99)
        os.pwrite(file, verity.SUPERBLOCK.pack(other), tree.offset)
        with pytest.raises(MalformedError, match="99 blocks of data, and there are 100"):
            verity.find_appended(file, path.stat().st_size)
