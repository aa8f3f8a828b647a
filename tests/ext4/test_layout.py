"""Blocks of an ext4 image that stay where they are, or what they are, if a source changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fledge.ext4.format import Ext4
from fledge.ext4.inodes import ExtentTree
from fledge.ext4.plan import Room, make_plan
from fledge.ext4.reader import read
from fledge.ext4.structures import BLOCK_SIZE, Superblock
from fledge.operations import build
from fledge.tree import Directory, File, Symlink, Tree
from fledge.tree.content import Span
from tests.support import project
from tests.support.disks import write_ext4
from tests.support.samples import CAPABILITIES, EPOCH

pytestmark = pytest.mark.slow

MIB = 1 << 20
BASE, UPPER, MAPPED = range(3)


def noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


def file(content: bytes | Span) -> File:
    return File(mode=0o644, content=content, mtime_ns=EPOCH * 10**9)


def make(files: int = 300, mapped: dict[str, bytes] | None = None) -> Tree:
    """A tree of two layers, of which the lower has so many files, and mapped files."""
    tree = Tree(mtime_ns=EPOCH * 10**9)
    for number in range(files):
        tree.add(
            b"base/%d/%d" % (number // 40, number), file(noise(f"b{number}", number % 900 * 9))
        )
        if number % 10 == 0:
            tree.add(b"links/%d" % number, Symlink(target=b"t" * 100, xattrs={b"trusted.x": b""}))
            tree.add(
                b"base/xattrs-%d" % number,
                File(mode=0o755, content=b"x", xattrs={b"user.long": b"x" * 500, **CAPABILITIES}),
            )
    tree.origin = UPPER
    for number in range(50):
        tree.add(b"app/%d" % number, file(noise(f"u{number}", 50_000)))
    tree.add(b"base/0/5", file(b"replaced"))
    tree.origin = MAPPED
    for name, data in (MAPPED_FILES if mapped is None else mapped).items():
        tree.add(b"etc/plugin/" + name.encode(), file(data))
    return tree


MAPPED_FILES = {f"{number:02}": noise(f"m{number}", 1024) for number in range(10)}

CHANGES = {
    "changed": {"03": noise("changed", 1024)},
    "grown": {"03": noise("grown", 5000)},
    "added": {"035": noise("added", 1024)},
    "large": {"035": noise("large", 5 * MIB)},
}


def write(tree: Tree, path: Path) -> bytes:
    path.unlink(missing_ok=True)
    path.touch()
    write_ext4(tree, path, Ext4(), EPOCH)
    return path.read_bytes()


def new_chunks(before: bytes, after: bytes, size: int) -> int:
    """How many chunks of one image the other does not have."""
    old, new = (
        {image[start : start + size] for start in range(0, len(image), size)}
        for image in (before, after)
    )
    return len(new - old)


class Allocation(NamedTuple):
    """The inode of a node, and the blocks that it uses."""

    number: int
    size: int
    content: ExtentTree
    xattr_block: int | None


def allocations(tree: Tree) -> dict[bytes, Allocation]:
    tree.root.children.setdefault(b"lost+found", Directory(mode=0o700))
    inodes = make_plan(tree, Room(), EPOCH).inodes
    numbers = {path: inodes.numbers[node] for path, node in tree.walk()}
    return {
        path: Allocation(
            number,
            inodes.sizes[number],
            inodes.extent_tree(number),
            inodes.xattr_blocks.get(number),
        )
        for path, number in numbers.items()
    }


@pytest.mark.parametrize("files", [30, 300, 3000])
@pytest.mark.parametrize("change", ["changed", "grown", "added"])
def test_a_mapped_file_changes_few_blocks(tmp_path: Path, files: int, change: str) -> None:
    """The superblock and its copies, the journal's, two bitmaps, and what the file is in."""
    before = write(make(files), tmp_path / "image")
    after = write(make(files, {**MAPPED_FILES, **CHANGES[change]}), tmp_path / "image")
    assert 0 < new_chunks(before, after, BLOCK_SIZE) <= 20
    assert new_chunks(before, after, MIB) <= 5


@pytest.mark.parametrize("change", CHANGES)
def test_everything_of_earlier_sources_stays(change: str) -> None:
    before = allocations(make())
    after = allocations(make(mapped={**MAPPED_FILES, **CHANGES[change]}))
    earlier = [path for path in before if not path.startswith(b"etc")]
    assert len(earlier) > 400
    for path in earlier:
        assert after[path] == before[path]


def test_inodes_are_numbered_by_source() -> None:
    found = allocations(make())
    assert found[b""].number == 2
    assert found[b"lost+found"].number == 11
    for path, allocation in found.items():
        lower = path.startswith((b"base", b"links")) and path != b"base/0/5"
        if lower:
            assert allocation.number < found[b"app"].number
        elif path not in (b"", b"lost+found"):
            assert allocation.number >= found[b"app"].number
    assert found[b"etc"].number > max(
        allocation.number for path, allocation in found.items() if not path.startswith(b"etc")
    )
    assert sorted(each.number for each in found.values())[2:] == list(range(12, 10 + len(found)))


@pytest.mark.parametrize("growth", [1, 100, 2000])
def test_a_new_base_moves_what_is_above_it_by_whole_chunks(tmp_path: Path, growth: int) -> None:
    """Also over the copy of the superblock in the second group, 128 MiB from the first."""
    zeros = tmp_path / "zeros"
    zeros.touch()
    with zeros.open("r+b") as opened:
        opened.truncate(200 * MIB)

    def image(blocks: int) -> bytes:
        tree = Tree(mtime_ns=0)
        tree.add(b"above/base", file(Span(zeros, 0, 100 * MIB)))
        tree.add(b"above/base-too", file(noise("base", blocks * BLOCK_SIZE)))
        tree.origin = UPPER
        for number in range(40):
            tree.add(b"app/%d" % number, file(noise(f"u{number}", MIB - 3000)))
        return write(tree, tmp_path / "image")

    # Metadata, the base, and each side of the copies.
    assert new_chunks(image(500), image(500 + growth), MIB) <= 8 + growth // 256


def test_a_large_file_stays_in_place(tmp_path: Path) -> None:
    """If what is before it in its source grows."""
    mapped = {"a": b"a", "model": noise("model", 20 * MIB), "z": noise("z", 5000)}
    before = write(make(mapped=mapped), tmp_path / "image")
    after = write(make(mapped={**mapped, "a": noise("grown", 9000)}), tmp_path / "image")
    assert new_chunks(before, after, MIB) <= 5


def test_no_two_images_share_a_uuid(tmp_path: Path) -> None:
    def change(path: bytes, **fields: object) -> Callable[[Tree], None]:
        def apply(tree: Tree) -> None:
            node = tree.get(path)
            assert node
            for name, value in fields.items():
                setattr(node, name, value)

        return apply

    changes: list[Callable[[Tree], None]] = [
        lambda _: None,
        change(b"base/0/7", content=b"other"),
        change(b"base/0/7", mode=0o600),
        change(b"base/0/7", uid=7),
        change(b"base/0/7", gid=7),
        change(b"base/0/7", mtime_ns=7),
        change(b"base/0/7", xattrs={b"user.x": b""}),
        change(b"base/0/7", origin=MAPPED),
        change(b"base/0", origin=MAPPED),
        change(b"links/0", target=b"t"),
        lambda tree: tree.add(b"etc/plugin/other", file(b"")),
    ]
    images = []
    for apply in changes:
        tree = make()
        apply(tree)
        images.append(write(tree, tmp_path / "image"))
    superblocks = [Superblock.unpack(image[1024:2048]) for image in images]
    assert len({superblock.uuid for superblock in superblocks}) == len(changes)
    assert len({superblock.hash_seed for superblock in superblocks}) == 1
    assert len({superblock.seed for superblock in superblocks}) == 1


def test_a_build_goes_from_the_lowest_layer_to_the_mapped_files(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    image = build.build(toml, tmp_path / "image", platform="linux/amd64").path
    found = read(image)
    by_number = {
        found.inodes[node].number: path.decode()
        for path, node in found.tree.walk()
        if isinstance(node, File)
    }
    assert [path for _, path in sorted(by_number.items())] == [
        "usr/bin/hello",  # of the lower layer, as usr/bin/greet
        "etc/greeting",
        "etc/fsify-entrypoint",
        "usr/bin/kestrel",
        "etc/webserver/config.yaml",
        "usr/bin/webserver",
        "var/www/img/logo.svg",
        "var/www/index.html",
    ]
    before = image.read_bytes()
    (tmp_path / "payload/site/index.html").write_bytes(noise("page", 9000))
    after = build.build(toml, image, platform="linux/amd64").path.read_bytes()
    assert 0 < new_chunks(before, after, BLOCK_SIZE) <= 12
