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
    """A ``.dockerignore`` that leaves out all other files, each by its whole path. Only a folder
    in which nothing is left is emptied by ``FOLDER/*``, because BuildKit takes 1 MiB of lines."""


def ignore_file(dockerfile: Path, folder: Path) -> Path | None:
    """Return the ignore file that counts, whichever builder there is. None: there is none.

    The order is that of podman and buildah (containers/buildah, pkg/parse, ContainerIgnoreFile),
    which agrees with docker's about ``.dockerignore``: the first of DOCKERFILE.dockerignore,
    DOCKERFILE.containerignore, .containerignore and .dockerignore.
    """
    of_dockerfile = [Path(f"{dockerfile}{suffix}") for suffix in dockerignore.SUFFIXES]
    of_folder = [folder / suffix for suffix in reversed(dockerignore.SUFFIXES)]
    return next((path for path in (*of_dockerfile, *of_folder) if path.exists()), None)


def read(dockerfile: Path, folder: Path, secrets: Iterable[Path] = ()) -> Context:
    """Read the context in a folder. The files ``secrets`` do not belong to it.

    Raises `ConfigError` if the ``.dockerignore`` is malformed, `FledgeError` if a file cannot be
    read.
    """
    patterns = _patterns(ignore_file(dockerfile, folder))
    hidden = {str(path.resolve()) for path in secrets}
    root = str(folder.resolve())
    left_out: dict[str, None] = {}
    filled: set[str] = set()
    itself = str(dockerfile.resolve())
    files, newest = 0, (-1, "")
    digest = hashlib.sha256()
    try:
        for path, status in _walk(root, patterns, hidden, left_out):
            place = f"{root}/{path}"
            _update(digest, None if place == itself else place, path, status)
            filled.add(_parent(path))
            if stat.S_ISREG(status.st_mode):
                files += 1
                if place != itself:
                    newest = max(newest, (status.st_mtime_ns, path))
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    ignore = "".join(_lines(left_out, filled))
    return Context(Digest(digest.hexdigest()), files, newest[1] or None, ignore)


def _lines(left_out: Collection[str], filled: Collection[str]) -> Iterator[str]:
    """Yield the lines of `Context.ignore`. ``filled``: the folders in which something is left."""
    yield f"**/{PREFIX}*\n"  # private folders come and go during a build
    emptied = set()
    for path in left_out:
        parent = _parent(path)
        if not parent or parent in filled:
            yield f"{dockerignore.excluding(path)}\n"
        elif parent not in left_out and parent not in emptied:
            emptied.add(parent)
            yield f"{dockerignore.excluding(parent)}/*\n"


def _parent(path: str) -> str:
    """Return the folder of a path; that of the context is empty."""
    return path.rpartition("/")[0]


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
    root: str, patterns: Sequence[Pattern], hidden: Collection[str], left_out: dict[str, None]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the relative path and status of each entry, parents first, in the order of the paths.

    Adds the paths of all other entries to ``left_out``: those that patterns exclude, those that
    are ``hidden``, and what fledge has written. A folder there may stand for all in it.
    """

    def entries(parent: str, of_parent: Matches) -> Iterator[tuple[str, Matches]]:
        """Yield the paths in a folder, and what matches the folder."""
        folder = f"{root}/{parent}"
        names = sorted(os.listdir(folder), key=os.fsencode)
        written = ownfiles.among(Path(folder), names)
        for name in names:
            path = f"{parent}/{name}" if parent else name
            if name in written or f"{root}/{path}" in hidden:
                left_out[path] = None
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
            for each in pending:
                del left_out[each[0]]
                yield each
            pending.clear()
            yield path, status
        else:
            left_out[path] = None
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
