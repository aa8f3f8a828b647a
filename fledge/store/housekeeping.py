"""Lists, verifies and prunes the cache."""

from __future__ import annotations

import time

import msgspec

from fledge.errors import CorruptError, reason, unreadable
from fledge.report import Reporter
from fledge.store.cache import Cache, CacheEntry
from fledge.tree.compression import find_decompression
from fledge.tree.content import hash_file

TAR_MAGIC = slice(257, 262)
"""The position of ``ustar`` in the first header of a tar (POSIX.1-2017, pax, "ustar Interchange
Format")."""


class Amount(msgspec.Struct, frozen=True):
    """The number and total size of some files."""

    files: int = 0
    size: int = 0
    """Bytes."""

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.files + other.files, self.size + other.size)


class Pruned(msgspec.Struct, frozen=True):
    """The result of `prune`."""

    removed: Amount
    in_use: Amount
    """Files that were due for removal, but that a build uses."""
    left: Amount
    """All files that are in the cache now."""


def contents(cache: Cache) -> dict[str, Amount]:
    """Return the amount of each kind of file. The first bytes of a file decide its kind.

    Raises `FledgeError` if a file cannot be read.
    """
    amounts: dict[str, Amount] = {}
    for entry in cache.entries():
        try:
            kind = _kind(entry)
        except FileNotFoundError:  # removed by another process
            continue
        except OSError as error:
            raise unreadable(entry.path, error) from error
        amounts[kind] = amounts.get(kind, Amount()) + _amount(entry)
    return dict(sorted(amounts.items()))


def verify(cache: Cache, reporter: Reporter) -> Amount:
    """Read every blob and return the amount that is intact.

    Damaged blobs are removed unless a build uses them; the next build fetches them again. Raises
    `CorruptError` that lists them.
    """
    blobs = [entry for entry in cache.entries() if entry.digest]
    intact = Amount()
    problems = []
    with reporter.work("verifying") as transfer:
        transfer.restart(0, sum(entry.status.st_size for entry in blobs))
        for entry in blobs:
            try:
                actual = hash_file(entry.path).digest
                problem = f"has sha256 {actual.hex}"
            except FileNotFoundError:
                continue
            except OSError as error:
                actual = None
                problem = f"cannot be read: {reason(error)}"
            transfer.advance(entry.status.st_size)
            if actual == entry.digest:
                intact += _amount(entry)
            else:
                outcome = "removed" if cache.remove(entry) else "in use, so it stays"
                problems.append(f"{entry.path} {problem}; {outcome}")
    if problems:
        raise CorruptError(
            f"damaged files in the cache, {len(problems)} of {len(problems) + intact.files}:",
            "The next build that needs them fetches them again. Check the disk.",
            problems,
        )
    return intact


def prune(cache: Cache, older_than: float | None, max_size: int | None) -> Pruned:
    """Remove files that were last used more than ``older_than`` seconds ago, then the least
    recently used ones until at most ``max_size`` bytes are left. None: no such limit. Files that
    a build uses stay.
    """
    start = time.time()
    left, removed, in_use = (Amount() for _ in range(3))
    # The path decides between equal times, which are common on filesystems with coarse times.
    entries = sorted(cache.entries(), key=lambda entry: (entry.last_use, entry.path))
    size = sum(entry.status.st_size for entry in entries)
    for entry in entries:
        old = older_than is not None and start - entry.last_use / 10**9 > older_than
        if not old and (max_size is None or size <= max_size):
            left += _amount(entry)
        elif cache.remove(entry):
            removed += _amount(entry)
            size -= entry.status.st_size
        else:
            in_use += _amount(entry)
    return Pruned(removed, in_use, left + in_use)


def _kind(entry: CacheEntry) -> str:
    if not entry.digest:
        return "unfinished downloads"
    with entry.path.open("rb") as file:
        start = file.read(512)
    if find_decompression(start):
        return "compressed layers"
    if start[TAR_MAGIC] == b"ustar":
        return "layers"
    if start.startswith(b"{"):
        return "manifests and configs"
    if start.startswith((b"\x7fELF", b"#!")):
        return "programs"
    return "others"


def _amount(entry: CacheEntry) -> Amount:
    return Amount(1, entry.status.st_size)
