"""Finds the configuration of the kernel that a person names: a profile, or a file."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, MalformedError
from fledge.machine import image, kconfig
from fledge.machine.kconfig import KernelConfig

_FOLDER = Path(__file__).parent / "profiles"

PROFILES = {
    name: _FOLDER / f"{name}.config"
    for name in ("debian", "firecracker", "kata", "libkrun", "volant")
}
"""The kernels that are known by name. Their files hold only the options that fledge asks for, and
say where these are from."""

VOLANT = "volant"
"""The one of them that Volant boots, and that a build has in mind if the config names none."""

_SOURCE = re.compile(rb"^# Source: (.+)$", re.MULTILINE)


class Kernel(msgspec.Struct, frozen=True):
    """A kernel that is to boot an artifact."""

    name: str
    """As the user names it: one of `PROFILES`, or a path."""
    config: KernelConfig

    @property
    def is_volant(self) -> bool:
        """Whether it is Volant's, which has an archive of its own."""
        return self.name == VOLANT


def find(what: str, folder: Path) -> KernelConfig:
    """Return the configuration of a kernel.

    ``what`` is the name of one of `PROFILES`, or the path, relative to ``folder``, of a kernel
    image or a configuration. Of a kernel that does not hold its configuration, the one beside it
    counts. Raises `ConfigError` if there is none, `CorruptError` if the file is damaged,
    `FledgeError` if it cannot be read.
    """
    if what in PROFILES:
        data = PROFILES[what].read_bytes()
        [source] = _SOURCE.findall(data)
        return _parse(data, PROFILES[what], f"{what}: {source.decode()}")
    path = folder / what
    if "/" not in what and not _is_there(path):
        raise ConfigError(
            f"{what} is neither a known kernel ({', '.join(PROFILES)}) nor a file",
            "Name one of them, a kernel image, or the .config of a kernel.",
        )
    found = image.read(path)
    if found.config is not None:
        return _parse(found.config, path, str(path))
    candidates = _beside(path, found.release)
    beside = next(filter(_is_there, candidates), None)
    if beside is None:
        raise ConfigError(
            f"{path} is a kernel that does not hold its configuration (CONFIG_IKCONFIG), and"
            f" {' and '.join(map(str, candidates)) or 'its release is unknown'}"
            f"{' do' if len(candidates) > 1 else ' does'} not exist",
            "Name the .config of the kernel instead.",
        )
    config = image.read(beside).config
    return _parse(config or b"", beside, str(beside))


def _parse(data: bytes, path: Path, source: str) -> KernelConfig:
    try:
        return kconfig.parse(data, source)
    except MalformedError as error:
        raise ConfigError(
            f"{path}: {error}",
            "Name a kernel or its whole .config; `make olddefconfig` completes one.",
        ) from error


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # Path.exists raises some, such as that for a name that is too long
        return False
    return True


def _beside(path: Path, release: str | None) -> list[Path]:
    """Return where distributions put the configuration of the kernel at ``path``.

    They are /boot/config-RELEASE for /boot/vmlinuz-RELEASE, and config in the folder of its
    modules, which may have the kernel too.
    """
    path = path.resolve()
    _, _, suffix = path.name.partition("-")
    releases = dict.fromkeys(filter(None, (suffix, release)))
    found = [path.with_name(f"config-{each}") for each in releases]
    if path.parent.name in releases or path.parent.name == release:
        found.append(path.with_name("config"))
    modules = path.parent.parent / "lib" / "modules"
    return found + [modules / each / "config" for each in releases]
