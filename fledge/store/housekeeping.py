"""What the cache holds, whether it is sound, and what of it can go."""

from __future__ import annotations

import time

import msgspec

from fledge.errors import CorruptError, reason, unreadable
from fledge.report import Reporter
from fledge.store.cache import Cache, Stored
from fledge.tree.compression import GZIP_MAGIC, ZSTD_MAGIC
from fledge.tree.content import whole_file

TAR_MAGIC = slice(257, 262)
"""Where ``ustar`` stands in the first header of a tar (POSIX.1-2017, pax, "ustar Interchange
Format")."""


class Amount(msgspec.Struct, frozen=True):
    """So many files of so many bytes together."""

    files: int = 0
    size: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.files + other.files, self.size + other.size)


class Pruned(msgspec.Struct, frozen=True):
    """What `prune` did."""

    removed: Amount
    in_use: Amount
    """What should have gone, but a build uses it."""
    left: Amount
    """All that is in the cache now."""


def contents(cache: Cache) -> dict[str, Amount]:
    """How much there is of each kind, by what the files begin with."""
    amounts: dict[str, Amount] = {}
    for stored in cache.stored():
        try:
            kind = _kind(stored)
        except FileNotFoundError:  # it is gone meanwhile
            continue
        except OSError as error:
            raise unreadable(stored.path, error) from error
        amounts[kind] = amounts.get(kind, Amount()) + _amount(stored)
    return dict(sorted(amounts.items()))


def verify(cache: Cache, reporter: Reporter) -> Amount:
    """Read every blob; how much was found sound.

    Raises `CorruptError` that lists the damaged ones. They are removed, unless a build uses
    them: nothing but the same bytes from elsewhere can mend them, and the next build that
    wants one would not trust it anyhow.
    """
    blobs = [stored for stored in cache.stored() if stored.sha256]
    sound = Amount()
    problems = []
    with reporter.transfer("verifying") as transfer:
        transfer.restart(0, sum(stored.status.st_size for stored in blobs))
        for stored in blobs:
            try:
                actual = f"sha256 {whole_file(stored.path).sha256}"
            except FileNotFoundError:
                continue
            except OSError as error:
                actual = f"nothing that can be read: {reason(error)}"
            transfer.advance(stored.status.st_size)
            if actual == f"sha256 {stored.sha256}":
                sound += _amount(stored)
            else:
                fate = "removed" if cache.remove(stored) else "in use, so it stays"
                problems.append(f"{stored.path} has {actual}; {fate}")
    if problems:
        raise CorruptError(
            f"{len(problems)} of {len(problems) + sound.files} files in the cache are damaged:"
            + "".join(f"\n  {problem}" for problem in problems),
            "The next build that needs them fetches them again. Check the disk.",
        )
    return sound


def prune(cache: Cache, older_than: float | None, max_size: int | None) -> Pruned:
    """Remove what was not used for ``older_than`` seconds, then the longest unused until
    ``max_size`` bytes are left. What a build uses stays.
    """
    start = time.time()
    left, removed, in_use = (Amount() for _ in range(3))
    # By name too: filesystems may keep times coarsely.
    stored = sorted(cache.stored(), key=lambda each: (each.status.st_mtime_ns, each.path))
    size = sum(each.status.st_size for each in stored)
    for each in stored:
        old = older_than is not None and start - each.status.st_mtime > older_than
        if not old and (max_size is None or size <= max_size):
            left += _amount(each)
        elif cache.remove(each):
            removed += _amount(each)
            size -= each.status.st_size
        else:
            in_use += _amount(each)
    return Pruned(removed, in_use, left + in_use)


def _kind(stored: Stored) -> str:
    if not stored.sha256:
        return "unfinished downloads"
    with stored.path.open("rb") as file:
        start = file.read(512)
    if start.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        return "compressed layers"
    if start[TAR_MAGIC] == b"ustar":
        return "layers"
    if start.startswith(b"{"):
        return "manifests and configs"
    if start.startswith((b"\x7fELF", b"#!")):
        return "programs"
    return "others"


def _amount(stored: Stored) -> Amount:
    return Amount(1, stored.status.st_size)
