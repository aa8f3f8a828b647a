"""Stamps: how a blob whose SHA-256 digest was computed before is verified faster.

SHA-256 of a cached layer takes ten times as long as reading it. Whoever computes it leaves a stamp:
which file that was (device, inode, size, times, and the boot of the machine), and the CRC-32 of its
content. Like git's index, a stamp vouches for a file as long as it is the same one:

- A file that is written, replaced, copied, restored from an archive or touched has another inode or
  another time of change (ctime), which the kernel sets and no program can. Its digest is computed.
- A disk that returns other bytes than were stored changes no time; that is what the CRC is for.
- A stamp that comes with a restored or shared cache is of another boot, or of another user. It
  counts for nothing, and neither does one that is damaged.

So a stamp does not protect from programs of this user that write stamps themselves. These could as
well replace the artifact. `Cache.find` and ``fledge cache verify`` ignore stamps.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from contextlib import suppress
from pathlib import Path
from threading import Event

import msgspec
from isal.isal_zlib import crc32

from fledge.tree.content import Blob, is_intact, open_content, read_blob

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""A random number that the kernel chooses when it starts (random(4))."""

SETTLING = 2 * 10**9
"""Nanoseconds after a change in which another change may leave the same time: no common filesystem
counts in longer steps. See "racy-git" in git's documentation."""

MAX_SIZE = 1024
"""Maximum bytes in a stamp."""


class Identity(msgspec.Struct, frozen=True):
    """Tells a file from all others, and from itself after a change."""

    boot: str
    """The boot of the machine, as in `BOOT_ID`."""
    device: int
    inode: int
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970, like `changed`."""
    changed: int


class Stamp(msgspec.Struct, frozen=True):
    """What is known of a blob whose SHA-256 digest was computed. It is stored as JSON."""

    identity: Identity
    digest: str
    """The digest, in hexadecimal."""
    crc32: int
    """The CRC-32 of the content, as in gzip (RFC 1952 section 8)."""


def is_unchanged(blob: Blob, stamp_file: io.FileIO | None, stop: Event) -> bool:
    """Return whether a blob has its digest: by its stamp or, if that does not fit, by SHA-256.

    ``stamp_file`` is open for reading and writing, and holds the stamp that an earlier call left;
    None if the cache cannot be written. Setting ``stop`` ends the reading early, and it counts as
    damaged. Raises `FledgeError` if the blob cannot be read, `OSError` if the stamp cannot.
    """
    if stamp_file is None or not _is_own(stamp_file.fileno()):
        return is_intact(blob, stop)
    with open_content(blob) as file:
        before = _identify(file)
        stamp = _load(stamp_file)
        if stamp and stamp.identity == before and stamp.digest == blob.digest.hex:
            crc = 0
            for piece in read_blob(blob, stop):
                crc = crc32(piece, crc)
            if crc == stamp.crc32:
                return not stop.is_set()
        # The time of the stamp's file is the one that the filesystem would give to a change now.
        os.utime(stamp_file.fileno())
        now = os.fstat(stamp_file.fileno()).st_mtime_ns
        sha256, crc = hashlib.sha256(), 0
        for piece in read_blob(blob, stop):
            sha256.update(piece)
            crc = crc32(piece, crc)
        if sha256.hexdigest() != blob.digest.hex:
            return False
        if before and before.changed + SETTLING <= now and _identify(file) == before:
            _save(stamp_file, Stamp(before, blob.digest.hex, crc))
        return True


def _is_own(file: int) -> bool:
    """Return whether only this user can write to a file."""
    status = os.fstat(file)
    is_private = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return stat.S_ISREG(status.st_mode) and is_private


def _identify(file: int) -> Identity | None:
    """Return the identity of an open file; None if other users or an earlier boot may have it."""
    try:
        boot = BOOT_ID.read_text().strip()
    except OSError:
        return None
    if not _is_own(file):
        return None
    status = os.fstat(file)
    return Identity(
        boot,
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _load(file: io.FileIO) -> Stamp | None:
    """Return the stamp in a file; None if there is none, or it is damaged."""
    try:
        return msgspec.json.decode(os.pread(file.fileno(), MAX_SIZE, 0), type=Stamp)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _save(file: io.FileIO, stamp: Stamp) -> None:
    """Replace the stamp in a file. One that is only half written does not decode.

    On a full disk there is none, and the next build computes the digest again.
    """
    data = msgspec.json.encode(stamp)
    with suppress(OSError):
        os.pwrite(file.fileno(), data, 0)
        os.ftruncate(file.fileno(), len(data))
