"""Finds a kernel to boot: its image, and the modules that belong to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, HostError
from fledge.machine import image

BOOT = Path("/boot")
"""The folder in which distributions put their kernels."""


class BootKernel(msgspec.Struct, frozen=True):
    """A kernel image that can be booted."""

    path: Path
    architecture: str
    """The architecture (OCI name)."""
    modules: Path | None
    """The folder of its modules, such as /lib/modules/VERSION. None: it has none."""


def open_kernel(path: Path) -> BootKernel:
    """Return the kernel in a file. Raises what `image.identify` raises."""
    identity = image.identify(path)
    found = next(filter(_has_modules, _module_folders(path, identity.release)), None)
    return BootKernel(path, identity.architecture, found)


def host_kernel(boot: Path = BOOT) -> BootKernel:
    """Return the kernel that runs on this host, or else the newest in ``boot``.

    Raises `HostError` if there is none that may be read.
    """
    running = os.uname().release
    installed = sorted(
        [*boot.glob("vmlinuz-*"), *boot.glob("Image-*")],
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)],
        reverse=True,
    )
    candidates = [
        *(path for path in installed if path.name.partition("-")[2] == running),
        Path("/lib/modules") / running / "vmlinuz",
        *installed,
    ]
    unreadable = []
    for path in candidates:
        if path.is_file() and os.access(path, os.R_OK):
            try:
                return open_kernel(path)
            except ConfigError:
                continue  # not a kernel after all
        elif path.is_file():
            unreadable.append(path)
    if unreadable:
        raise HostError(
            f"you may not read {unreadable[0]}",
            f"Make it readable (sudo chmod a+r {unreadable[0]}), or name a kernel with --kernel.",
        )
    raise HostError(
        f"this machine has no kernel in {boot}",
        "Name a kernel image with --kernel FILE or FLEDGE_KERNEL.",
    )


def _module_folders(path: Path, release: str | None) -> Iterator[Path]:
    """Yield where the modules of the kernel at ``path`` may be.

    They are in lib/modules/VERSION below the folder of the kernel or one above it (for
    /boot/vmlinuz-VERSION), or in the folder of the kernel itself.
    """
    path = path.absolute()
    yield path.parent
    for each in dict.fromkeys(filter(None, (release, path.name.partition("-")[2]))):
        for folder in path.parents[:2]:
            yield folder / "lib" / "modules" / each
            yield folder / "usr" / "lib" / "modules" / each
        yield Path("/lib/modules") / each


def _has_modules(folder: Path) -> bool:
    return (folder / "kernel").is_dir() and (folder / "modules.order").exists()
