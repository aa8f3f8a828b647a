"""Applies the cached layers of an image again, to see what each of them added and hid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import msgspec

from fledge.errors import CorruptError
from fledge.oci import layers
from fledge.operations.sizes import SizedFile, sized_files
from fledge.store.cache import BackgroundVerifier, Cache
from fledge.tree import File, Tree
from fledge.tree.budget import Budget
from fledge.tree.content import Blob
from fledge.tree.digest import Digest

MAX_LAYERS = 256
"""Maximum layers that are applied again. Builders allow 127."""


class LayerSizes(msgspec.Struct, frozen=True):
    """What one layer adds to the image and hides of it. All sizes are bytes of content."""

    diff_id: Digest
    files: int
    """The files that it adds or replaces. A file with several names counts once."""
    added: int
    """Their size."""
    hidden: int
    """The size of the files of lower layers that it replaces or removes."""
    wasted: int = 0
    """The size of those of its own files that upper layers replace or remove."""


class HiddenFile(msgspec.Struct, frozen=True):
    """A file of a layer that the image has no more."""

    path: bytes
    """Without a leading slash."""
    size: int
    layer: int
    """The layer that has it, counted from 0."""
    hidden_by: int
    """The layer that replaces or removes it."""


class LayeredImage(msgspec.Struct, frozen=True):
    """An image as its layers make it."""

    files: dict[bytes, File]
    """The files by path. Their `Node.origin` is the layer, counted from 0."""
    layers: tuple[LayerSizes, ...]
    """Lowest first."""
    hidden: tuple[HiddenFile, ...]
    """In the order in which they are hidden, then by path."""


def measure_layers(diff_ids: Sequence[Digest], cache: Cache) -> LayeredImage | None:
    """Apply layers that the cache has. None: it lacks one, one is damaged, or there are too many.

    Raises `HostError` if the cache cannot be used.
    """
    if len(diff_ids) > MAX_LAYERS:
        return None
    with closing(BackgroundVerifier(cache)) as verifier:
        blobs = {diff_id: verifier.claim(diff_id) for diff_id in diff_ids}
        found = [blob for diff_id in diff_ids if (blob := blobs[diff_id])]
        if len(found) < len(diff_ids):
            return None
        try:
            image = _apply(found)
        except CorruptError:
            return None
        return image if verifier.passes() else None


def _apply(blobs: Sequence[Blob]) -> LayeredImage:
    tree, budget = Tree(mtime_ns=0), Budget()
    for size in {blob.digest: blob.size for blob in blobs}.values():
        budget.grow(size)
    sizes: list[LayerSizes] = []
    hidden: list[HiddenFile] = []
    files: list[SizedFile] = []
    before: dict[File, SizedFile] = {}
    for number, blob in enumerate(blobs):
        layers.apply(tree, blob, budget)
        files = list(sized_files(tree))
        after = {file.node: file for file in reversed(files)}  # with the first name of each
        gone = [
            HiddenFile(file.path, file.size, node.origin, number)
            for node, file in before.items()
            if node not in after
        ]
        new = [file.size for node, file in after.items() if node.origin == number]
        hidden += sorted(gone, key=lambda each: each.path)
        sizes.append(LayerSizes(blob.digest, len(new), sum(new), sum(each.size for each in gone)))
        before = after
    wasted = [0] * len(blobs)
    for each in hidden:
        wasted[each.layer] += each.size
    return LayeredImage(
        {file.path: file.node for file in files},
        tuple(
            msgspec.structs.replace(each, wasted=wasted[number])
            for number, each in enumerate(sizes)
        ),
        tuple(hidden),
    )
