"""Reads kernel modules and what they depend on.

Modules are in ``kernel/`` of the folder of a kernel's modules, as NAME.ko, which may be compressed.
Their section ``.modinfo`` names the modules that they depend on. So no modules.dep is needed, which
not every package of a kernel brings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fledge.errors import CorruptError, FledgeError, unreadable
from fledge.tree.compression import GZIP_MAGIC, XZ_MAGIC, ZSTD_MAGIC, gunzip, member, unxz, unzstd

MAX_MODULE_SIZE = 64 << 20
"""Maximum bytes of an uncompressed module."""

_FILE_NAME = re.compile(r"(?P<name>[\w-]+)\.ko(?:\.gz|\.xz|\.zst)?")
_DEPENDS = re.compile(rb"\0depends=([\w,-]*)\0")
_DECOMPRESSORS = {GZIP_MAGIC: gunzip, XZ_MAGIC: unxz, ZSTD_MAGIC: unzstd}


class Module(msgspec.Struct, frozen=True):
    """A kernel module."""

    name: str
    data: bytes
    """The ELF file, uncompressed."""


def load_order(folder: Path, names: Iterable[str]) -> list[Module]:
    """Return modules and those that they depend on, in an order in which they can be loaded.

    ``folder`` is that of a kernel's modules. Names that it lacks are left out: such a module is
    built in, or unknown to this kernel. Raises `FledgeError` if a module cannot be read.
    """
    files = _find_files(folder)
    order: dict[str, Module] = {}

    def add(name: str, users: frozenset[str]) -> None:
        if name in order or name not in files or name in users:
            return
        data = _read(files[name])
        depends = _DEPENDS.search(data)
        for each in depends[1].decode().split(",") if depends else ():
            add(_normal(each), users | {name})
        order[name] = Module(name, data)

    for name in names:
        add(_normal(name), frozenset())
    return list(order.values())


def _find_files(folder: Path) -> dict[str, Path]:
    """Return the file of each module, by its name."""
    found = {}
    for root, folders, files in os.walk(folder / "kernel"):
        folders.sort()
        for file in sorted(files):
            if match := _FILE_NAME.fullmatch(file):
                found[_normal(match["name"])] = Path(root) / file
    return found


def _normal(name: str) -> str:
    """Return a name as the kernel has it: without dashes."""
    return name.replace("-", "_")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MODULE_SIZE + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    for magic, new in _DECOMPRESSORS.items():
        if data.startswith(magic):
            whole = bytearray()
            try:
                for piece in member(data, iter(()), new()):
                    whole += piece
                    if len(whole) > MAX_MODULE_SIZE:
                        break
            except CorruptError as error:
                raise CorruptError(
                    f"{path}: {error.message}", "Install the kernel again."
                ) from error
            data = bytes(whole)
    if len(data) > MAX_MODULE_SIZE:
        raise FledgeError(f"{path} has more than {MAX_MODULE_SIZE >> 20} MiB")
    return data
