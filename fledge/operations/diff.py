"""Compares two artifacts: bytes, container, tree."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from itertools import islice, zip_longest
from pathlib import Path
from typing import Literal

import msgspec

from fledge.errors import CorruptError, unreadable_argument
from fledge.formats import Opened, find_format, open_artifact
from fledge.host.files import PathLike
from fledge.operations import seal
from fledge.report import Reporter, Transfer
from fledge.tree import (
    NANOSECONDS,
    TYPE_NAMES,
    Device,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
)
from fledge.tree.blocks import nonzero_blocks
from fledge.tree.content import (
    READ_SIZE,
    Content,
    Packed,
    Sparse,
    content_digest,
    content_size,
    equal_contents,
    read_content,
)
from fledge.tree.features import Feature

MAX_TEXT_SIZE = 1 << 20
"""Maximum bytes of a file whose lines are compared."""

MAX_TEXT_LINES = 4000
"""Maximum lines of a file whose lines are compared, which takes quadratic time at worst."""

MAX_LINE_PAIRS = 1 << 28
"""Maximum pairs of lines to compare in all files together. A hostile artifact can make a
comparison visit all of them."""

LINE_COST = 1 << 11
"""Pairs that a line in the result counts, because it takes memory."""

MAX_SHOWN_LINES = 200
"""Maximum lines in the result for one file."""

MAX_LINE_LENGTH = 400
"""Maximum characters of a line in the result."""

UNCOMPRESSED = "uncompressed archives"
"""The name of the fact that lists the digests of uncompressed archives."""

NO_NEWLINE = " (no newline at the end)"
LINES_NOT_COMPARED = ("… its lines are not compared: earlier files took too long",)

Fields = Mapping[str, object]
"""Facts or fields by name."""

_ContentDifference = tuple[tuple[str, str], tuple[str, ...]]
"""The digests of two contents, and the lines that differ."""


class Change(msgspec.Struct, frozen=True):
    """The difference at one path."""

    path: bytes
    kind: Literal["added", "removed", "changed"]
    fields: Mapping[str, tuple[object, object]] = msgspec.field(default_factory=dict)
    """The fields that changed, as (before, after)."""
    lines: tuple[str, ...] = ()
    """The difference of two text files, in the format of ``diff -u``."""


class Detail(msgspec.Struct, frozen=True):
    """A field of inodes or archive headers that differs."""

    paths: int
    """The number of paths at which it differs, among those that both artifacts have."""
    path: bytes
    """The first of these paths."""
    before: object
    """The field at that path in the first artifact."""
    after: object
    """The field at that path in the second artifact."""


class Difference(msgspec.Struct, frozen=True):
    """The difference between two artifacts."""

    first_difference: int | None
    """The offset of the first byte that differs, or that only one has. None if they are equal."""
    changes: tuple[Change, ...]
    """The paths that differ, in the order of `Tree.walk`."""
    container: Mapping[str, tuple[object, object]]
    """The facts about the container that differ, such as compression, order or superblock, as
    (before, after) by name. Few can be compared between two formats."""
    details: Mapping[str, Detail]
    """The fields of inodes or headers that differ and are not in the tree, by name. Empty between
    two formats."""
    not_compared: tuple[str, ...]
    """The features and paths that only one of the two formats can store."""
    notes: tuple[str, ...] = ()
    """Remarks on the difference."""

    @property
    def same_bytes(self) -> bool:
        """Whether the two files are equal."""
        return self.first_difference is None

    @property
    def same_tree(self) -> bool:
        """Whether the two trees are equal, as far as both formats can store them."""
        return not self.changes


UNEXPLAINED = "the difference is in free space, padding or structures that are not compared"


def diff(before: PathLike, after: PathLike, *, reporter: Reporter | None = None) -> Difference:
    """Compare two artifacts, which may have different formats.

    Of two files with equal bytes no more is read. Raises what `fledge.formats.open_artifact`
    raises.
    """
    before, after = Path(before), Path(after)
    reporter = reporter or Reporter()
    with reporter.work("comparing") as progress, ExitStack() as stack:
        sizes = [find_format(path)[1] for path in (before, after)]
        progress.restart(0, max(sizes))
        first = _first_difference(before, after, progress)
        if first is None:
            return Difference(None, (), _changed(_seal_facts(before), _seal_facts(after)), {}, ())
        old, new = (stack.enter_context(open_artifact(path)) for path in (before, after))
        if old.format is not new.format:
            return _across_formats(first, old, new)
        changes = tuple(compare(old.tree, new.tree))
        container = _changed(_container_facts(old), _container_facts(new)) | _order_difference(
            old, new
        )
        details = _inode_details(old, new)
        notes = []
        if old.contents.uncompressed() and UNCOMPRESSED not in container:
            notes.append("the uncompressed archives are equal")
        elif not changes and not container and not details:
            notes.append(UNEXPLAINED)
        return Difference(first, changes, container, details, (), tuple(notes))


def _across_formats(first: int, old: Opened, new: Opened) -> Difference:
    """Compare what both formats can store."""
    lacking = old.format.lacks | new.format.lacks
    own_paths = old.format.own_paths | new.format.own_paths
    changes = tuple(compare(old.tree, new.tree, without=lacking, own_paths=own_paths))
    container = _changed(
        *(
            {
                "kind": each.format.name,
                "sockets": sorted(each.contents.sockets),
                **_seal_facts(each.path),
            }
            for each in (old, new)
        )
    )
    one_sided = old.format.lacks ^ new.format.lacks
    not_compared = [feature.value for feature in Feature if feature in one_sided]
    one_sided_paths = old.format.own_paths ^ new.format.own_paths
    not_compared += [f"/{path.decode()}" for path in sorted(one_sided_paths)]
    return Difference(first, changes, container, {}, tuple(not_compared))


def _first_difference(before: Path, after: Path, progress: Transfer) -> int | None:
    """Return the offset of the first byte that differs; None if the files are equal."""
    position = 0
    try:
        with before.open("rb") as one, after.open("rb") as two:
            while (old := one.read(READ_SIZE)) == (new := two.read(READ_SIZE)):
                if not old:
                    return None
                position += len(old)
                progress.advance(len(old))
    except OSError as error:
        raise unreadable_argument(error.filename, error) from error
    pairs = zip(old, new, strict=False)
    equal = (number for number, (a, b) in enumerate(pairs) if a != b)
    return position + next(equal, min(len(old), len(new)))


def _container_facts(artifact: Opened) -> Fields:
    """Return the facts about the container, by their displayed names."""
    contents = artifact.contents
    uncompressed = [digest.hex for digest in contents.uncompressed()]
    return {
        "size": artifact.size,
        **contents.facts(),
        **({UNCOMPRESSED: uncompressed} if uncompressed else {}),
        "sockets": sorted(contents.sockets),
        **_seal_facts(artifact.path),
    }


def _seal_facts(artifact: Path) -> Fields:
    """Return the root hash and the place of the hash tree of a sealed disk, by displayed names."""
    try:
        found = seal.find(artifact)
    except CorruptError:
        return {"hash tree": "damaged or missing"}
    if found is None:
        return {}
    where = "appended" if found.is_appended else "beside"
    return {"root hash": found.root_hash.hex, "hash tree": where}


def _order_difference(old: Opened, new: Opened) -> dict[str, tuple[object, object]]:
    """Return the first pair of entries whose order differs, among those that both have."""
    names = [each.contents.order() for each in (old, new)]
    common = set(names[0]) & set(names[1])
    pairs = zip_longest(*([name for name in each if name in common] for each in names))
    first = next(((before, after) for before, after in pairs if before != after), None)
    return {"first entry in another place": first} if first else {}


def _inode_details(old: Opened, new: Opened) -> dict[str, Detail]:
    """Compare the fields of inodes or headers at the paths that both artifacts have."""
    counts: Counter[str] = Counter()
    first_paths: dict[str, tuple[bytes, object, object]] = {}
    others = dict(new.tree.walk())
    for path, node in old.tree.walk():
        if (other := others.get(path)) is None:
            continue
        facts = old.contents.node_facts(node), new.contents.node_facts(other)
        for name, (before, after) in _changed(*facts).items():
            counts[name] += 1
            first_paths.setdefault(name, (path, before, after))
    return {name: Detail(counts[name], *first_paths[name]) for name in sorted(counts)}


def compare(
    before: Tree,
    after: Tree,
    *,
    without: Set[Feature] = frozenset(),
    own_paths: Set[bytes] = frozenset(),
) -> Iterator[Change]:
    """Yield the paths that differ, in the order of `Tree.walk`.

    The features in ``without`` are not compared. Directories at ``own_paths`` are ignored if they
    are empty. Raises what `read_content` raises.
    """
    texts = _TextComparer()
    nodes = [dict(tree.walk()) for tree in (before, after)]
    first_paths = [_first_names(each) for each in nodes]
    contents: dict[tuple[Node, Node], _ContentDifference | None] = {}
    for path in _merged(*nodes):
        old, new = nodes[0].get(path), nodes[1].get(path)
        if path in own_paths and _is_empty(old) and _is_empty(new):
            continue
        if old is None or new is None:
            yield Change(path, "added" if old is None else "removed")
            continue
        fields = {}
        if not _is_alike(old, new):
            fields = _changed(_node_fields(old, without), _node_fields(new, without))
        linked = first_paths[0][old], first_paths[1][new]
        if linked[0] != linked[1]:
            fields["hard link of"] = (
                linked[0] if linked[0] != path else None,
                linked[1] if linked[1] != path else None,
            )
        lines: tuple[str, ...] = ()
        if isinstance(old, File) and isinstance(new, File):
            if (old, new) not in contents:
                contents[old, new] = _compare_contents(old.content, new.content, texts)
            if difference := contents[old, new]:
                digests, lines = difference
                fields["content"] = digests
                # Show the lines only once if the two files have several names.
                contents[old, new] = digests, ()
        if fields:
            yield Change(path, "changed", fields, lines)


def _merged(before: Iterable[bytes], after: Iterable[bytes]) -> Iterator[bytes]:
    """Merge paths, each once. Both sequences are in the order of `Tree.walk`."""
    one, two = iter(before), iter(after)
    old, new = next(one, None), next(two, None)
    while old is not None or new is not None:
        if old == new:
            yield old or b""
            old, new = next(one, None), next(two, None)
        elif new is None or (old is not None and old.split(b"/") < new.split(b"/")):
            yield old or b""
            old = next(one, None)
        else:
            yield new
            new = next(two, None)


def _is_alike(old: Node, new: Node) -> bool:
    """Return whether all fields of two nodes are equal, contents apart. Most are, in most diffs."""
    if (
        old.file_type != new.file_type
        or old.mode != new.mode
        or old.uid != new.uid
        or old.gid != new.gid
        or old.mtime_ns != new.mtime_ns
        or old.xattrs != new.xattrs
    ):
        return False
    if isinstance(old, File) and isinstance(new, File):
        return content_size(old.content) == content_size(new.content)
    return isinstance(old, Directory)


def _first_names(nodes: Mapping[bytes, Node]) -> dict[Node, bytes]:
    """Return the first path of each node. Two paths are hard links if they share it."""
    first: dict[Node, bytes] = {}
    for path, node in nodes.items():
        first.setdefault(node, path)
    return first


def _is_empty(node: Node | None) -> bool:
    """Return whether there is no node, or an empty directory."""
    return node is None or (isinstance(node, Directory) and not node.children)


def _node_fields(node: Node, without: Set[Feature]) -> Fields:
    """Return the fields of a node to compare."""
    seconds = Feature.SUBSECONDS in without
    fields: dict[str, object] = {
        "type": TYPE_NAMES[node.file_type],
        "uid": node.uid,
        "gid": node.gid,
        "mtime_ns": node.mtime_ns // NANOSECONDS * NANOSECONDS if seconds else node.mtime_ns,
    }
    if not isinstance(node, Symlink):
        fields["mode"] = f"{node.mode:04o}"
    if Feature.XATTRS not in without:
        fields["xattrs"] = dict(sorted(node.xattrs.items()))
    if isinstance(node, File):
        fields["size"] = content_size(node.content)
    elif isinstance(node, Symlink):
        fields["target"] = node.target
    elif isinstance(node, Device):
        fields["device"] = f"{node.major}:{node.minor}"
    return fields


def _changed(old: Fields, new: Fields) -> dict[str, tuple[object, object]]:
    if old == new:
        return {}
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def _compare_contents(
    old: Content, new: Content, texts: _TextComparer
) -> _ContentDifference | None:
    """Return the digests of both contents and, if they are text, the lines that differ.

    None: they are equal.
    """
    if equal_contents(old, new):
        return None
    if any(isinstance(each, Sparse | Packed) for each in (old, new)):
        digests = _digest_of_blocks(old), _digest_of_blocks(new)
    else:
        digests = content_digest(old).hex, content_digest(new).hex
    if digests[0] == digests[1]:
        return None
    return digests, texts.compare(_lines(old), _lines(new))


class _TextComparer:
    """Compares text files, until the work exceeds `MAX_LINE_PAIRS`."""

    def __init__(self) -> None:
        self._left = MAX_LINE_PAIRS

    def compare(self, before: list[str] | None, after: list[str] | None) -> tuple[str, ...]:
        """Return the lines that differ. Empty if one of the two is None, so not text."""
        if before is None or after is None:
            return ()
        self._left -= len(before) * len(after)
        if self._left < 0:
            return LINES_NOT_COMPARED
        difference = islice(difflib.unified_diff(before, after, lineterm="", n=2), 2, None)
        lines = [_shorten(line) for line in islice(difference, MAX_SHOWN_LINES)]
        self._left -= LINE_COST * len(lines)
        left = sum(1 for _ in difference)
        return (*lines, *([f"… and {left} more lines"] if left else []))


def _lines(content: Content) -> list[str] | None:
    """Return the lines of a text file; None if it is not text or is too long.

    Only a newline ends a line, as in diff(1), so that differences in other line ends are visible.
    """
    if content_size(content) > MAX_TEXT_SIZE:
        return None
    try:
        text = b"".join(read_content(content)).decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text or text.count("\n") >= MAX_TEXT_LINES:
        return None
    lines = text.split("\n")
    if not lines[-1]:
        return lines[:-1]
    return [*lines[:-1], lines[-1] + NO_NEWLINE]


def _shorten(line: str) -> str:
    left = len(line) - MAX_LINE_LENGTH
    return f"{line[:MAX_LINE_LENGTH]}… and {left} more characters" if left > 0 else line


def _digest_of_blocks(content: Content) -> str:
    """Return a digest that skips holes, which may be huge."""
    digest = hashlib.sha256()
    for position, block in nonzero_blocks(content):
        digest.update(position.to_bytes(8, "little") + block)
    return f"blocks with sha256 {digest.hexdigest()}"
