"""Makes the kernel refuse system calls, as one that lacks them does."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

NUMBERS = {
    "x86_64": {"fcntl": 72, "flock": 73},
    "aarch64": {"fcntl": 25, "flock": 32},
}
OFD_COMMANDS = (36, 37, 38)
"""F_OFD_GETLK, F_OFD_SETLK and F_OFD_SETLKW."""

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def refuse(call: str) -> None:
    """Refuse flock, or fcntl for open file description locks, to this process (seccomp(2))."""
    refused = ERRNO | (errno.EINVAL if call == "fcntl" else errno.ENOLCK)
    number = NUMBERS[platform.machine()][call]
    program = [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 1, 0, number), (RETURN, 0, 0, ALLOW)]
    if call == "fcntl":
        program.append((LOAD, 0, 0, 24))  # the second argument
        for left, command in enumerate(reversed(OFD_COMMANDS)):
            program.append((JUMP_IF_EQUAL, len(OFD_COMMANDS) - left, 0, command))
        program.append((RETURN, 0, 0, ALLOW))
    program.append((RETURN, 0, 0, refused))
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    kept = ctypes.create_string_buffer(code)
    header = struct.pack("HP", len(program), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header)):
        assert libc.prctl(*arguments, 0, 0) == 0, ctypes.get_errno()
