"""The content-addressed store: files under the SHA-256 digest of what they hold.

    blobs/sha256/HEX   finished and verified, never written to again
    partial/           unfinished; each is locked by the one process that writes it
    in-use             a byte for each blob, locked by the builds that use it

Builds that run at once share it. A killed one leaves nothing worse than a partial: the
kernel drops its locks, and the next build that wants that blob goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from fledge.errors import CorruptError, FledgeError, HostError
from fledge.tree.content import READ_SIZE, Blob, whole_file

CHUNK = 4 << 20
"""Bytes that a thread reads and digests at once."""

SHA256 = re.compile(r"[0-9a-f]{64}")
USABLE_FOLDER = "Set FLEDGE_CACHE_DIR to a folder that you can write to."


class Partial:
    """An unfinished blob: a locked file that grows at its end or starts again.

    ``size`` in bytes and ``sha256`` are of what it holds so far.
    """

    def __init__(self, root: Path, path: Path, file: io.FileIO) -> None:
        self.path = path
        self.file = file
        self.size = 0
        self._root = root
        self._digest = hashlib.sha256()
        with _explained(root):
            file.seek(0)
            while piece := file.read(READ_SIZE):
                self._count(piece)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> None:
        """Append. Raises `FledgeError` if the disk is full."""
        with _explained(self._root):
            left = memoryview(piece)
            while left:
                left = left[self.file.write(left) :]
        self._count(piece)

    def restart(self) -> None:
        """Forget what is there."""
        with _explained(self._root):
            self.file.truncate(0)
        self.size = 0
        self._digest = hashlib.sha256()

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        self._digest.update(piece)


class Stored(msgspec.Struct, frozen=True):
    """A file in the cache as it was when somebody looked."""

    path: Path
    sha256: str | None
    """What a blob must have; None for what is unfinished."""
    status: os.stat_result
    """``st_mtime`` is when it was last used."""


class _Uses:
    """The blobs that a `Cache` has given out, locked as long as this lives.

    These are locks of an open file (fcntl(2), "Open file description locks"): unlike flock
    they can be of one byte, and unlike lockf they hold against others in the same process.
    """

    def __init__(self) -> None:
        self._file: io.FileIO | None = None
        self._opening = threading.Lock()

    def add(self, path: Path, sha256: str) -> None:
        """Keep `Cache.remove` from that blob, whether it is there yet or not."""
        with self._opening:
            if self._file is None:
                # To read is enough for a lock that is shared: the cache may be another user's.
                self._file = io.FileIO(path, opener=_open_to_read)
        _lock_byte(self._file, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, sha256)


class Cache(msgspec.Struct, frozen=True):
    """The store in the folder ``root``, which comes into being when it is first written to.

    What `find` and `add` return stays in place as long as the object does. Every method raises
    `HostError` if the folder cannot be used and `FledgeError` if its disk is full.
    """

    root: Path
    _uses: _Uses = msgspec.field(default_factory=_Uses)

    @classmethod
    def default(cls) -> Cache:
        """The user's cache; its folder is named by the environment.

        ``$FLEDGE_CACHE_DIR``, else ``fledge`` in ``$XDG_CACHE_HOME``, else ``~/.cache/fledge``;
        a relative ``$XDG_CACHE_HOME`` is invalid and ignored (XDG Base Directory Specification).
        """
        if own := os.environ.get("FLEDGE_CACHE_DIR"):
            return cls(Path(own).absolute())
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if shared.is_absolute():
            return cls(shared / "fledge")
        try:
            return cls(Path.home() / ".cache" / "fledge")
        except RuntimeError:
            raise HostError("there is no home folder for the cache", USABLE_FOLDER) from None

    def path(self, sha256: str) -> Path:
        """Where the blob of that digest is, if it is there at all.

        Raises `CorruptError` if that is no digest: it may come from a server, and becomes
        part of a path.
        """
        if not SHA256.fullmatch(sha256):
            raise CorruptError(
                f"{sha256!r} is not a SHA-256 digest", "It has 64 digits out of 0-9 and a-f."
            )
        return self.root / "blobs" / "sha256" / sha256

    def find(self, sha256: str) -> Blob | None:
        """The blob of that digest, or None if it is missing or damaged.

        Reads all of it (about 1 GB/s) and trusts nothing but that. A damaged blob stays until
        a good one takes its place: to remove it could hit one that another build just put there.
        """
        found = self.claim(sha256)
        with _explained(self.root), suppress(FileNotFoundError):
            if found and whole_file(found.path) == found:
                return found
        return None

    def claim(self, sha256: str) -> Blob | None:
        """The blob of that digest, or None if it is missing; it may be damaged."""
        path = self.path(sha256)
        with _explained(self.root):
            try:
                self._use(sha256)
                size = path.stat().st_size
            except FileNotFoundError:
                return None
            with suppress(OSError):  # whoever may only read a cache does not prune it either
                os.utime(path)
        return Blob(path, 0, size, sha256)

    @contextmanager
    def partial(self, sha256: str | None, waiting: Callable[[], None]) -> Iterator[Partial]:
        """The blob to be, with what an earlier build left of it.

        No other process has it meanwhile; ``waiting`` is called if another does now. If the
        digest is not known beforehand (None) it is a new one, and gone afterwards.
        """
        name = self.path(sha256).name if sha256 else f"unpinned-{secrets.token_hex(8)}"
        path = self.root / "partial" / name
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _open_locked(path, waiting)
        with file:
            partial = Partial(self.root, path, file)
            try:
                yield partial
            finally:
                resumable = sha256 and partial.size > 0
                if not resumable and _is_at(file, path):
                    path.unlink()

    def add(self, partial: Partial) -> Blob:
        """Make a partial the blob of the digest that it has."""
        path = self.path(partial.sha256)
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._use(partial.sha256)
            # No sync: what a crash leaves of it will not have the digest, and is not used.
            partial.path.rename(path)
            # Not before: killed in between, nobody could open the partial for writing again.
            os.fchmod(partial.file.fileno(), 0o444)
        return Blob(path, 0, partial.size, partial.sha256)

    def store(self, data: bytes) -> Blob:
        """Add what is in memory."""
        with self.partial(None, lambda: None) as partial:
            partial.write(data)
            return self.add(partial)

    def stored(self) -> list[Stored]:
        """All blobs, and what is unfinished."""
        found = []
        with _explained(self.root):
            for folder in (self.root / "blobs" / "sha256", self.root / "partial"):
                with suppress(FileNotFoundError), os.scandir(folder) as entries:
                    finished = folder.name == "sha256"
                    for entry in entries:
                        if finished and not SHA256.fullmatch(entry.name):
                            continue  # nobody's business
                        with suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode):
                                sha256 = entry.name if finished else None
                                found.append(Stored(Path(entry.path), sha256, status))
        return found

    def remove(self, stored: Stored) -> bool:
        """Remove a file; False if somebody uses it, or has used or replaced it since."""
        with _explained(self.root), ExitStack() as opened:
            try:
                if stored.sha256:
                    uses = opened.enter_context(self._in_use.open("a+b", buffering=0))
                    _lock_byte(uses, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, stored.sha256)
                else:
                    file = opened.enter_context(stored.path.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                now = stored.path.stat()
                if _same(now, stored.status):
                    stored.path.unlink()
                    return True
            except (BlockingIOError, FileNotFoundError):
                pass
            return False

    @property
    def _in_use(self) -> Path:
        return self.root / "in-use"

    def _use(self, sha256: str) -> None:
        self._uses.add(self._in_use, sha256)


class Verification:
    """A thread that verifies blobs of a cache while they are in use already."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._stopped = False
        self._thread = ThreadPoolExecutor(1)
        self._intact: list[Future[bool]] = []

    def close(self) -> None:
        """End the thread."""
        self._stopped = True
        self._thread.shutdown(cancel_futures=True)

    def claim(self, sha256: str) -> Blob | None:
        """As `Cache.claim`. What is made of the blob is worth nothing unless `passes`."""
        blob = self._cache.claim(sha256)
        if blob:
            self._intact.append(self._thread.submit(self._is_intact, blob))
        return blob

    def passes(self) -> bool:
        """Whether all are as they must be; waits for it."""
        return all(future.result() for future in self._intact)

    def _is_intact(self, blob: Blob) -> bool:
        # Not by read_content: in its smaller pieces the thread waits for the interpreter more.
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(CHUNK))
        try:
            with blob.path.open("rb", buffering=0) as file:
                while not self._stopped and (count := file.readinto(buffer)):
                    digest.update(buffer[:count])
        except OSError:
            return False
        return digest.hexdigest() == blob.sha256


def _open_to_read(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _lock_byte(file: io.FileIO, command: int, kind: int, sha256: str) -> None:
    """Lock the byte of a blob; two that share one do no harm."""
    position = int(sha256[:15], 16)
    # struct flock: l_type, l_whence, l_start, l_len, l_pid
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, position, 1, 0)
    fcntl.fcntl(file, command, request)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return os.path.samestat(one, other) and one.st_mtime_ns == other.st_mtime_ns


def _open_locked(path: Path, waiting: Callable[[], None]) -> io.FileIO:
    """Open a file to append to, make it if need be, and lock it until it is closed."""
    while True:
        with ExitStack() as opened:
            file = opened.enter_context(path.open("a+b", buffering=0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had the lock may have renamed or removed the file.
            if _is_at(file, path):
                opened.pop_all()
                return file


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether the path still leads to that open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FledgeError(
                f"no space left for the cache in {root}",
                "Free some, or set FLEDGE_CACHE_DIR to a folder on another disk.",
            ) from error
        reason = (error.strerror or str(error)).lower()
        raise HostError(
            f"the cache in {root} cannot be used: {reason}",
            USABLE_FOLDER,
        ) from error
