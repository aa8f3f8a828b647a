"""What a kernel must be able to do to mount an erofs image.

The versions are those in which fs/erofs/erofs_fs.h of the kernel first had a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

from fledge.disks.erofs.compression import Codec
from fledge.disks.erofs.structures import Incompat, Superblock, feature_names
from fledge.tree.kernel import ACL_PREFIX, READ_ONLY_DISK, SECURITY_PREFIX, Requirement

_SINCE: dict[int, tuple[int, int]] = {
    Incompat.ZERO_PADDING: (5, 4),
    Incompat.COMPR_CFGS: (5, 13),
    Incompat.CHUNKED_FILE: (5, 15),
    Incompat.DEVICE_TABLE: (5, 16),
    Incompat.ZTAILPACKING: (5, 17),
    Incompat.FRAGMENTS: (6, 1),
    Incompat.XATTR_PREFIXES: (6, 4),
    Incompat.BIG_ADDRESSES: (6, 15),
    Incompat.METABOX: (6, 17),
}

_CODECS = {
    Codec.LZ4: ("EROFS_FS_ZIP", (5, 4)),
    Codec.LZMA: ("EROFS_FS_ZIP_LZMA", (5, 16)),
    Codec.DEFLATE: ("EROFS_FS_ZIP_DEFLATE", (6, 6)),
    Codec.ZSTD: ("EROFS_FS_ZIP_ZSTD", (6, 10)),
}
"""The option of each codec, and the first version that has it."""

_CHANGE_TYPE = "choose another type in [filesystem]"
_CHANGE_COMPRESSION = "choose another compression in [filesystem]"

_FILESYSTEM = Requirement("erofs filesystem", ("EROFS_FS",), (5, 4), instead=_CHANGE_TYPE)
_XATTRS = (
    Requirement("extended attributes", ("EROFS_FS_XATTR",), essential=False, xattrs=b""),
    Requirement(
        *("access control lists", ("EROFS_FS_POSIX_ACL",)), essential=False, xattrs=ACL_PREFIX
    ),
    Requirement(
        *("file capabilities", ("EROFS_FS_SECURITY",)), essential=False, xattrs=SECURITY_PREFIX
    ),
)


def written(codec: Codec | None) -> Sequence[Requirement]:
    """Return what images that fledge writes need. ``codec`` is None if they are uncompressed."""
    codecs = () if codec is None else (_codec(codec, (5, 13)),)
    # Only an image with holes in its files needs it, which a config does not tell.
    chunks = Requirement("sparse files in erofs", (), (5, 15), essential=False)
    return (_FILESYSTEM, *codecs, chunks, *_XATTRS, *READ_ONLY_DISK)


def read(superblock: Superblock) -> Sequence[Requirement]:
    """Return what an image with this superblock needs."""
    incompat = superblock.feature_incompat
    codecs: list[Codec] = []
    if incompat & Incompat.COMPR_CFGS:
        codecs = [codec for codec in Codec if superblock.codecs >> codec & 1]
    elif incompat & Incompat.ZERO_PADDING:
        codecs = [Codec.LZ4]
    features = (
        Requirement(f"erofs {feature_names(Incompat, bit)[0]}", (), _SINCE.get(bit))
        for bit in (1 << number for number in range(32))
        if incompat & bit and bit != Incompat.ZERO_PADDING
    )
    return (_FILESYSTEM, *(_codec(codec) for codec in codecs), *features, *_XATTRS, *READ_ONLY_DISK)


def _codec(codec: Codec, least: tuple[int, int] = (5, 4)) -> Requirement:
    option, since = _CODECS[codec]
    return Requirement(
        f"{codec.name.lower()} in erofs", (option,), max(since, least), instead=_CHANGE_COMPRESSION
    )
