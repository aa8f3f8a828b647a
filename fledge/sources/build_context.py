"""Reads the context of a Dockerfile: the files that it can copy into the image.

What fledge itself writes into the folder does not belong to the context: a lock, an artifact and
its documents, a private folder. Otherwise each build would change the context of the next one.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, FledgeError, MalformedError, reason, unreadable
from fledge.host.work import PREFIX
from fledge.sources import dockerignore, ownfiles
from fledge.sources.dockerignore import Matches, Pattern
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

MAX_IGNORE_SIZE = 1 << 20
"""Maximum bytes of a ``.dockerignore``."""


class Context(msgspec.Struct, frozen=True):
    """The files that a Dockerfile can see, at one time."""

    digest: Digest
    """Covers the path, type and mode of each entry, the content of files and the target of
    symlinks, in the order of the paths. Owners and times do not count, nor does the content of the
    Dockerfile itself, which has a digest of its own."""
    files: int
    """The number of regular files."""
    newest: str | None
    """The path of the regular file, other than the Dockerfile, that was changed last; None: there
    is none."""
    ignore: str
    """A ``.dockerignore`` that leaves out the same files, for any builder: without comments,
    and with the files that do not belong to the context."""


def ignore_file(dockerfile: Path, folder: Path) -> Path | None:
    """Return the ``.dockerignore`` that counts: that of the Dockerfile, or that of the folder.

    None: there is neither.
    """
    for path in (Path(f"{dockerfile}{dockerignore.SUFFIX}"), folder / dockerignore.SUFFIX):
        if path.exists():
            return path
    return None


def read(dockerfile: Path, folder: Path, secrets: Iterable[Path] = ()) -> Context:
    """Read the context in a folder. The files ``secrets`` do not belong to it.

    Raises `ConfigError` if the ``.dockerignore`` is malformed, `FledgeError` if a file cannot be
    read.
    """
    patterns = _patterns(ignore_file(dockerfile, folder))
    hidden = {str(path.resolve()) for path in secrets}
    root = str(folder.resolve())
    itself = str(dockerfile.resolve())
    own: list[str] = []
    files, newest = 0, (-1, "")
    digest = hashlib.sha256()
    try:
        for path, status in _walk(root, patterns, hidden, own):
            place = f"{root}/{path}"
            _update(digest, None if place == itself else place, path, status)
            if stat.S_ISREG(status.st_mode):
                files += 1
                if place != itself:
                    newest = max(newest, (status.st_mtime_ns, path))
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    lines = [*map(str, patterns), f"**/{PREFIX}*", *map(dockerignore.excluding, own)]
    ignore = "".join(f"{line}\n" for line in lines)
    return Context(Digest(digest.hexdigest()), files, newest[1] or None, ignore)


def _patterns(path: Path | None) -> list[Pattern]:
    if path is None:
        return []
    try:
        raw = read_regular(path, MAX_IGNORE_SIZE + 1)
        if len(raw) > MAX_IGNORE_SIZE:
            raise MalformedError(f" it is larger than {MAX_IGNORE_SIZE} bytes")
        return dockerignore.parse(raw.decode("utf-8", "surrogateescape"))
    except MalformedError as error:
        raise ConfigError(f"{path}:{error}", "See docs.docker.com, .dockerignore.") from error
    except OSError as error:
        raise FledgeError(f"{path} could not be read: {reason(error)}") from error


def _walk(
    root: str, patterns: Sequence[Pattern], hidden: Collection[str], own: list[str]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the relative path and status of each entry, parents first, in the order of the paths.

    Appends to ``own`` the paths of what is ``hidden``, and of what fledge has written.
    """

    def entries(parent: str, of_parent: Matches) -> Iterator[tuple[str, Matches]]:
        """Yield the paths in a folder, and what matches the folder."""
        folder = f"{root}/{parent}"
        names = sorted(os.listdir(folder), key=os.fsencode)
        written = ownfiles.among(Path(folder), names)
        for name in names:
            path = f"{parent}/{name}" if parent else name
            if name in written or f"{root}/{path}" in hidden:
                own.append(path)
            elif not name.startswith(PREFIX):
                yield path, of_parent

    has_exceptions = any(pattern.is_exception for pattern in patterns)
    # A folder that is left out counts as soon as something in it is taken in again.
    pending: list[tuple[str, os.stat_result]] = []
    stack = [entries("", (False,) * len(patterns))]
    while stack:
        try:
            path, of_parent = next(stack[-1])
        except StopIteration:
            stack.pop()
            continue
        pending = [each for each in pending if path.startswith(f"{each[0]}/")]
        status = os.lstat(f"{root}/{path}")
        found = dockerignore.matches(patterns, path, of_parent)
        is_excluded = dockerignore.is_excluded(patterns, found)
        if not is_excluded:
            yield from pending
            pending.clear()
            yield path, status
        if stat.S_ISDIR(status.st_mode) and (has_exceptions or not is_excluded):
            if is_excluded:
                pending.append((path, status))
            stack.append(entries(path, found))


def _update(digest: hashlib._Hash, place: str | None, path: str, status: os.stat_result) -> None:
    """Hash one entry: its path, type and mode, and the digest of what is in it, at ``place``.

    None: its content does not count.
    """
    mode, inside = status.st_mode, b""
    if place is None:
        pass
    elif stat.S_ISREG(mode):
        inside = hash_file(Path(place)).digest.hex.encode()
    elif stat.S_ISLNK(mode):
        # Linux gives all symlinks one mode, other systems do not.
        mode, inside = stat.S_IFLNK, os.fsencode(os.readlink(place))
    for part in (os.fsencode(path), b"%o" % mode, inside):
        digest.update(b"%d:" % len(part))
        digest.update(part)
