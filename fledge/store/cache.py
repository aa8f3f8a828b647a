"""The content-addressed cache: each blob is a file named by its SHA-256 digest.

    blobs/sha256/HEX   complete and verified blobs, which are never written again
    partial/           incomplete blobs, each locked by the process that writes it
    in-use             a byte for each blob, locked by the builds that use the blob
    names/NAME         empty files: the images and artifacts that were fetched, percent-encoded
    uses/HEX           changed by each use of a blob, and holds its stamp (`fledge.store.stamps`)

Builds that run at the same time share the cache. A killed build leaves at worst an incomplete
blob: the kernel drops its locks, and the next build that needs the blob continues the download.

A blob that a build uses stays open, so what was verified is what is read, whatever comes to its
path. That also serves a build in a cache that it may only read, or whose filesystem has no locks
for single bytes: there `Cache.remove` does not know that the blob is in use, and the build is not
disturbed.
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
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from fledge.errors import FledgeError, HostError, MalformedError
from fledge.store.stamps import is_unchanged
from fledge.tree.content import Blob, OpenFile, is_intact, update_hash
from fledge.tree.digest import Digest

CHOOSE_FOLDER = "Set FLEDGE_CACHE_DIR to a folder that you can write to."

UNPINNED = "unpinned-"
"""The prefix of the names of incomplete blobs whose digests are not known yet."""

NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of filesystems and kernels that lack a kind of lock."""

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags for all files of the cache. No symlink is followed, and no fifo makes a build wait."""


class Partial:
    """An incomplete blob: a locked file that data is appended to.

    ``size`` (in bytes) and ``digest`` cover the data so far, which includes the data that an
    earlier build left. ``obstacle`` is why the cache cannot take the blob, which is then in a
    temporary file; None if it can.
    """

    def __init__(
        self, root: Path, path: Path, file: io.FileIO, obstacle: HostError | None = None
    ) -> None:
        self.path = path
        self.file = file
        self.obstacle = obstacle
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
    last_use: int
    """When it was last written or used, in nanoseconds since 1970."""


class _UseLocks:
    """Locks the blobs that a `Cache` has returned, for as long as this object lives.

    These are open file description locks (fcntl(2)): unlike flock they can cover a single byte,
    and unlike lockf they also work between threads of one process.
    """

    def __init__(self) -> None:
        self._file: io.FileIO | None = None
        self._opening = threading.Lock()

    def add(self, path: Path, digest: Digest) -> None:
        """Keep `Cache.remove` from removing the blob, which need not exist yet.

        Raises `OSError`.
        """
        with self._opening:
            if self._file is None:
                # A shared lock needs only read access, so the cache may belong to another user.
                self._file = _open_file(path, os.O_RDONLY | os.O_CREAT)
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
        with _explained(self.root):
            if found and is_intact(found):
                return found
        return None

    def claim(self, digest: Digest) -> Blob | None:
        """Return the blob with that digest, unverified, or None if it is missing."""
        path = self.path(digest)
        with _explained(self.root):
            try:
                opened = OpenFile(os.open(path, os.O_RDONLY | _FILE))
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    return None  # a symlink or a socket, which `add` will replace
                raise
            status = os.fstat(opened.descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            self._use(digest)
            if use := self.open_use(digest):
                with use:
                    os.utime(use.fileno())
        return Blob(path, 0, status.st_size, digest, opened=opened)

    def open_use(self, digest: Digest) -> io.FileIO | None:
        """Open the file whose time is that of the last use of a blob.

        None if it cannot be written: a user who may only read a cache cannot prune it either.
        """
        with suppress(OSError), self._folder("uses") as folder:
            flags = os.O_RDWR | os.O_CREAT | _FILE
            return io.FileIO(os.open(digest.hex, flags, 0o600, dir_fd=folder), "r+")
        return None

    @contextmanager
    def partial(self, digest: Digest | None, waiting: Callable[[], None]) -> Iterator[Partial]:
        """Open the incomplete blob with that digest, with the data that an earlier build left.

        Only one process has it open at a time; if that is another one, ``waiting`` is called
        before this one waits. If the digest is not known yet (None), the blob starts empty, and
        is removed at the end unless `add` completed it. It may turn out to be one that the cache
        has, so it does not need a cache that can be written.
        """
        name = digest.hex if digest else UNPINNED + secrets.token_hex(8)
        obstacle = None
        try:
            with _explained(self.root), self._folder("partial") as folder:
                if digest is None:
                    self._remove_abandoned()
                file = _open_locked(folder, name, self.root, waiting)
        except HostError as error:
            if digest:
                raise
            obstacle = error
        path = self.root / "partial" / name
        if obstacle:
            place = Path(tempfile.gettempdir())
            with ExitStack() as opened:
                with _explained(place):
                    file = opened.enter_context(tempfile.TemporaryFile(buffering=0))
                yield Partial(place, path, file, obstacle)
            return
        with _closing(file, self.root):
            partial = Partial(self.root, path, file)
            try:
                yield partial
            finally:
                resumable = digest and partial.size > 0
                with _explained(self.root), self._folder("partial") as folder:
                    if not resumable and _is_at(file, folder, name):
                        os.unlink(name, dir_fd=folder)

    def add(self, partial: Partial) -> Blob:
        """Complete an incomplete blob: move it to its place in the cache, under its digest."""
        digest = partial.digest
        if partial.obstacle:
            if blob := self.find(digest):
                return blob
            raise partial.obstacle
        with (
            _explained(self.root),
            self._folder("partial") as partials,
            self._folder("blobs", "sha256") as blobs,
        ):
            self._use(digest)
            # Not synced: if a crash loses data, the digest will not match.
            os.rename(partial.path.name, digest.hex, src_dir_fd=partials, dst_dir_fd=blobs)
            # Only after the rename: a read-only file that is still partial could not be continued.
            os.fchmod(partial.file.fileno(), 0o444)
        return self.unfinished(partial, digest)

    def unfinished(self, partial: Partial, digest: Digest) -> Blob:
        """Return the blob that an incomplete one will be if its data turns out to have a digest.

        It has the same file before and after `add`.
        """
        with _explained(self.root):
            opened = OpenFile(os.dup(partial.file.fileno()))
        return Blob(self.path(digest), 0, partial.size, digest, opened=opened)

    def store(self, data: bytes) -> Blob:
        """Add a blob from memory, unless the cache has it."""
        if blob := self.find(Digest.of(data)):
            return blob
        with self.partial(None, lambda: None) as partial:
            partial.write(data)
            return self.add(partial)

    def remember(self, name: str) -> None:
        """Remember the name of an image or an artifact, for shells that complete it."""
        # A cache that may only be read remembers nothing, nor one name that is too long for a file.
        with suppress(OSError), self._folder("names") as folder:
            flags = os.O_WRONLY | os.O_CREAT | _FILE
            os.close(os.open(quote(name, safe=""), flags, 0o600, dir_fd=folder))

    def names(self) -> list[str]:
        """Return the remembered names, sorted."""
        with suppress(OSError):
            return sorted(map(unquote, os.listdir(self.root / "names")))
        return []

    def forget_names(self) -> None:
        """Forget all names."""
        with suppress(OSError), self._folder("names") as folder:
            for name in os.listdir(self.root / "names"):
                os.unlink(name, dir_fd=folder)

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
                                last_use = self._last_use(digest, status)
                                found.append(CacheEntry(Path(file.path), digest, status, last_use))
        return found

    def remove(self, entry: CacheEntry) -> bool:
        """Remove a file. Return False if it is in use, or was used or replaced since `entries`."""
        with _explained(self.root), ExitStack() as opened:
            try:
                if entry.digest:
                    uses = opened.enter_context(_open_file(self._in_use, os.O_RDWR | os.O_CREAT))
                    try:
                        _lock_byte(uses, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, entry.digest)
                    except OSError as error:
                        if error.errno not in NO_LOCKS:
                            raise
                else:
                    file = opened.enter_context(_open_file(entry.path, os.O_RDONLY))
                    _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, self.root)
                now = entry.path.lstat()
                last_use = self._last_use(entry.digest, now)
                if os.path.samestat(entry.status, now) and last_use == entry.last_use:
                    entry.path.unlink()
                    if entry.digest:
                        self._forget_use(entry.digest)
                    return True
            except (BlockingIOError, FileNotFoundError):
                pass
            return False

    def _remove_abandoned(self) -> None:
        """Remove incomplete blobs that killed builds have left and no build can continue."""
        for entry in self.entries():
            if entry.path.name.startswith(UNPINNED):
                self.remove(entry)

    def _forget_use(self, digest: Digest) -> None:
        # What stays is of no use to a later blob: a stamp fits only the file that it was made of.
        with suppress(OSError), self._folder("uses") as folder:
            os.unlink(digest.hex, dir_fd=folder)

    def _last_use(self, digest: Digest | None, status: os.stat_result) -> int:
        """Return when a file of the cache was last written or used, in nanoseconds since 1970."""
        if digest:
            with suppress(OSError):
                use = (self.root / "uses" / digest.hex).lstat()
                return max(status.st_mtime_ns, use.st_mtime_ns)
        return status.st_mtime_ns

    @property
    def _in_use(self) -> Path:
        return self.root / "in-use"

    def _use(self, digest: Digest) -> None:
        # Without the lock the blob may be removed, and the build goes on with the open file.
        with suppress(OSError):
            self._locks.add(self._in_use, digest)

    @contextmanager
    def _folder(self, *names: str) -> Iterator[int]:
        """Open a folder of the cache, and create it for this user only. Raises `OSError`."""
        self.root.mkdir(0o700, parents=True, exist_ok=True)
        folder = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folder)
                parent, folder = folder, os.open(name, _FOLDER, dir_fd=folder)
                os.close(parent)
            yield folder
        finally:
            os.close(folder)


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
        with ExitStack() as opened:
            if stamp_file := self._cache.open_use(blob.digest):
                opened.enter_context(stamp_file)
            try:
                return is_unchanged(blob, stamp_file, self._stop)
            except (FledgeError, OSError):
                return False


def _digest_of_name(name: str) -> Digest | None:
    """Return the digest that a blob's file is named by, or None if the name is not a digest."""
    try:
        return Digest.from_hex(name)
    except MalformedError:
        return None


def _open_file(path: Path, flags: int) -> io.FileIO:
    """Open a file of the cache, or create it. Raises `OSError`."""
    mode = "r" if flags & os.O_ACCMODE == os.O_RDONLY else "r+"
    return io.FileIO(os.open(path, flags | _FILE, 0o666), mode)


def _lock_byte(file: io.FileIO, command: int, kind: int, digest: Digest) -> None:
    """Lock a blob's byte. Blobs that share a byte are only kept longer than necessary."""
    position = int(digest.hex[:15], 16)
    # struct flock: l_type, l_whence, l_start, l_len, l_pid
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, position, 1, 0)
    fcntl.fcntl(file, command, request)


def _open_locked(folder: int, name: str, root: Path, waiting: Callable[[], None]) -> io.FileIO:
    """Open a file for appending, create it if it is missing, and lock it until it is closed."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _FILE
    while True:
        with ExitStack() as opened:
            file = io.FileIO(os.open(name, flags, 0o666, dir_fd=folder), "r+")
            opened.enter_context(file)
            try:
                _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, root)
            except BlockingIOError:
                waiting()
                _flock(file, fcntl.LOCK_EX, root)
            # The previous owner of the lock may have renamed or removed the file.
            if _is_at(file, folder, name):
                opened.pop_all()
                return file


def _flock(file: io.FileIO, operation: int, root: Path) -> None:
    """Lock or unlock a file. Raises `OSError`, or `HostError` without locks in the filesystem."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise HostError(
            f"the cache in {root} cannot be used: its filesystem has no locks for files",
            "Set FLEDGE_CACHE_DIR to a folder on a local disk.",
        ) from error


@contextmanager
def _closing(file: io.FileIO, root: Path) -> Iterator[None]:
    """Unlock and close an incomplete blob at the end of the block."""
    try:
        yield
    finally:
        # A network filesystem may report only now that it could not store the data.
        with _explained(root), file:
            fcntl.flock(file, fcntl.LOCK_UN)  # the blob made of it may stay open


def _is_at(file: io.FileIO, folder: int, name: str) -> bool:
    """Return whether ``name`` in an open folder is the open file."""
    try:
        at_name = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), at_name)


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
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise FledgeError(
                f"the cache in {root} cannot be used: {reason}",
                "Raise the limit with ulimit -n: every layer of an image takes one.",
            ) from error
        raise HostError(
            f"the cache in {root} cannot be used: {reason}", _hint(error, root)
        ) from error


def _hint(error: OSError, root: Path) -> str:
    """Return what to do if the cache cannot be used: most often root owns a part, after sudo."""
    folders = [root, root / "blobs", root / "blobs" / "sha256", root / "partial"]
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    parts = [*folders, *(folder / name for folder in folders for name in names)]
    if os.geteuid() != 0 and any(map(_is_of_root, parts)):
        return (
            f"root owns a part of it, perhaps since fledge was run with sudo: run `sudo chown -R"
            f" {os.geteuid()} {shlex.quote(str(root))}`. {CHOOSE_FOLDER}"
        )
    return CHOOSE_FOLDER


def _is_of_root(path: Path) -> bool:
    """Return whether a path belongs to the user root. False if it cannot be seen."""
    try:
        return path.stat().st_uid == 0
    except OSError:
        return False
