"""Fetches, decompresses and verifies the layers of an image, and applies them to a tree.

OCI image-spec, layer.md. Where it leaves a choice, fledge does what containerd and umoci do.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import replace
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from fledge.errors import CorruptError, FledgeError, MalformedError
from fledge.host.parallel import ahead
from fledge.oci import tar
from fledge.oci.image import Image, Layer
from fledge.report import Batch, Transfer, human_size
from fledge.session import Session
from fledge.store.cache import BackgroundVerifier, Partial
from fledge.tree import NO_XATTRS, Directory, File, Node, Symlink, Tree, TreeError, put
from fledge.tree.budget import DIRECTORY_COST, Budget
from fledge.tree.compression import MAX_DECOMPRESSED_SIZE, find_decompression
from fledge.tree.content import Blob, Span, Sparse, content_size, read_content
from fledge.tree.digest import Digest
from fledge.tree.growth import Growth
from fledge.tree.names import MAX_SHOWN, SPECIAL_COMPONENTS, printable, split_path

MAX_THREADS = 4
"""Maximum layers that are fetched and decompressed at the same time."""

POLL_INTERVAL = 0.2
"""Maximum seconds between two checks of the threads."""

GRACE_PERIOD = 0.5
"""Seconds that threads get to clean up after another one failed."""

BATCH, WINDOW = 4, 4
"""Pieces of a tar that the thread that decompresses hands over at once, and batches of them that it
may be ahead of the thread that writes: 4 MiB in all."""

WHITEOUT = b".wh."
"""The prefix of a whiteout, which hides the rest of the name in the layers below."""
METADATA = b".wh..wh."
"""The prefix of metadata of aufs."""
OPAQUE = b".wh..wh..opq"
"""The whiteout that hides everything that the layers below have in its directory."""

UNSOUND = "The image is damaged at its source; pull or build it again."
"""The hint if there is none that fits better."""

CAPABILITY = b"security.capability"
USER = b"user."

T = TypeVar("T")


def unpack(
    image: Image,
    tree: Tree,
    session: Session,
    verifier: BackgroundVerifier | None = None,
) -> None:
    """Apply all layers of an image to a tree, lowest first.

    File contents become spans of the uncompressed layers in the cache. ``verifier`` verifies
    layers that are in the cache already while they are used; None: they are verified first. Any
    other layer is applied while it is unpacked, and the tree is of no use if it is damaged.

    Raises `CorruptError` that names the layer if a layer is damaged or cannot be applied,
    `FledgeError` if a layer cannot be fetched.
    """
    uses = Counter(layer.diff_id for layer in image.layers)
    parsed: dict[Digest, list[tar.Entry]] = {}
    sizes: dict[Digest, int] = {}
    budget = Budget()
    since = tree.steps
    with closing(_arrivals(image, session, verifier)) as arrivals:
        for number, arrival in enumerate(arrivals, start=1):
            blob, growth, whole = arrival
            try:
                if blob.digest not in sizes:
                    budget.follow(growth)
                if uses[blob.digest] == 1:
                    _apply(tree, tar.read(blob, budget, growth), budget, since)
                else:
                    if blob.digest not in parsed:
                        parsed[blob.digest] = list(tar.read(blob, budget, growth))
                    _apply(tree, _copies(parsed[blob.digest], budget), budget, since)
            except CorruptError as error:
                whole()  # if the layer is damaged, that is what went wrong
                raise _in_layer(error, number, image) from error
            sizes[blob.digest] = whole().size
    try:
        budget.charge_paths(tree)
    except MalformedError as error:
        raise CorruptError(f"{image.uri}: {error}", UNSOUND) from error
    if len(uses) < len(image.layers) and _data_size(tree) > (size := sum(sizes.values())):
        raise CorruptError(
            f"{image.uri}: lists layers several times, which makes its files larger than the"
            f" {human_size(size)} of its layers",
            UNSOUND,
        )


def _data_size(tree: Tree) -> int:
    """Return the bytes of data in all files of an image, without holes."""
    contents = {node: node.content for node in tree.nodes() if isinstance(node, File)}
    return sum(
        sum(extent.length for extent in content.extents)
        if isinstance(content, Sparse)
        else content_size(content)
        for content in contents.values()
    )


class _Arrival(NamedTuple):
    """A layer that is in the cache, or on its way there."""

    blob: Blob
    """Its tar. If that is still written, the size is not known, nor whether it will be damaged."""
    growth: Growth
    """How far the tar has been written."""
    whole: Callable[[], Blob]
    """Waits until the tar is complete and verified, and returns it. Raises the first `FledgeError`
    of any layer."""


def prepare(
    image: Image, session: Session, verifier: BackgroundVerifier | None = None
) -> Generator[Blob]:
    """Yield the uncompressed layers of an image, lowest first, and prepare several at once.

    Each layer is verified, in the background if it is in the cache already and there is a
    ``verifier``.

    Raises the first `FledgeError` of any layer. Threads then stop decompressing; a download may
    continue in the background until the process ends, which does not wait for it.
    """
    with closing(_arrivals(image, session, verifier)) as arrivals:
        for arrival in arrivals:
            yield arrival.whole()


class _Work:
    """The futures of one layer."""

    def __init__(self, number: int) -> None:
        self.number = number
        """The first layer of the image with this diff_id. The same layer may occur several times;
        often that is the empty one."""
        self.begun = Future[tuple[Blob, Growth]]()
        """Set when a part of the tar can be read."""
        self.done = Future[Blob]()


def _arrivals(
    image: Image, session: Session, verifier: BackgroundVerifier | None
) -> Generator[_Arrival]:
    """Do what `prepare` does, but yield each layer as soon as a part of it can be read."""
    works: dict[Digest, _Work] = {}
    for number, layer in enumerate(image.layers, start=1):
        works.setdefault(layer.diff_id, _Work(number))
    queue: SimpleQueue[_Work] = SimpleQueue()
    sizes: list[int | None] = []
    for diff_id, work in works.items():
        if verifier and (blob := verifier.claim(diff_id)):
            _tell_cached(blob, session)
            _finish(work, blob)
        else:
            queue.put(work)
            sizes.append(image.layers[work.number - 1].size)
    pending = {work.done for work in works.values()}
    stop = threading.Event()

    def run(batch: Batch) -> None:
        while not stop.is_set():
            try:
                work = queue.get_nowait()
            except Empty:
                return
            layer = image.layers[work.number - 1]
            try:
                blob = uncompressed_layer(layer, session, stop, batch, work.begun.set_result)
                batch.finished()
                _finish(work, blob)
            except CorruptError as error:
                work.done.set_exception(_in_layer(error, work.number, image))
            except BaseException as error:
                work.done.set_exception(error)

    def result(future: Future[T]) -> T:
        """Wait for a future of a layer. Raises the first failure of any layer."""
        while not future.done():
            # With a timeout: a wait that begins just after Ctrl-C is not interrupted.
            awaited: list[Future[Any]] = [future, *pending]
            wait(awaited, POLL_INTERVAL, FIRST_COMPLETED)
            for each in [each for each in pending if each.done()]:
                pending.remove(each)
                each.result()
        return future.result()

    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    with session.reporter.batch("layers", len(sizes), total) as batch:
        # Daemon threads, so that neither Ctrl-C nor the end of the process waits for a download.
        threads = [
            threading.Thread(target=run, args=(batch,), daemon=True)
            for _ in range(min(len(sizes), MAX_THREADS))
        ]
        for thread in threads:
            thread.start()
        try:
            for layer in image.layers:
                work = works[layer.diff_id]
                blob, growth = result(work.begun)
                yield _Arrival(blob, growth, functools.partial(result, work.done))
        finally:
            stop.set()
            deadline = time.monotonic() + GRACE_PERIOD
            for thread in threads:
                thread.join(max(0, deadline - time.monotonic()))


def _finish(work: _Work, blob: Blob) -> None:
    """Set the result of a layer that is in the cache."""
    if not work.begun.done():
        work.begun.set_result((blob, Growth(blob.size, complete=True)))
    work.done.set_result(blob)


def uncompressed_layer(
    layer: Layer,
    session: Session,
    stop: threading.Event,
    batch: Batch,
    begin: Callable[[tuple[Blob, Growth]], None],
) -> Blob:
    """Return a layer's tar from the cache, after fetching and decompressing it if necessary.

    Its digest and diff_id are verified before it enters the cache. If it is decompressed, ``begin``
    gets the tar before that. Setting ``stop`` ends the decompression with a `FledgeError`.
    ``batch`` is told when the blob has arrived. Raises `CorruptError` if the layer is damaged,
    `FledgeError` if it cannot be fetched.
    """
    cache, reporter = session.cache, session.reporter
    if blob := cache.find(layer.diff_id):
        _tell_cached(blob, session)
        return blob
    source = layer.blob()
    batch.arrived(source.size)

    def waiting() -> None:
        reporter.note(f"layer {layer.diff_id.short}: waiting for another build that unpacks it")

    with cache.partial(layer.diff_id, waiting) as partial:
        if blob := cache.find(layer.diff_id):
            return blob
        partial.restart()
        growth = Growth()
        begin((cache.unfinished(partial, layer.diff_id), growth))
        try:
            with reporter.work(f"layer {layer.diff_id.short}") as transfer:
                transfer.restart(0, source.size)
                _decompress_into(partial, source, growth, stop, transfer)
            actual = partial.digest
            if actual != layer.diff_id:
                raise CorruptError(
                    f"its tar has sha256 {actual.hex}, and the image's config says"
                    f" {layer.diff_id.hex}"
                )
        except BaseException:
            partial.restart()
            raise
        finally:
            growth.end()
        size = human_size(partial.size)
        reporter.detail(f"layer {layer.diff_id.short}: {size}, unpacked")
        return cache.add(partial)


def _decompress_into(
    partial: Partial, source: Span, growth: Growth, stop: threading.Event, transfer: Transfer
) -> None:
    """Decompress a layer's blob in a thread, and meanwhile hash and write what it yields."""
    if source.opened:  # by the cache, which verified it: the diff_id is enough
        source = Span(source.path, source.offset, source.size, opened=source.opened)
    pieces = ahead(decompress(_count(read_content(source), transfer)), BATCH, WINDOW)
    with closing(pieces):
        for piece in pieces:
            if stop.is_set():
                raise FledgeError("unpacking was stopped")
            if partial.size + len(piece) > MAX_DECOMPRESSED_SIZE:
                raise CorruptError(f"it is larger than {human_size(MAX_DECOMPRESSED_SIZE)}")
            partial.write(piece)
            growth.advance(partial.size)


def _tell_cached(layer: Blob, session: Session) -> None:
    size = human_size(layer.size)
    session.reporter.detail(f"layer {layer.digest.short}: {size}, from the cache")


def apply(tree: Tree, blob: Span, budget: Budget | None = None) -> None:
    """Apply one uncompressed layer to the tree of the layers below it.

    ``budget`` is that of all layers; None: the layer has one of its own. Raises `CorruptError` if
    the archive is malformed or an entry cannot be applied.
    """
    budget = budget or Budget(blob.size)
    _apply(tree, tar.read(blob, budget), budget, since=tree.steps)


def _apply(tree: Tree, entries: Iterable[tar.Entry], budget: Budget, since: int) -> None:
    """Apply the entries of one layer, and charge ``budget`` for directories that they lack.

    ``since`` is as in `Tree.check_steps`. The next layer has another `Tree.origin`.
    """
    applier = _LayerApplier(tree, budget, since)
    for path, node in entries:
        try:
            applier.apply(path, node)
        except (TreeError, MalformedError) as error:
            raise _at(path, error) from error
    tree.origin += 1


def _copies(entries: list[tar.Entry], budget: Budget) -> Iterator[tar.Entry]:
    """Yield the entries of a layer again, with copies of their nodes. Raises `CorruptError`.

    A manifest can list a layer thousands of times, and each time it may end in other directories.
    """
    for path, node in entries:
        try:
            budget.charge(tar.entry_cost(path, node))
        except MalformedError as error:
            raise _at(path, error) from error
        yield path, _copy(node)


def _at(path: bytes, error: Exception) -> CorruptError:
    return CorruptError(f"{printable(path)[:MAX_SHOWN]}: {error}")


def _copy(node: Node | tar.HardLink) -> Node | tar.HardLink:
    if isinstance(node, tar.HardLink):
        return node
    if isinstance(node, Directory):
        return replace(node, children={})
    # `_update` changes them.
    return replace(node, xattrs=dict(node.xattrs) if node.xattrs else NO_XATTRS)


class _LayerApplier:
    """Applies the entries of one layer to a tree.

    A whiteout hides only entries of layers below. Those of this layer are nodes with its
    `Tree.origin`, hard links to older nodes, and directories that it put something into.
    """

    def __init__(self, tree: Tree, budget: Budget, since: int) -> None:
        self.tree = tree
        self.budget = budget
        self.since = since
        self.entered = {tree.root}
        """The directories that this layer put, or put something into or below."""
        self.links: set[tuple[Directory, bytes]] = set()
        """The directory and name of each hard link of this layer to a node of another."""
        self.pruned: set[Directory] = set()
        """The directories that contain only entries of this layer."""
        self.parents: dict[bytes, Directory] = {b"": tree.root}
        """Directories by their path in the layer, if no symlink is on the way."""

    def apply(self, path: bytes, node: Node | tar.HardLink) -> None:
        """Apply one entry. Raises `TreeError` if it cannot be applied."""
        origin = self.tree.origin
        path = path.removesuffix(b"/")
        parent_path, _, name = path.rpartition(b"/")
        if name in SPECIAL_COMPONENTS:
            parents = split_path(path)
            name = parents.pop() if parents else b""
            parent_path = b"/".join(parents)
            path = parent_path + b"/" + name
        # find(), because `in` first tries to take the bytes for a number, which is slow.
        if path.find(WHITEOUT) >= 0 and self._apply_whiteout(split_path(parent_path), name):
            return
        if isinstance(node, tar.HardLink):
            node = self._linked(node)
        else:
            node.origin = origin
        if not name:
            self.tree.add(b"", node)
            return
        parent = self.parents.get(parent_path) or self._find_parent(parent_path)
        children = parent.children
        if isinstance(node, Directory):
            old = children.get(name)
            directory = old if isinstance(old, Directory) else node
            put(parent, name, node)
            self.entered.add(directory)
            if parent_path in self.parents:
                self.parents[path] = directory
        else:
            if isinstance(children.get(name), Directory):
                self._forget_parents()
            if node.origin != origin:
                self.links.add((parent, name))
            children[name] = node

    def _find_parent(self, path: bytes) -> Directory:
        """Return the directory at a path of the layer, which is created if it is missing."""
        tree, parts = self.tree, split_path(path)
        created, steps = tree.created, tree.steps
        trail = tree.trail(parts)
        self.budget.charge(DIRECTORY_COST * (tree.created - created))
        tree.check_steps(self.since)
        self.entered.update(trail)
        if tree.steps - steps == len(parts):
            self.parents[path] = trail[-1]
        return trail[-1]

    def _linked(self, link: tar.HardLink) -> Node:
        """Return the node that a hard link leads to, with the metadata of the link."""
        target = self.tree.get(link.target, lexical=True)
        self.tree.check_steps(self.since)
        if target is None:
            raise TreeError(f"it links to {printable(link.target)}, which does not exist")
        if isinstance(target, Directory):
            raise TreeError(f"it links to {printable(link.target)}, which is a directory")
        _update(target, link)
        return target

    def _apply_whiteout(self, parents: list[bytes], name: bytes) -> bool:
        """Apply a whiteout. Return False if the path is not a whiteout but a normal entry."""
        if name == OPAQUE:
            self._hide(parents, None)
        elif any(part.startswith(METADATA) for part in (*parents, name)):
            pass  # ignored, as containerd does
        elif name.startswith(WHITEOUT):
            hidden = name[len(WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise TreeError("that whiteout names nothing in its directory")
            self._hide(parents, hidden)
        else:
            return False
        return True

    def _forget_parents(self) -> None:
        """Forget all directories by their paths, because one of them may have been removed."""
        self.parents = {b"": self.tree.root}

    def _hide(self, parents: list[bytes], name: bytes | None) -> None:
        """Hide the entry that the layers below have under a name; all their entries if None."""
        parent = self.tree.get(b"/".join(parents), follow=True, lexical=True)
        self.tree.check_steps(self.since)
        if not isinstance(parent, Directory):
            return
        if name is None:
            self._prune(parent)
        elif child := parent.children.get(name):
            self._hide_child(parent, name, child)
        self._forget_parents()

    def _hide_child(self, parent: Directory, name: bytes, child: Node) -> None:
        if isinstance(child, Directory) and child in self.entered:
            self._prune(child)
        elif not self._is_own(parent, name, child):
            del parent.children[name]

    def _prune(self, top: Directory) -> None:
        """Remove all entries of the layers below. No directory is scanned twice."""
        pending = [top]
        while pending:
            directory = pending.pop()
            if directory in self.pruned:
                continue
            self.pruned.add(directory)
            for name, child in list(directory.children.items()):
                if isinstance(child, Directory) and child in self.entered:
                    pending.append(child)
                elif not self._is_own(directory, name, child):
                    del directory.children[name]

    def _is_own(self, parent: Directory, name: bytes, child: Node) -> bool:
        """Return whether this layer put an entry, which is no directory, into the tree."""
        return child.origin == self.tree.origin or (parent, name) in self.links


def _update(node: Node, link: tar.HardLink) -> None:
    """Give a node the metadata in a hard link's entry, as containerd does with Linux's calls.

    chown(2) removes capabilities, symlinks have no mode of their own, and only files have ``user.``
    attributes.
    """
    node.uid, node.gid, node.mtime_ns = link.uid, link.gid, link.mtime_ns
    if not isinstance(node, Symlink):
        node.mode = link.mode
    if not node.xattrs and not link.xattrs:
        return
    # In place: thousands of links to one node may each add an attribute.
    xattrs = node.xattrs if isinstance(node.xattrs, dict) else {}
    node.xattrs = xattrs
    xattrs.pop(CAPABILITY, None)
    for name, value in link.xattrs.items():
        if isinstance(node, File) or not name.startswith(USER):
            xattrs[name] = value


def decompress(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress a blob in gzip, zstd, xz or bzip2; yield any other blob as it is.

    The first bytes of the blob decide, because the media type in a manifest may be wrong. Raises
    `CorruptError` if the compressed data is damaged or needs too much memory.
    """
    first = next(pieces, b"")
    blob = chain([first], pieces)
    decompression = find_decompression(first)
    yield from decompression(blob) if decompression else blob


def _count(pieces: Iterator[bytes], transfer: Transfer) -> Iterator[bytes]:
    """Yield the pieces and report each to ``transfer``."""
    for piece in pieces:
        yield piece
        transfer.advance(len(piece))


def _in_layer(error: CorruptError, number: int, image: Image) -> CorruptError:
    return CorruptError(
        f"layer {number} of {len(image.layers)} of {image.uri}: {error.message}",
        error.hint or UNSOUND,
    )
