"""What an artifact needs of the kernel that boots it, as options of the kernel's configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec

from fledge.tree.nodes import Tree


class Requirement(msgspec.Struct, frozen=True):
    """Something that a kernel must be able to do."""

    purpose: str
    """What it is for: ``ext4 filesystem``."""
    options: tuple[str, ...] = ()
    """The options of the configuration, without ``CONFIG_``, of which any one is enough. Empty: the
    version of Linux decides."""
    since: tuple[int, int] | None = None
    """The first version of Linux that can do it. None: any that has one of the options; if there
    are none, no version can."""
    essential: bool = True
    """Whether the artifact does not boot without it. Otherwise it only lacks ``purpose``."""
    instead: str = ""
    """What to change in fledge.toml, if not the kernel. Empty: there is no other way."""
    xattrs: bytes | None = None
    """Only a tree with an extended attribute whose name begins so needs it. None: every tree."""


ACL_PREFIX = b"system.posix_acl_"
SECURITY_PREFIX = b"security."
"""The beginnings of the names of extended attributes for which filesystems have options."""


def xattr_names(tree: Tree) -> set[bytes]:
    """Return the names of all extended attributes in a tree."""
    return {name for node in tree.nodes() if node.xattrs for name in node.xattrs}


def needed_by(
    requirements: Iterable[Requirement], names: Collection[bytes] = ()
) -> Iterator[Requirement]:
    """Yield the requirements of a tree whose extended attributes have these names."""
    for each in requirements:
        if each.xattrs is None or any(name.startswith(each.xattrs) for name in names):
            yield each


GUEST = (
    Requirement("programs", ("BINFMT_ELF",)),
    Requirement("scripts", ("BINFMT_SCRIPT",)),
    Requirement("/proc", ("PROC_FS",)),
    Requirement("/sys", ("SYSFS",)),
    Requirement("/dev", ("DEVTMPFS",)),
    Requirement("files in memory", ("TMPFS",)),
    Requirement("terminals in /dev/pts", ("UNIX98_PTYS",), essential=False),
    Requirement(
        "console",
        ("SERIAL_8250_CONSOLE", "SERIAL_AMBA_PL011_CONSOLE", "VIRTIO_CONSOLE"),
        essential=False,
    ),
)
"""What init and the agent need, in whatever format they are."""

VIRTIO = (
    Requirement("virtio disk", ("VIRTIO_BLK",)),
    Requirement("virtio bus", ("VIRTIO_PCI", "VIRTIO_MMIO")),
)
"""What makes a disk appear. A virtual machine has its virtio devices on one of the two buses."""

OVERLAY = Requirement("overlayfs", ("OVERLAY_FS",), instead="choose another type in [filesystem]")
"""What a disk needs that the kernel cannot write to, so that the guest can."""

DISK = (*VIRTIO, Requirement("overlayfs", ("OVERLAY_FS",), essential=False), *GUEST)
"""What a disk needs besides the driver of its filesystem."""

READ_ONLY_DISK = (*VIRTIO, OVERLAY, *GUEST)
"""The same for a filesystem that cannot be written: the guest writes to an overlay."""


DM_VERITY = (
    Requirement("device mapper", ("BLK_DEV_DM",), instead="remove [verity]"),
    Requirement("dm-verity", ("DM_VERITY",), instead="remove [verity]"),
    Requirement("SHA-256 for dm-verity", ("CRYPTO_SHA256",)),
    Requirement(
        "dm-verity without an initramfs",
        ("DM_INIT",),
        essential=False,
        instead="set the disk up from an initramfs",
    ),
)
"""What a sealed disk needs besides."""


def filesystem(name: str, option: str) -> Requirement:
    """Return the requirement of the driver of a disk's filesystem."""
    return Requirement(
        f"{name} filesystem", (option,), instead="choose another type in [filesystem]"
    )
