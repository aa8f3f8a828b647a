"""What an ext4 image needs of a kernel, by its features."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from fledge.errors import CorruptError
from fledge.ext4 import kernel
from fledge.ext4.format import Ext4
from fledge.operations import build
from tests.support import project


def features(path: Path) -> dict[str, tuple[tuple[int, int] | None, tuple[str, ...]]]:
    return {
        each.purpose.removeprefix("ext4 "): (each.since, each.options)
        for each in kernel.read(path)
        if each.purpose.startswith("ext4 ") and each.purpose != "ext4 filesystem"
    }


def test_an_image_needs_what_the_format_says(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    disk = build.build(toml, tmp_path / "x.img", platform="linux/amd64").path
    assert Ext4.read_requirements(disk, tmp_path) == Ext4().requirements()
    assert features(disk) == {
        "metadata_csum": ((3, 18), ()),
        "metadata_csum_seed": ((4, 4), ()),
    }


@pytest.mark.real
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-O", "^metadata_csum,^64bit"), {}),
        (
            ("-O", "inline_data,metadata_csum_seed"),
            {
                "inline_data": ((3, 8), ()),
                "metadata_csum": ((3, 18), ()),
                "metadata_csum_seed": ((4, 4), ()),
            },
        ),
        (
            ("-O", "casefold,quota,^metadata_csum"),
            {"casefold": ((5, 2), ("UNICODE",)), "quota": ((3, 6), ("QUOTA",))},
        ),
        (
            ("-O", "encrypt,verity,project,large_dir,ea_inode,mmp,bigalloc"),
            {
                "mmp": ((3, 0), ()),
                "bigalloc": ((3, 2), ()),
                "metadata_csum": ((3, 18), ()),
                "encrypt": ((4, 1), ()),
                "project": ((4, 5), ("QUOTA",)),
                "ea_inode": ((4, 13), ()),
                "large_dir": ((4, 13), ()),
                "verity": ((5, 4), ()),
            },
        ),
        (("-t", "ext2"), {}),
    ],
    ids=["old", "new", "options", "all", "ext2"],
)
def test_images_of_e2fsprogs(
    options: tuple[str, ...],
    expected: dict[str, tuple[tuple[int, int] | None, tuple[str, ...]]],
    tmp_path: Path,
) -> None:
    disk = tmp_path / "x.img"
    own = () if "-t" in options else ("-t", "ext4")
    command = ["mkfs.ext4", "-q", "-F", *own, *options, str(disk), "64M"]
    subprocess.run(command, check=True, capture_output=True)
    assert features(disk) == expected


def test_a_feature_that_no_kernel_has(tmp_path: Path) -> None:
    disk = tmp_path / "x.img"
    image = bytearray(4096)
    struct.pack_into("<H", image, 1024 + 0x38, 0xEF53)
    struct.pack_into("<III", image, 1024 + 0x5C, 0x80000000, 0x1 | 1 << 29, 0x4000)
    disk.write_bytes(image)
    assert features(disk) == {
        "compression": (None, ()),
        "FEATURE_I29": (None, ()),
        "shared_blocks": (None, ()),
    }


def test_an_image_that_ends_in_its_superblock(tmp_path: Path) -> None:
    disk = tmp_path / "x.img"
    disk.write_bytes(bytes(1500))
    with pytest.raises(CorruptError, match="ends in its superblock"):
        kernel.read(disk)
