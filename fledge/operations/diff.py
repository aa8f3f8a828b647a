"""What makes two artifacts two: their bytes, their containers, or what is in them."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from struct import Struct
from typing import Literal

import msgspec

from fledge.artifact import Opened, opened
from fledge.cpio.newc import TRAILER
from fledge.cpio.reader import Initramfs, read_entries
from fledge.errors import unreadable
from fledge.ext4.reader import Image
from fledge.tree import NANOSECONDS, TYPE_NAMES, Device, Directory, File, Node, Symlink, Tree
from fledge.tree.blocks import blocks
from fledge.tree.compression import GZIP_MAGIC
from fledge.tree.content import (
    READ_SIZE,
    Content,
    Span,
    Sparse,
    content_sha256,
    content_size,
    read_content,
)
from fledge.tree.names import split_path

MAX_TEXT = 1 << 20
MAX_TEXT_LINES = 4000
"""Bytes and lines of a file whose lines are compared: that takes quadratic time at worst."""

MAX_PAIRS = 1 << 28
"""Pairs of lines that may have to be compared in all files together. At worst, which is what an
enemy can have, that takes two minutes."""
LINE_COST = 1 << 11
"""What a line that is kept counts, in pairs."""

MAX_SHOWN = 200
MAX_WIDTH = 400
"""Lines that are shown of one file, and characters of each."""

_GZIP_HEADER = Struct("<2sBBIBB")
GZIP_LEVELS = {2: "best", 4: "fastest"}

UNCOMPRESSED = "uncompressed archives"
"""The name of the fact that tells whether only the compression is another."""

NO_NEWLINE = " (no newline at the end)"
NOT_COMPARED = ("… its lines are not compared, for those before took too long",)

Fields = Mapping[str, object]

_Contents = tuple[tuple[str, str], tuple[str, ...]]
"""SHA-256 of two contents, and the lines that differ."""


class Change(msgspec.Struct, frozen=True):
    """How one path differs."""

    path: bytes
    kind: Literal["added", "removed", "changed"]
    fields: Mapping[str, tuple[object, object]] = msgspec.field(default_factory=dict)
    """What is another in a changed one, before and after."""
    lines: tuple[str, ...] = ()
    """The difference of two texts, as ``diff -u`` shows it."""


class Detail(msgspec.Struct, frozen=True):
    """A field of inodes, or of headers in an archive, that is another."""

    paths: int
    """How many of the paths that both artifacts have."""
    path: bytes
    """The first of them."""
    before: object
    after: object
    """Its field, before and after."""


class Report(msgspec.Struct, frozen=True):
    """How two artifacts differ."""

    first_difference: int | None
    """The first byte that is another, or that only one has; None if there is none."""
    changes: tuple[Change, ...]
    """What is another in them."""
    container: Mapping[str, tuple[object, object]]
    """What is another around that: compression, order, the superblock; by name, before and
    after. Between two kinds there is little to compare."""
    details: Mapping[str, Detail]
    """What is another in inodes or headers and does not show in the tree, by name; nothing
    between two kinds."""
    not_compared: tuple[str, ...]
    """What only one of the two kinds can hold."""
    notes: tuple[str, ...] = ()
    """What is to be said of the bytes that nothing above explains."""

    @property
    def same_bytes(self) -> bool:
        return self.first_difference is None


UNNAMED = "what differs is in free space, padding, or structures that are not compared"
ONLY_IN_EXT4 = ("extended attributes", "parts of a second", "/lost+found")


def diff(before: Path, after: Path) -> Report:
    """Compare two artifacts. Raises as `fledge.artifact.opened` does."""
    with opened(before) as old, opened(after) as new:
        first = _first_difference(before, after)
        if first is None:
            return Report(None, (), {}, {}, ())
        mixed = old.kind != new.kind
        changes = tuple(compare(old.tree, new.tree, coarse=mixed))
        container = _changed(_facts(old, mixed=mixed), _facts(new, mixed=mixed))
        details = {} if mixed else _details(old, new)
        if isinstance(old.holds, Initramfs) and isinstance(new.holds, Initramfs):
            container |= _order(old.holds, new.holds)
        notes = []
        if isinstance(old.holds, Initramfs) and not mixed and UNCOMPRESSED not in container:
            notes.append("the archives are the same bytes uncompressed")
        elif not changes and not container and not details:
            notes.append(UNNAMED)
        not_compared = ONLY_IN_EXT4 if mixed else ()
        return Report(first, changes, container, details, not_compared, tuple(notes))


def _first_difference(before: Path, after: Path) -> int | None:
    position = 0
    try:
        with before.open("rb") as one, after.open("rb") as two:
            while (old := one.read(READ_SIZE)) == (new := two.read(READ_SIZE)):
                if not old:
                    return None
                position += len(old)
    except OSError as error:
        raise unreadable(error.filename, error) from error
    pairs = zip(old, new, strict=False)
    equal = (number for number, (a, b) in enumerate(pairs) if a != b)
    return position + next(equal, min(len(old), len(new)))


def _facts(artifact: Opened, *, mixed: bool) -> Fields:
    """What is around the tree, by names that people know."""
    holds = artifact.holds
    if mixed:
        return {"kind": artifact.kind, "sockets": sorted(holds.sockets)}
    inside = _initramfs_facts(holds) if isinstance(holds, Initramfs) else _ext4_facts(holds)
    return {"size": artifact.size, **_gzip_facts(artifact.path), **inside}


def _gzip_facts(path: Path) -> Fields:
    """The header of the first member (RFC 1952, section 2.3)."""
    header = b"".join(read_content(Span(path, 0, _GZIP_HEADER.size)))
    magic, _, flags, time, level, system = _GZIP_HEADER.unpack(header)
    if magic != GZIP_MAGIC:
        return {}
    return {
        "gzip flags": flags,
        "gzip time": time,
        "gzip level": GZIP_LEVELS.get(level, level),
        "gzip system": system,
    }


def _initramfs_facts(initramfs: Initramfs) -> Fields:
    archives = initramfs.archives
    return {
        "archives": [archive.compression or "uncompressed" for archive in archives],
        "entries": [archive.entries for archive in archives],
        UNCOMPRESSED: [content_sha256(archive.data) for archive in archives],
        "sockets": sorted(initramfs.sockets),
    }


def _ext4_facts(image: Image) -> Fields:
    fields = image.superblock._asdict()
    for kind in ("compat", "incompat", "ro_compat"):
        del fields[f"feature_{kind}"]
    return {
        "features": image.superblock.features,
        **{f"superblock {name}": _readable(name, value) for name, value in fields.items()},
        "sockets": sorted(image.sockets),
    }


def _order(old: Initramfs, new: Initramfs) -> dict[str, tuple[object, object]]:
    """The first two entries that have changed places, of those that both have."""
    names = [list(_names(each)) for each in (old, new)]
    common = set(names[0]) & set(names[1])
    pairs = zip_longest(*([name for name in each if name in common] for each in names))
    first = next(((before, after) for before, after in pairs if before != after), None)
    return {"first entry in another place": first} if first else {}


def _names(initramfs: Initramfs) -> Iterator[bytes]:
    """Those of all entries as they come, each name of a hard link too."""
    for archive in initramfs.archives:
        with archive.data.path.open("rb") as file:
            for entry, _ in read_entries(file, archive.data.path, archive.data.offset):
                if entry.name != TRAILER:
                    yield b"/" + _normal(entry.name)


def _normal(name: bytes) -> bytes:
    """Without what changes nothing: `./` before it, and the like."""
    return b"/".join(split_path(name))


def _details(old: Opened, new: Opened) -> dict[str, Detail]:
    """What is another in inodes or headers, of the paths that both have."""
    counts: Counter[str] = Counter()
    firsts: dict[str, tuple[bytes, object, object]] = {}
    others = dict(new.tree.walk())
    for path, node in old.tree.walk():
        if (other := others.get(path)) is None:
            continue
        for name, (before, after) in _changed(_hidden(old, node), _hidden(new, other)).items():
            counts[name] += 1
            firsts.setdefault(name, (path, before, after))
    return {name: Detail(counts[name], *firsts[name]) for name in sorted(counts)}


def _hidden(artifact: Opened, node: Node) -> Fields:
    """What an artifact says of a node beside what the node does."""
    if isinstance(artifact.holds, Initramfs):
        header = artifact.holds.headers.get(node)
        if header is None:
            return {}
        return {
            "inode number": header.ino,
            "links": header.nlink,
            "device of its filesystem": f"{header.devmajor}:{header.devminor}",
            "before its name": header.name.removesuffix(_normal(header.name)),
            "mode of symlink": f"{node.mode:04o}" if isinstance(node, Symlink) else None,
        }
    inode = artifact.holds.inodes[node]
    return {
        "inode number": inode.number,
        "links": inode.links,
        "blocks": inode.blocks,
        "flags": f"{inode.flags:#x}",
        "generation": inode.generation,
        "atime_ns": inode.atime_ns,
        "ctime_ns": inode.ctime_ns,
        "crtime_ns": inode.crtime_ns,
        "size of directory": inode.size if isinstance(node, Directory) else None,
        "place of content": _place(node.content) if isinstance(node, File) else None,
    }


def _place(content: Content) -> object:
    """Where it is in the image; of one in pieces as in `Sparse`."""
    if isinstance(content, Sparse):
        return list(content.extents)
    return content.offset if isinstance(content, Span) else None


def compare(before: Tree, after: Tree, *, coarse: bool = False) -> Iterator[Change]:
    """Every path that is not the same in both, in the order of `Tree.walk`.

    ``coarse`` leaves out what an initramfs cannot hold: extended attributes, parts of a
    second, and ext4's own /lost+found. Contents are read piece by piece. Raises as
    `fledge.content.read_content` does.
    """
    texts = _Texts()
    nodes = [dict(tree.walk()) for tree in (before, after)]
    firsts = [_first_names(each) for each in nodes]
    contents: dict[tuple[Node, Node], _Contents] = {}
    for path in sorted(nodes[0].keys() | nodes[1].keys(), key=lambda path: path.split(b"/")):
        old, new = nodes[0].get(path), nodes[1].get(path)
        if coarse and path == b"lost+found" and _is_empty(old) and _is_empty(new):
            continue
        if old is None or new is None:
            yield Change(path, "added" if old is None else "removed")
            continue
        fields = _changed(_fields(old, coarse=coarse), _fields(new, coarse=coarse))
        linked = firsts[0][old], firsts[1][new]
        if linked[0] != linked[1]:
            fields["hard link of"] = (
                linked[0] if linked[0] != path else None,
                linked[1] if linked[1] != path else None,
            )
        lines: tuple[str, ...] = ()
        if isinstance(old, File) and isinstance(new, File):
            if (old, new) not in contents:
                contents[old, new] = _compare_contents(old.content, new.content, texts)
            digests, lines = contents[old, new]
            # The other names of the two have the same lines.
            contents[old, new] = digests, ()
            if digests[0] != digests[1]:
                fields["content"] = digests
        if fields:
            yield Change(path, "changed", fields, lines)


def _first_names(nodes: Mapping[bytes, Node]) -> dict[Node, bytes]:
    """The first path of each node: two paths with the same one are hard links."""
    first: dict[Node, bytes] = {}
    for path, node in nodes.items():
        first.setdefault(node, path)
    return first


def _is_empty(node: Node | None) -> bool:
    """Whether there is nothing, or a directory with nothing in it."""
    return node is None or (isinstance(node, Directory) and not node.children)


def _fields(node: Node, *, coarse: bool) -> Fields:
    fields: dict[str, object] = {
        "type": TYPE_NAMES[node.file_type],
        "uid": node.uid,
        "gid": node.gid,
        "mtime_ns": node.mtime_ns // NANOSECONDS * NANOSECONDS if coarse else node.mtime_ns,
    }
    if not isinstance(node, Symlink):
        fields["mode"] = f"{node.mode:04o}"
    if not coarse:
        fields["xattrs"] = dict(sorted(node.xattrs.items()))
    if isinstance(node, File):
        fields["size"] = content_size(node.content)
    elif isinstance(node, Symlink):
        fields["target"] = node.target
    elif isinstance(node, Device):
        fields["device"] = f"{node.major}:{node.minor}"
    return fields


def _changed(old: Fields, new: Fields) -> dict[str, tuple[object, object]]:
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def _compare_contents(old: Content, new: Content, texts: _Texts) -> _Contents:
    """The digests of both and, if they are texts that differ, the lines that do."""
    if isinstance(old, Sparse) or isinstance(new, Sparse):
        digests = _digest_of_blocks(old), _digest_of_blocks(new)
    else:
        digests = content_sha256(old), content_sha256(new)
    if digests[0] == digests[1]:
        return digests, ()
    return digests, texts.compare(_lines(old), _lines(new))


class _Texts:
    """Compares texts, as long as they are not too much to be compared."""

    def __init__(self) -> None:
        self._left = MAX_PAIRS

    def compare(self, before: list[str] | None, after: list[str] | None) -> tuple[str, ...]:
        """The lines that differ; none if one of the two is no text."""
        if before is None or after is None:
            return ()
        self._left -= len(before) * len(after)
        if self._left < 0:
            return NOT_COMPARED
        difference = islice(difflib.unified_diff(before, after, lineterm="", n=2), 2, None)
        lines = [_narrow(line) for line in islice(difference, MAX_SHOWN)]
        self._left -= LINE_COST * len(lines)
        left = sum(1 for _ in difference)
        return (*lines, *([f"… and {left} lines more"] if left else []))


def _lines(content: Content) -> list[str] | None:
    """The lines of a text; None for anything else, or too long a one.

    Only a newline ends a line, as in diff(1), so that no other line end is lost.
    """
    if content_size(content) > MAX_TEXT:
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


def _narrow(line: str) -> str:
    left = len(line) - MAX_WIDTH
    return f"{line[:MAX_WIDTH]}… and {left} characters more" if left > 0 else line


def _digest_of_blocks(content: Content) -> str:
    """As telling as a digest of all, and not as long in coming if holes claim to be huge."""
    digest = hashlib.sha256()
    for position, block in blocks(content):
        digest.update(position.to_bytes(8, "little") + block)
    return f"blocks with sha256 {digest.hexdigest()}"


def _readable(name: str, value: object) -> object:
    if not isinstance(value, bytes):
        return value
    return value.rstrip(b"\0") if name in ("volume_name", "last_mounted") else value.hex()
