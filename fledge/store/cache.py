"""The content-addressed cache: each blob is a file named by its SHA-256 digest.

    blobs/sha256/HEX   complete and verified blobs, which are never written again
    partial/           incomplete blobs, each locked by the process that writes it
    in-use             a byte for each blob, locked by the builds that use the blob

Builds that run at the same time share the cache. A killed build leaves at worst an incomplete
blob: the kernel drops its locks, and the next build that needs the blob continues the download.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import secrets
import shlex
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from fledge.errors import FledgeError, HostError, MalformedError
from fledge.tree.content import Blob, hash_file, update_hash
from fledge.tree.digest import Digest
from fledge.tree.regular import problem_of

CHOOSE_FOLDER = "Set FLEDGE_CACHE_DIR to a folder that you can write to."


class Partial:
    """An incomplete blob: a locked file that data is appended to.

    ``size`` (in bytes) and ``digest`` cover the data so far, which includes the data that an
    earlier build left.
    """

    def __init__(self, root: Path, path: Path, file: io.FileIO) -> None:
        self.path = path
        self.file = file
        self.size = 0
        self._root = root
        self._sha256 = hashlib.sha256()
        with _explained(root):
            file.seek(0)
            self.size = update_hash(self._sha256, file)

    @property
    def digest(self) -> Digest:
        """The digest of the data so far."""
        return Digest(self._sha256.hexdigest())

    def write(self, piece: bytes) -> None:
        """Append a piece of data. Raises `FledgeError` if the disk is full."""
        with _explained(self._root):
            left = memoryview(piece)
            while left:
                left = left[self.file.write(left) :]
        self.size += len(piece)
        self._sha256.update(piece)

    def restart(self) -> None:
        """Discard the data so far."""
        with _explained(self._root):
            self.file.truncate(0)
        self.size = 0
        self._sha256 = hashlib.sha256()


class CacheEntry(msgspec.Struct, frozen=True):
    """A file in the cache, as `Cache.entries` found it."""

    path: Path
    digest: Digest | None
    """The digest that the blob should have; None for an incomplete blob."""
    status: os.stat_result
    """``st_mtime`` is the time of the blob's last use."""


class _UseLocks:
    """Locks the blobs that a `Cache` has returned, for as long as this object lives.

    These are open file description locks (fcntl(2)): unlike flock they can cover a single byte,
    and unlike lockf they also work between threads of one process.
    """

    def __init__(self) -> None:
        self._file: io.FileIO | None = None
        self._opening = threading.Lock()

    def add(self, path: Path, digest: Digest) -> None:
        """Keep `Cache.remove` from removing the blob, which need not exist yet."""
        with self._opening:
            if self._file is None:
                # A shared lock needs only read access, so the cache may belong to another user.
                self._file = io.FileIO(path, opener=_open_to_read)
        _lock_byte(self._file, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, digest)


class Cache(msgspec.Struct, frozen=True):
    """The cache in the folder ``root``, which is created at the first write.

    Blobs that `find`, `claim` and `add` return stay in the cache as long as this object lives.
    Every method raises `HostError` if the folder cannot be used and `FledgeError` if its disk is
    full.
    """

    root: Path
    _locks: _UseLocks = msgspec.field(default_factory=_UseLocks)

    def path(self, digest: Digest) -> Path:
        """Return the path of the blob with that digest, whether or not it is in the cache."""
        return self.root / "blobs" / "sha256" / digest.hex

    def find(self, digest: Digest) -> Blob | None:
        """Return the blob with that digest, or None if it is missing or damaged.

        Reads the whole blob to verify it. A damaged blob stays until a good one replaces it:
        removing it could remove a good one that another build just put there.
        """
        found = self.claim(digest)
        with _explained(self.root), suppress(FileNotFoundError):
            if found and hash_file(found.path) == found:
                return found
        return None

    def claim(self, digest: Digest) -> Blob | None:
        """Return the blob with that digest, unverified, or None if it is missing."""
        path = self.path(digest)
        with _explained(self.root):
            try:
                self._use(digest)
                status = path.stat()
            except FileNotFoundError:
                return None
            if problem_of(status):
                return None  # nobody's blob: a good one replaces it, as it does a damaged one
            with suppress(OSError):  # a user who may only read a cache cannot prune it either
                os.utime(path)
        return Blob(path, 0, status.st_size, digest)

    @contextmanager
    def partial(self, digest: Digest | None, waiting: Callable[[], None]) -> Iterator[Partial]:
        """Open the incomplete blob with that digest, with the data that an earlier build left.

        Only one process has it open at a time; if that is another one, ``waiting`` is called
        before this one waits. If the digest is not known yet (None), the blob starts empty, and
        is removed at the end unless `add` completed it.
        """
        name = digest.hex if digest else f"unpinned-{secrets.token_hex(8)}"
        path = self.root / "partial" / name
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _open_locked(path, waiting)
        with file:
            partial = Partial(self.root, path, file)
            try:
                yield partial
            finally:
                resumable = digest and partial.size > 0
                if not resumable and _is_at(file, path):
                    path.unlink()

    def add(self, partial: Partial) -> Blob:
        """Complete an incomplete blob: move it to its place in the cache, under its digest."""
        digest = partial.digest
        path = self.path(digest)
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._use(digest)
            # Not synced: if a crash loses data, the digest will not match.
            partial.path.rename(path)
            # Only after the rename: a read-only file that is still partial could not be continued.
            os.fchmod(partial.file.fileno(), 0o444)
        return Blob(path, 0, partial.size, digest)

    def store(self, data: bytes) -> Blob:
        """Add a blob from memory."""
        with self.partial(None, lambda: None) as partial:
            partial.write(data)
            return self.add(partial)

    def entries(self) -> list[CacheEntry]:
        """List all blobs, complete and incomplete."""
        found = []
        with _explained(self.root):
            for folder in (self.root / "blobs" / "sha256", self.root / "partial"):
                with suppress(FileNotFoundError), os.scandir(folder) as files:
                    complete = folder.name == "sha256"
                    for file in files:
                        digest = _digest_of_name(file.name) if complete else None
                        if complete and digest is None:
                            continue  # not one of fledge's files
                        with suppress(FileNotFoundError):
                            status = file.stat(follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode):
                                found.append(CacheEntry(Path(file.path), digest, status))
        return found

    def remove(self, entry: CacheEntry) -> bool:
        """Remove a file. Return False if it is in use, or was used or replaced since `entries`."""
        with _explained(self.root), ExitStack() as opened:
            try:
                if entry.digest:
                    uses = opened.enter_context(self._in_use.open("a+b", buffering=0))
                    _lock_byte(uses, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, entry.digest)
                else:
                    file = opened.enter_context(entry.path.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                now = entry.path.stat()
                if _is_unchanged(entry.status, now):
                    entry.path.unlink()
                    return True
            except (BlockingIOError, FileNotFoundError):
                pass
            return False

    @property
    def _in_use(self) -> Path:
        return self.root / "in-use"

    def _use(self, digest: Digest) -> None:
        self._locks.add(self._in_use, digest)


class BackgroundVerifier:
    """Verifies blobs of a cache in a thread of its own, while the caller already uses them."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._intact: list[Future[bool]] = []

    def close(self) -> None:
        """Stop the thread and drop the blobs that it has not verified yet."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def claim(self, digest: Digest) -> Blob | None:
        """Return the blob, or None, as `Cache.claim` does, and verify it in the background.

        The caller must discard everything made from the blob unless `passes` returns True.
        """
        blob = self._cache.claim(digest)
        if blob:
            self._intact.append(self._thread.submit(self._is_intact, blob))
        return blob

    def passes(self) -> bool:
        """Wait until all claimed blobs are verified and return whether all are intact."""
        return all(future.result() for future in self._intact)

    def _is_intact(self, blob: Blob) -> bool:
        try:
            return hash_file(blob.path, self._stop) == blob
        except OSError:
            return False


def _digest_of_name(name: str) -> Digest | None:
    """Return the digest that a blob's file is named by, or None if the name is not a digest."""
    try:
        return Digest.from_hex(name)
    except MalformedError:
        return None


def _open_to_read(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _lock_byte(file: io.FileIO, command: int, kind: int, digest: Digest) -> None:
    """Lock a blob's byte. Blobs that share a byte are only kept longer than necessary."""
    position = int(digest.hex[:15], 16)
    # struct flock: l_type, l_whence, l_start, l_len, l_pid
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, position, 1, 0)
    fcntl.fcntl(file, command, request)


def _is_unchanged(before: os.stat_result, now: os.stat_result) -> bool:
    return os.path.samestat(before, now) and before.st_mtime_ns == now.st_mtime_ns


def _open_locked(path: Path, waiting: Callable[[], None]) -> io.FileIO:
    """Open a file for appending, create it if it is missing, and lock it until it is closed."""
    while True:
        with ExitStack() as opened:
            file = opened.enter_context(path.open("a+b", buffering=0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            # The previous owner of the lock may have renamed or removed the file.
            if _is_at(file, path):
                opened.pop_all()
                return file


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Return whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a `FledgeError` about the cache in ``root``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FledgeError(
                f"no space left for the cache in {root}",
                "Free some space, or set FLEDGE_CACHE_DIR to a folder on another disk.",
            ) from error
        reason = (error.strerror or str(error)).lower()
        raise HostError(
            f"the cache in {root} cannot be used: {reason}", _hint(error, root)
        ) from error


def _hint(error: OSError, root: Path) -> str:
    """Return what to do if the cache cannot be used: most often root owns a part, after sudo."""
    named = [Path(name) for name in (error.filename, error.filename2) if name]
    if os.geteuid() != 0 and any(_is_of_root(path, root) for path in named):
        return (
            f"root owns a part of it, perhaps since fledge was run with sudo: run `sudo chown -R"
            f" {os.geteuid()} {shlex.quote(str(root))}`. {CHOOSE_FOLDER}"
        )
    return CHOOSE_FOLDER


def _is_of_root(path: Path, root: Path) -> bool:
    """Return whether ``path`` is in the cache ``root`` and belongs to the user root.

    If it is missing, that is asked of the folder that it would be in.
    """
    while path.is_relative_to(root):
        with suppress(OSError):  # it is missing, or in a folder that this user may not enter
            return path.stat().st_uid == 0
        path = path.parent
    return False
