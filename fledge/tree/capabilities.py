"""Reads the capabilities of programs, which Linux keeps in an extended attribute.

    security.capability (struct vfs_cap_data in linux/capability.h), little endian

    0x00  u32  magic_etc      the revision in the top byte, bit 0: the capabilities are effective
    0x04  u32  permitted      bits 0 to 31
    0x08  u32  inheritable    bits 0 to 31
    0x0c  u32  permitted      bits 32 to 63; from revision 2 on
    0x10  u32  inheritable    bits 32 to 63; from revision 2 on
    0x14  u32  rootid         the user namespace's root; revision 3

What a revision does not have counts as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from fledge.tree.binary import Layout, u32

CAPABILITY = b"security.capability"
"""The name of the attribute."""

NAMES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid"),
    *("setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw"),
    *("ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct"),
    *("sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod"),
    *("lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog"),
    *("wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore"),
)
"""The names of all capabilities by number (capabilities(7)), without ``cap_``."""

_SIZES = {1: 0x0C, 2: 0x14, 3: 0x18}
"""Bytes of the attribute, by revision."""


class _Data(NamedTuple):
    magic: Annotated[int, u32(0x0)]
    permitted: Annotated[int, u32(0x4), u32(0xC)]
    inheritable: Annotated[int, u32(0x8), u32(0x10)]
    root: Annotated[int, u32(0x14)]


_DATA = Layout(_Data, size=0x18)


def capabilities(xattrs: Mapping[bytes, bytes]) -> str:
    """Return the capabilities of a file as getcap(8) prints them, such as ``cap_net_raw=ep``.

    Empty: it has none. A value that is not in this format is shown in hexadecimal.
    """
    value = xattrs.get(CAPABILITY)
    if value is None:
        return ""
    if len(value) < 4 or _SIZES.get(value[3]) != len(value):
        return f"malformed: {value[: _DATA.size].hex()}"
    data = _DATA.unpack_from(value.ljust(_DATA.size, b"\0"), 0)
    groups: dict[str, list[str]] = {}
    for number in range((data.permitted | data.inheritable).bit_length()):
        bit = 1 << number
        flags = "e" * (data.magic & 1)
        flags += "i" * bool(data.inheritable & bit) + "p" * bool(data.permitted & bit)
        if flags.strip("e"):
            name = NAMES[number] if number < len(NAMES) else str(number)
            groups.setdefault(flags, []).append(f"cap_{name}")
    return " ".join(f"{','.join(names)}={flags}" for flags, names in groups.items()) or "="
