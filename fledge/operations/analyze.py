"""Says of an artifact where its bytes come from, and which of them are worth a look.

An artifact does not store where its files come from. That is found out from its provenance, which
has the digest of every other input and that of the image's config, and from the image's layers,
which are applied again if the cache has them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_ISGID, S_ISUID
from typing import Literal, NamedTuple

import msgspec

from fledge.errors import CorruptError
from fledge.formats import Opened, open_artifact
from fledge.host.files import PathLike
from fledge.net.json_document import MAX_DOCUMENT_SIZE
from fledge.oci.manifest import parse_config
from fledge.operations.arguments import as_session
from fledge.operations.inspect import LimitedHasher, Summary, finding_provenance, summarize
from fledge.operations.layer_sizes import HiddenFile, LayeredImage, LayerSizes, measure_layers
from fledge.operations.sizes import SizedFile, sized_files
from fledge.project.provenance import Provenance
from fledge.session import Session
from fledge.sources import paths
from fledge.sources.kinds import IMAGE_ROLES
from fledge.tree import NANOSECONDS, File, Tree
from fledge.tree.capabilities import capabilities
from fledge.tree.content import content_size, read_content
from fledge.tree.digest import Digest
from fledge.tree.packages import Found, find_packages

MIN_DUPLICATE = 4096
"""Minimum bytes of a file that is compared with others. A smaller one takes a block in any case."""

MAX_EXTRA_SIZE = 1 << 30
"""Contents are hashed until their total exceeds the size of the artifact by this many bytes."""


class Owner(msgspec.Struct, frozen=True):
    """Where files of an artifact come from."""

    kind: Literal["layer", "image", "input", "other", "unknown"]
    """``layer``: one layer of the image. ``image``: any of its layers, which are not in the cache.
    ``input``: another input in the provenance. ``other``: none of these. ``unknown``: there is no
    provenance."""
    name: str
    """Such as ``layer 1`` or, of an input, its role."""
    detail: str
    """The command that made the layer, as the image's config has it; empty if it is not known."""


class OwnedFile(NamedTuple):
    """A name of a file, and where it comes from."""

    path: bytes
    """Without a leading slash."""
    size: int
    """Bytes of content. 0 for all names of a hard link but the first."""
    owner: int
    """An index into `Analysis.owners`."""


class Duplicate(msgspec.Struct, frozen=True):
    """Files with equal contents that are not links to each other."""

    size: int
    """Bytes of one of them."""
    paths: tuple[bytes, ...]
    """Sorted."""

    @property
    def wasted(self) -> int:
        """The bytes of all of them but one."""
        return self.size * (len(self.paths) - 1)


class Privileged(msgspec.Struct, frozen=True):
    """A file that gives whoever runs it more rights."""

    path: bytes
    mode: int
    uid: int
    gid: int
    capabilities: str
    """As getcap(8) prints them; empty if there are none."""


class Analysis(msgspec.Struct, frozen=True):
    """What is known of the bytes of an artifact."""

    kind: str
    """The name of its format."""
    size: int
    """Bytes of the artifact."""
    summary: Summary
    owners: tuple[Owner, ...]
    """The layers, lowest first, then all others."""
    files: tuple[OwnedFile, ...]
    """Every name of a file, in the order of `Tree.walk`. The sizes add up to
    ``summary.content_size``."""
    layers: tuple[LayerSizes, ...] | None
    """The layers of the image, lowest first. None: it has no image that is known, or the cache
    lacks a layer."""
    has_image: bool
    """Whether the artifact has the config of an image that its provenance names."""
    hidden: tuple[HiddenFile, ...]
    """The files of layers that the image has no more, the largest first."""
    duplicates: tuple[Duplicate, ...]
    """Those that waste most first. Files smaller than `MIN_DUPLICATE` are left out."""
    all_compared: bool
    """Whether all files were compared. The rest would exceed `MAX_EXTRA_SIZE`."""
    privileged: tuple[Privileged, ...]
    """Files with setuid, setgid or capabilities, by path."""
    packages: Found
    """The software packages, and what of them could not be read."""


class _ImageFacts(NamedTuple):
    """What the config of the image in an artifact says about its layers."""

    diff_ids: tuple[Digest, ...]
    commands: tuple[str, ...]
    """The command that made each layer."""


def analyze(artifact: PathLike, session: Session | None = None) -> Analysis:
    """Analyze an artifact, whoever made it.

    Nothing is downloaded. Raises what `fledge.inspect` raises, `HostError` if the cache cannot be
    used.
    """
    path, session = Path(artifact), as_session(session)
    with (
        session.reporter.work(f"reading {path.name}") as progress,
        finding_provenance(path, progress) as record,
        open_artifact(path) as opened,
    ):
        found = record.result()
        return _analyze(opened, summarize(opened, found, progress), found, session)


def _analyze(
    opened: Opened, summary: Summary, record: Provenance | None, session: Session
) -> Analysis:
    tree = opened.tree
    files = list(sized_files(tree))
    digests = LimitedHasher(opened, MAX_EXTRA_SIZE)
    facts = _image_facts(tree, record, digests)
    image = measure_layers(facts.diff_ids, session.cache) if facts else None
    owners = _Owners(record, facts, image, digests)
    owned = tuple(OwnedFile(file.path, file.size, owners.of(file)) for file in files)
    duplicates, all_compared = _duplicates(files, digests)
    return Analysis(
        kind=opened.format.name,
        size=opened.size,
        summary=summary,
        owners=tuple(owners.all),
        files=owned,
        layers=image.layers if image else None,
        has_image=facts is not None,
        hidden=tuple(sorted(image.hidden, key=lambda each: (-each.size, each.path)))
        if image
        else (),
        duplicates=duplicates,
        all_compared=all_compared,
        privileged=tuple(_privileged(files)),
        packages=find_packages(tree),
    )


class _Owners:
    """Decides where each file comes from."""

    def __init__(
        self,
        record: Provenance | None,
        facts: _ImageFacts | None,
        image: LayeredImage | None,
        digests: LimitedHasher,
    ) -> None:
        self.all: list[Owner] = []
        self._record, self._digests = record, digests
        self._has_image = facts is not None
        self._image = image
        self._roles = {item.digest: item.role for item in record.inputs} if record else {}
        if facts and image:
            self.all = [
                Owner("layer", f"layer {number}", command)
                for number, command in enumerate(facts.commands, start=1)
            ]
        self._numbers: dict[tuple[str, str], int] = {}

    def of(self, file: SizedFile) -> int:
        """Return the index in ``all`` of where a file comes from."""
        if self._record is None:
            return self._number(Owner("unknown", "unknown", ""))
        # Everything that fledge adds to the layers has this time.
        if file.node.mtime_ns == self._record.epoch * NANOSECONDS:
            digest = self._digests.of(file.node)
            if digest and (role := self._roles.get(digest)):
                name = f"{role} config" if role in IMAGE_ROLES else role
                return self._number(Owner("input", name, ""))
        if self._image:
            known = self._image.files.get(file.path)
            if known and _is_same(known, file.node):
                return known.origin
        elif self._has_image:
            return self._number(Owner("image", "image", ""))
        return self._number(Owner("other", "other inputs", ""))

    def _number(self, owner: Owner) -> int:
        number = self._numbers.setdefault((owner.kind, owner.name), len(self.all))
        if number == len(self.all):
            self.all.append(owner)
        return number


def _is_same(one: File, other: File) -> bool:
    """Return whether two files at one path have the same size and time, to the second.

    Some formats store no fractions of a second.
    """
    return (
        content_size(one.content) == content_size(other.content)
        and one.mtime_ns // NANOSECONDS == other.mtime_ns // NANOSECONDS
    )


def _image_facts(
    tree: Tree, record: Provenance | None, digests: LimitedHasher
) -> _ImageFacts | None:
    """Read the config of the image. None unless it is the one that the provenance names."""
    node = tree.get(paths.IMAGE_CONFIG)
    recorded = {item.digest for item in record.inputs if item.role in IMAGE_ROLES} if record else ()
    if (
        not isinstance(node, File)
        or content_size(node.content) > MAX_DOCUMENT_SIZE
        or digests.of(node) not in recorded
    ):
        return None
    config = b"".join(read_content(node.content))
    try:
        diff_ids = parse_config(config, paths.IMAGE_CONFIG.decode()).diff_ids
    except CorruptError:
        return None
    return _ImageFacts(diff_ids, _commands(json.loads(config).get("history"), len(diff_ids)))


def _commands(history: object, count: int) -> tuple[str, ...]:
    """Return the command of each layer (OCI image-spec, config.md, ``history``).

    They are empty if there is another number of them.
    """
    steps = history if isinstance(history, list) else []
    made = [
        str(step.get("created_by", ""))
        for step in steps
        if isinstance(step, dict) and not step.get("empty_layer")
    ]
    return tuple(made) if len(made) == count else ("",) * count


def _duplicates(
    files: Iterable[SizedFile], digests: LimitedHasher
) -> tuple[tuple[Duplicate, ...], bool]:
    """Return the duplicates, and whether all files were compared."""
    by_size: dict[int, list[SizedFile]] = defaultdict(list)
    for file in files:
        if file.size >= MIN_DUPLICATE:
            by_size[file.size].append(file)
    found: list[Duplicate] = []
    all_compared = True
    for size in sorted(by_size, reverse=True):
        if len(by_size[size]) == 1:
            continue
        by_digest: dict[Digest, list[bytes]] = defaultdict(list)
        for file in by_size[size]:
            if digest := digests.of(file.node):
                by_digest[digest].append(file.path)
            else:
                all_compared = False
        found += (Duplicate(size, tuple(each)) for each in by_digest.values() if len(each) > 1)
    found.sort(key=lambda each: (-each.wasted, each.paths))
    return tuple(found), all_compared


def _privileged(files: Iterable[SizedFile]) -> Iterator[Privileged]:
    for file in files:
        node = file.node
        if node.mode & (S_ISUID | S_ISGID) or node.xattrs:
            text = capabilities(node.xattrs)
            if text or node.mode & (S_ISUID | S_ISGID):
                yield Privileged(file.path, node.mode, node.uid, node.gid, text)
