"""What a kernel must be able to do to mount an ext4 image for writing, if it can be written.

The versions are those of "KERNEL SUPPORT" in ext4(5). Compatible features are left out, because
kernels ignore those that they do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fledge.errors import CorruptError, unreadable
from fledge.ext4.constants import SUPERBLOCK_OFFSET
from fledge.ext4.structures import (
    INCOMPAT,
    RO_COMPAT,
    SUPERBLOCK_SIZE,
    Incompat,
    RoCompat,
    Superblock,
    feature_names,
)
from fledge.tree.kernel import (
    ACL_PREFIX,
    DISK,
    READ_ONLY_DISK,
    SECURITY_PREFIX,
    Requirement,
    filesystem,
)

_OLD = {
    *("filetype", "needs_recovery", "meta_bg", "extent", "64bit", "flex_bg", "sparse_super"),
    *("large_file", "btree_dir", "huge_file", "uninit_bg", "dir_nlink", "extra_isize"),
}
"""The features that Linux has had since 2.6.28."""

_SINCE = {
    "mmp": (3, 0),
    "bigalloc": (3, 2),
    "quota": (3, 6),
    "inline_data": (3, 8),
    "metadata_csum": (3, 18),
    "read-only": (4, 0),
    "encrypt": (4, 1),
    "metadata_csum_seed": (4, 4),
    "project": (4, 5),
    "ea_inode": (4, 13),
    "large_dir": (4, 13),
    "casefold": (5, 2),
    "verity": (5, 4),
    "orphan_present": (5, 15),
}
"""The first version of Linux that has a later feature. Others are in no version."""

_OPTIONS = {"casefold": ("UNICODE",), "quota": ("QUOTA",), "project": ("QUOTA",)}
"""The options without which a kernel refuses a feature (ext4_feature_set_ok in fs/ext4/super.c)."""


def written(*, read_only: bool) -> Sequence[Requirement]:
    """Return what the images need that fledge writes."""
    return _requirements(INCOMPAT, RO_COMPAT | (RoCompat.READONLY if read_only else 0))


def read(path: Path) -> Sequence[Requirement]:
    """Return what the image at ``path`` needs. Of it, only the superblock is read.

    Raises `CorruptError` if it ends too early, `FledgeError` if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(SUPERBLOCK_OFFSET)
            data = file.read(SUPERBLOCK_SIZE)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) < SUPERBLOCK_SIZE:
        raise CorruptError(f"{path}: it ends in its superblock", "Build or copy it again.")
    superblock = Superblock.unpack(data)
    return _requirements(superblock.feature_incompat, superblock.feature_ro_compat)


def _requirements(incompat: int, ro_compat: int) -> Sequence[Requirement]:
    names = (*feature_names(Incompat, incompat), *feature_names(RoCompat, ro_compat))
    return (
        filesystem("ext4", "EXT4_FS"),
        *(
            Requirement(f"ext4 {name}", _OPTIONS.get(name, ()), _SINCE.get(name))
            for name in names
            if name not in _OLD
        ),
        Requirement(
            *("access control lists", ("EXT4_FS_POSIX_ACL",)), essential=False, xattrs=ACL_PREFIX
        ),
        Requirement(
            *("file capabilities", ("EXT4_FS_SECURITY",)), essential=False, xattrs=SECURITY_PREFIX
        ),
        *(READ_ONLY_DISK if ro_compat & RoCompat.READONLY else DISK),
    )
