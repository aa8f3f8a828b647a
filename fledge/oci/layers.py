"""From the layers of an image to one filesystem: get, inflate, verify, apply.

OCI image-spec, layer.md; where it leaves a choice, as containerd and umoci.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from itertools import chain
from queue import Empty, SimpleQueue

from fledge.errors import CorruptError, FledgeError
from fledge.oci import tar
from fledge.oci.image import Image, Layer
from fledge.report import Reporter, Transfer, human_size
from fledge.store.cache import Cache, Verification
from fledge.tree import Directory, Node, Symlink, Tree, TreeError, put
from fledge.tree.compression import (
    GZIP_MAGIC,
    MAX_SIZE,
    SKIPPABLE_MAGIC,
    ZSTD_MAGIC,
    gunzip,
    members,
    unzstd,
)
from fledge.tree.content import Blob, Span, read_content
from fledge.tree.names import printable, split_path

MAX_THREADS = 4
"""Layers that are fetched and inflated at once."""

POLL = 0.2
"""Seconds between two looks at the workers, at most."""

GRACE = 0.5
"""Seconds that threads get to clean up after a failure in another."""

WHITEOUT = b".wh."
METADATA = b".wh..wh."
OPAQUE = b".wh..wh..opq"


def unpack(
    image: Image,
    tree: Tree,
    cache: Cache,
    reporter: Reporter,
    verification: Verification | None = None,
) -> None:
    """Apply all layers of an image to a tree, lowest first.

    File contents become spans of the uncompressed layers in the cache; those that are there
    already need not have passed the ``verification`` yet. Raises `CorruptError`, with the
    layer's position, for a layer that is not what it claims to be or makes no tree;
    `FledgeError` for a layer that cannot be had.
    """
    with closing(prepare(image, cache, reporter, verification)) as blobs:
        for number, blob in enumerate(blobs, start=1):
            try:
                apply(tree, blob)
            except CorruptError as error:
                raise _in_layer(error, number, image) from None


def prepare(
    image: Image, cache: Cache, reporter: Reporter, verification: Verification | None = None
) -> Generator[Blob]:
    """The uncompressed layers of an image, verified, several at once; lowest first.

    With a ``verification`` those in the cache are as `Verification.claim` gives them. While the
    caller has one, others are made ready. Raises the first `FledgeError` of any of them. What
    the others inflate meanwhile is given up; a download that runs may go on in the background
    until the process ends, which does not wait for it.
    """
    # An image may have one layer several times; mostly it is an empty one.
    positions: dict[str, int] = {}
    for number, layer in enumerate(image.layers, start=1):
        positions.setdefault(layer.diff_id, number)
    queue: SimpleQueue[int] = SimpleQueue()
    done = {diff_id: Future[Blob]() for diff_id in positions}
    for diff_id, number in positions.items():
        if verification and (blob := verification.claim(diff_id)):
            done[diff_id].set_result(blob)
        else:
            queue.put(number)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                number = queue.get_nowait()
            except Empty:
                return
            layer = image.layers[number - 1]
            try:
                done[layer.diff_id].set_result(uncompressed(layer, cache, reporter, stop))
            except CorruptError as error:
                done[layer.diff_id].set_exception(_in_layer(error, number, image))
            except BaseException as error:
                done[layer.diff_id].set_exception(error)

    # Daemons, for neither Ctrl-C nor the end of the process shall wait for a download.
    count = min(queue.qsize(), MAX_THREADS)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        pending = set(done.values())
        for layer in image.layers:
            while done[layer.diff_id] in pending:
                # With an end: one without could begin just after a Ctrl-C and never see it.
                finished, pending = wait(pending, POLL, FIRST_COMPLETED)
                for future in finished:
                    future.result()
            yield done[layer.diff_id].result()
    finally:
        stop.set()
        deadline = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))


def uncompressed(layer: Layer, cache: Cache, reporter: Reporter, stop: threading.Event) -> Blob:
    """The tar of a layer, from the cache if it is there; else its blob is fetched and inflated.

    Its digest and diff_id are verified before it is in the cache. Setting ``stop`` ends the
    inflating with a `FledgeError`. Raises `CorruptError`, and `FledgeError` if the layer cannot
    be had.
    """
    if blob := cache.find(layer.diff_id):
        return blob
    source = layer.blob()

    def waiting() -> None:
        reporter.note(f"layer {layer.diff_id[:12]}: waiting for another build that unpacks it")

    with cache.partial(layer.diff_id, waiting) as partial:
        if blob := cache.find(layer.diff_id):
            return blob
        partial.restart()
        try:
            with reporter.transfer(f"layer {layer.diff_id[:12]}") as transfer:
                transfer.restart(0, source.size)
                for piece in inflated(_counted(read_content(source), transfer)):
                    if stop.is_set():
                        raise FledgeError("unpacking was stopped")
                    if partial.size + len(piece) > MAX_SIZE:
                        raise CorruptError(f"it is larger than {human_size(MAX_SIZE)}")
                    partial.write(piece)
            if partial.sha256 != layer.diff_id:
                raise CorruptError(
                    f"its tar has sha256 {partial.sha256}, and the image's config says"
                    f" {layer.diff_id}"
                )
        except BaseException:
            partial.restart()
            raise
        return cache.add(partial)


def apply(tree: Tree, blob: Span) -> None:
    """Apply one uncompressed layer to the tree that those below it made.

    Raises `CorruptError` for a malformed archive or entries that make no tree.
    """
    upper = _Upper(tree)
    before = tree.steps
    for path, node in tar.read(blob):
        try:
            upper.apply(path, node)
            tree.check_steps(since=before)
        except TreeError as error:
            raise CorruptError(f"{printable(path)}: {error}") from None


class _Upper:
    """What one layer has put into the tree, for its whiteouts spare that."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.names: dict[Directory, set[bytes]] = {tree.root: set()}
        """The directories that the layer has put something in or below, and which names."""
        self.pruned: set[Directory] = set()
        """Directories that hold nothing but what this layer has put there."""
        self.last: tuple[list[bytes], Directory] = ([], tree.root)
        """The last parent: entries mostly come directory by directory."""

    def apply(self, path: bytes, node: Node | tar.HardLink) -> None:
        *parents, name = split_path(path) or [b""]
        if WHITEOUT in path and self._is_no_entry(parents, name):
            return
        if isinstance(node, tar.HardLink):
            target = self.tree.get(node.target)
            if target is None:
                raise TreeError(f"it links to {printable(node.target)}, which is not there")
            if isinstance(target, Directory):
                raise TreeError(f"it links to {printable(node.target)}, which is a directory")
            node = target
        self._put(parents, name, node)

    def _is_no_entry(self, parents: list[bytes], name: bytes) -> bool:
        """Whether the path is no entry of the tree, but a whiteout, which is applied."""
        if name == OPAQUE:
            self._whiteout(parents, None)
        elif any(part.startswith(METADATA) for part in (*parents, name)):
            pass  # bookkeeping of aufs
        elif name.startswith(WHITEOUT):
            hidden = name[len(WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise TreeError("that whiteout names nothing in its directory")
            self._whiteout(parents, hidden)
        else:
            return False
        return True

    def _put(self, parents: list[bytes], name: bytes, node: Node) -> None:
        if not name:
            self.tree.add(b"", node)
            return
        parent = self._parent(parents)
        old = parent.children.get(name)
        now = put(parent, name, node)
        self.names[parent].add(name)
        if isinstance(now, Directory):
            self.names.setdefault(now, set())
        if old and now is not old and isinstance(old, Directory | Symlink):
            self._forget_parent()

    def _parent(self, parents: list[bytes]) -> Directory:
        if parents != self.last[0]:
            trail = self.tree.trail(parents)
            for directory in trail:
                self.names.setdefault(directory, set())
            self.last = parents, trail[-1]
        return self.last[1]

    def _forget_parent(self) -> None:
        """To be called when a path may lead elsewhere than before."""
        self.last = [], self.tree.root

    def _whiteout(self, parents: list[bytes], name: bytes | None) -> None:
        """Hide what the layers below put at a name, or all they put in the directory (None)."""
        parent = self.tree.get(b"/".join(parents), follow=True)
        if not isinstance(parent, Directory):
            return
        if name is None:
            self._prune(parent)
        else:
            self._hide(parent, name)
        self._forget_parent()

    def _hide(self, parent: Directory, name: bytes) -> None:
        child = parent.children.get(name)
        if isinstance(child, Directory) and child in self.names:
            self._prune(child)
        elif child and (isinstance(child, Directory) or name not in self.names.get(parent, ())):
            del parent.children[name]

    def _prune(self, top: Directory) -> None:
        """Remove all that is not this layer's. No directory is gone through twice."""
        pending = [top]
        while pending:
            directory = pending.pop()
            if directory in self.pruned:
                continue
            self.pruned.add(directory)
            names = self.names.get(directory, ())
            for name, child in list(directory.children.items()):
                if isinstance(child, Directory) and child in self.names:
                    pending.append(child)
                elif name not in names:
                    del directory.children[name]


def inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What a blob holds, by its first bytes and not by what a manifest says it is."""
    first = next(pieces, b"")
    blob = chain([first], pieces)
    if first.startswith(GZIP_MAGIC):
        yield from members(blob, gunzip)
    elif first.startswith((ZSTD_MAGIC, *SKIPPABLE_MAGIC)):
        yield from members(blob, unzstd)
    else:
        yield from blob


def _counted(pieces: Iterator[bytes], transfer: Transfer) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        transfer.advance(len(piece))


def _in_layer(error: CorruptError, number: int, image: Image) -> CorruptError:
    return CorruptError(
        f"layer {number} of {len(image.layers)} of {image.uri}: {error.message}",
        error.hint or "The image is damaged where it comes from; pull or build it again.",
    )
