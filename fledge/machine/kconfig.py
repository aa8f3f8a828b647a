"""Reads the configuration of a Linux kernel: a ``.config``, as kconfig writes it.

It is text, a line for each option::

    # Linux/x86 6.1.192 Kernel Configuration
    CONFIG_X86_64=y
    CONFIG_EXT4_FS=m
    # CONFIG_XFS_FS is not set
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

import msgspec

from fledge.errors import MalformedError

MAX_CONFIG_SIZE = 4 << 20
"""Maximum bytes of a configuration. The largest in use have 0.3 MiB."""

_VERSION = re.compile(r"^# Linux/\S+ (\d{1,3})\.(\d{1,4})\S* Kernel Configuration$", re.MULTILINE)
_OPTION = re.compile(r"^CONFIG_(\w+)=(y|m)$", re.MULTILINE)
_ANY_OPTION = re.compile(r"^(?:# )?CONFIG_\w+[= ]", re.MULTILINE)
_WHOLE = re.compile(r"^(?:# )?CONFIG_BINFMT_ELF\b", re.MULTILINE)

ARCHITECTURES = {
    "X86_64": "amd64",
    "X86_32": "386",
    "ARM64": "arm64",
    "ARM": "arm",
    "RISCV": "riscv64",
    "S390": "s390x",
    "PPC64": "ppc64le",
    "LOONGARCH": "loong64",
}
"""The option of each architecture, and its OCI name."""


class State(Enum):
    """Where a kernel has the code of an option."""

    BUILT_IN = "built in"
    MODULE = "module"
    MISSING = "missing"


class KernelConfig(msgspec.Struct, frozen=True):
    """The configuration of a kernel."""

    source: str
    """Where it is from, in words."""
    version: tuple[int, int] | None
    """The version of Linux, such as (6, 1). None: unknown."""
    architecture: str | None
    """The architecture (OCI name). None: unknown."""
    options: Mapping[str, State]
    """Without ``CONFIG_``. Options that are not in it are missing from the kernel."""

    def state(self, option: str) -> State:
        """Return where the kernel has the code of an option."""
        return self.options.get(option, State.MISSING)


def parse(data: bytes, source: str) -> KernelConfig:
    """Parse the text of a configuration.

    Raises `MalformedError` if it is none, or only the part of one that is not default.
    """
    if len(data) > MAX_CONFIG_SIZE:
        raise MalformedError(f"it has more than {MAX_CONFIG_SIZE >> 20} MiB")
    text = data.decode("ascii", "replace").replace("\r\n", "\n")
    if not _ANY_OPTION.search(text):
        raise MalformedError("it is neither a kernel nor the configuration of one")
    if not _WHOLE.search(text):
        raise MalformedError(
            "it is only a part of a kernel configuration, without CONFIG_BINFMT_ELF"
        )
    states = {"y": State.BUILT_IN, "m": State.MODULE}
    options = {name: states[value] for name, value in _OPTION.findall(text)}
    version = _VERSION.search(text)
    return KernelConfig(
        source,
        (int(version[1]), int(version[2])) if version else None,
        next((name for option, name in ARCHITECTURES.items() if option in options), None),
        options,
    )
