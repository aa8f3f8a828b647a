"""What a kernel must be able to do to mount an image."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.disks.squashfs.structures import Codec
from fledge.tree.kernel import READ_ONLY_DISK, Requirement, filesystem

_OPTIONS = {
    Codec.GZIP: ("SQUASHFS_ZLIB", None),
    Codec.LZO: ("SQUASHFS_LZO", (2, 6)),
    Codec.XZ: ("SQUASHFS_XZ", (2, 6)),
    Codec.LZ4: ("SQUASHFS_LZ4", (3, 19)),
    Codec.ZSTD: ("SQUASHFS_ZSTD", (4, 14)),
}
"""The option of each decompressor, and the first version of Linux that has it
(fs/squashfs/Kconfig). No version has lzma."""


def requirements(codec: Codec) -> Sequence[Requirement]:
    """Return what an image with that compressor needs."""
    option, since = _OPTIONS.get(codec, (None, None))
    return (
        filesystem("squashfs", "SQUASHFS"),
        Requirement(
            f"squashfs compressed with {codec.name.lower()}",
            (option,) if option else (),
            since,
            instead="choose another compression in [filesystem]",
        ),
        Requirement(
            *("extended attributes in squashfs", ("SQUASHFS_XATTR",)), essential=False, xattrs=b""
        ),
        *READ_ONLY_DISK,
    )
