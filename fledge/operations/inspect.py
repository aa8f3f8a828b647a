"""What is in an artifact: its facts, its entries, and where they came from, as far as it tells."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from fledge.artifact import Opened
from fledge.cpio.reader import Initramfs
from fledge.errors import ConfigError, FledgeError
from fledge.ext4.structures import Superblock
from fledge.operations.build import ENTRYPOINT
from fledge.project import provenance
from fledge.project.provenance import Provenance
from fledge.sources import agent, init
from fledge.tree import TYPE_NAMES, Device, Directory, File, Node, Symlink, Tree
from fledge.tree.content import Span, content_sha256, content_size, read_content, whole_file
from fledge.tree.elf import architecture
from fledge.tree.names import printable, split_path

INITS = (b"/sbin/init", b"/etc/init", b"/bin/init", b"/bin/sh")
"""What the kernel tries to run on a disk, in its order (init/main.c)."""

MAX_CONFIG_SIZE = 4 << 20
"""Bytes of an image's config that are read."""

MAX_BEYOND = 1 << 35
"""32 GiB, half a minute or two: bytes that all contents may have beyond the size of the artifact
and still have digests. Files with holes can claim any size, and many may share their blocks."""


class Program(msgspec.Struct, frozen=True):
    """A file that is to be run."""

    path: bytes
    sha256: str | None
    """None if it is too large to be read, see `MAX_BEYOND`."""
    size: int
    format: str
    """The first line of a script, or what machine a program is for."""


class Summary(msgspec.Struct, frozen=True):
    """An artifact on one page. What cannot be told is None."""

    names: dict[str, int]
    """How many of each of `TYPE_NAMES`."""
    content_size: int
    """Bytes in all its files, each counted once."""
    init: Program | None
    has_own_init: bool
    """It is the init that is built into this fledge."""
    agent: Program | None
    agent_version: str | None
    image: str | None
    """Where it came from."""
    command: list[str] | None
    """What the image would run: entrypoint and arguments, from its config in the artifact."""
    has_provenance: bool
    """There is one beside it, and it is about these bytes. What it says is in ``agent_version``
    and ``image``."""


def summarize(opened: Opened) -> Summary:
    """Raises `FledgeError` if a content or the provenance cannot be read."""
    names = dict.fromkeys(TYPE_NAMES.values(), 0)
    files: set[File] = set()
    for _, node in opened.tree.walk():
        names[TYPE_NAMES[node.file_type]] += 1
        if isinstance(node, File):
            files.add(node)
    names["socket"] = len(opened.holds.sockets)
    digests = _Digests(opened)
    inits = (b"/init",) if isinstance(opened.holds, Initramfs) else INITS
    programs = (_program(opened.tree, path, digests) for path in inits)
    first = next(filter(None, programs), None)
    kestrel = _program(opened.tree, agent.PATH, digests)
    record = _provenance(opened)
    inputs = {item.role: item for item in record.inputs} if record else {}
    version = inputs["agent"].facts.get("version") if "agent" in inputs else None
    return Summary(
        names=names,
        content_size=sum(content_size(file.content) for file in files),
        init=first,
        has_own_init=first is not None and first.sha256 == whole_file(init.SCRIPT).sha256,
        agent=kestrel,
        agent_version=version if isinstance(version, str) else None,
        image=inputs["image"].uri if "image" in inputs else None,
        command=_command(opened.tree),
        has_provenance=record is not None,
    )


def find(opened: Opened, path: bytes, *, follow: bool) -> Node:
    """The node at ``path``; of a symlink that leads nowhere, the symlink.

    Raises `ConfigError` if there is none.
    """
    tree = opened.tree
    node = (tree.get(path, follow=True) if follow else None) or tree.get(path)
    if node is None:
        raise ConfigError(
            f"{opened.path} has no {printable(path)}", "Leave the path out and add -l to see all."
        )
    return node


def below(path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """The node at ``path`` and all below it, as `Tree.walk`, with paths from the root."""
    prefix = b"/".join(split_path(path))
    if not isinstance(node, Directory):
        yield prefix, node
        return
    tree = Tree(mtime_ns=0)
    tree.root = node
    for name, child in tree.walk():
        yield b"/".join(filter(None, (prefix, name))), child


def size(opened: Opened, node: Node) -> int:
    """As in stat(2); 0 for a directory of an initramfs, which says nothing of it."""
    if isinstance(node, File):
        return content_size(node.content)
    if isinstance(node, Symlink):
        return len(node.target)
    return 0 if isinstance(opened.holds, Initramfs) else opened.holds.inodes[node].size


def describe(opened: Opened, summary: Summary) -> dict[str, Any]:
    """The facts of an artifact as JSON has them, without its entries."""
    answer: dict[str, Any] = {
        "kind": opened.kind,
        "size": opened.size,
        "names": summary.names,
        "content_size": summary.content_size,
        "init": _program_json(summary.init),
        "agent": _program_json(summary.agent),
        "agent_version": summary.agent_version,
        "image": summary.image,
        "command": summary.command,
        "has_provenance": summary.has_provenance,
    }
    if isinstance(opened.holds, Initramfs):
        answer["archives"] = [
            {
                "offset": archive.offset,
                "compression": archive.compression,
                "size": archive.size,
                "entries": archive.entries,
            }
            for archive in opened.holds.archives
        ]
    else:
        answer["filesystem"] = _filesystem(opened.holds.superblock)
    return answer


def describe_entries(opened: Opened, path: bytes, top: Node) -> Iterator[dict[str, Any]]:
    """Every field of the entry at ``path`` and of those below it, as JSON has them.

    A name is text. If its bytes are not UTF-8, ``NAME_base64`` beside it holds them, and the
    text has U+FFFD where they are not. Of contents too large to be read ``sha256`` is None.
    """
    digests = _Digests(opened)
    for name, node in below(path, top):
        yield {**text("path", b"/" + name), **_fields(opened, node, digests)}
    for name in sockets_below(opened, path):
        yield {**text("path", b"/" + name), "type": "socket"}


def sockets_below(opened: Opened, path: bytes) -> list[bytes]:
    """Paths of sockets below ``path``, from the root; they are not in the tree."""
    prefix = b"".join(part + b"/" for part in split_path(path))
    return [name for name in opened.holds.sockets if name.startswith(prefix)]


def _fields(opened: Opened, node: Node, digests: _Digests) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": TYPE_NAMES[node.file_type],
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "size": size(opened, node),
        "mtime_ns": node.mtime_ns,
        "links": opened.links(node),
        "inode": opened.inode(node),
    }
    if isinstance(node, File):
        fields["sha256"] = digests.of(node)
    elif isinstance(node, Symlink):
        fields |= text("target", node.target)
    elif isinstance(node, Device):
        fields |= {"major": node.major, "minor": node.minor}
    fields["xattrs"] = [
        {**text("name", name), "value_base64": b64encode(value).decode()}
        for name, value in sorted(node.xattrs.items())
    ]
    if isinstance(opened.holds, Initramfs):
        header = opened.holds.headers.get(node)
        fields |= {
            "nlink": header.nlink if header else None,
            "devmajor": header.devmajor if header else None,
            "devminor": header.devminor if header else None,
        }
    else:
        facts = opened.holds.inodes[node]
        fields |= {
            "atime_ns": facts.atime_ns,
            "ctime_ns": facts.ctime_ns,
            "crtime_ns": facts.crtime_ns,
            "blocks": facts.blocks,
            "flags": facts.flags,
            "generation": facts.generation,
        }
    return fields


def text(key: str, value: bytes) -> dict[str, str]:
    """Bytes as JSON has them: as `describe_entries` says of names."""
    try:
        return {key: value.decode()}
    except UnicodeDecodeError:
        return {key: value.decode(errors="replace"), f"{key}_base64": b64encode(value).decode()}


def _filesystem(superblock: Superblock) -> dict[str, Any]:
    uuid = superblock.uuid.hex()
    return {
        "uuid": "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])),
        "label": superblock.volume_name.rstrip(b"\0").decode(errors="replace"),
        "features": superblock.features,
        "block_size": superblock.block_size,
        "blocks": superblock.blocks_count,
        "free_blocks": superblock.free_blocks_count,
        "reserved_blocks": superblock.reserved_blocks_count,
        "inodes": superblock.inodes_count,
        "free_inodes": superblock.free_inodes_count,
        "inode_size": superblock.inode_size,
    }


def _program(tree: Tree, path: bytes, digests: _Digests) -> Program | None:
    node = tree.get(path, follow=True)
    if not isinstance(node, File):
        return None
    start = next(islice(read_content(node.content), 1), b"")
    if start.startswith(b"#!"):
        kind = printable(start[:200].split(b"\n")[0])
    else:
        kind = architecture(start) or "no program"
    return Program(path, digests.of(node), content_size(node.content), kind)


def _program_json(program: Program | None) -> dict[str, Any] | None:
    if program is None:
        return None
    return {
        "path": program.path.decode(),
        "sha256": program.sha256,
        "size": program.size,
        "format": program.format,
    }


class _Digests:
    """SHA-256 of the contents in an artifact, as long as they are not too much to be read."""

    def __init__(self, opened: Opened) -> None:
        self._left = opened.size + MAX_BEYOND
        self._known: dict[File, str] = {}

    def of(self, file: File) -> str | None:
        size = content_size(file.content)
        if file not in self._known and size <= self._left:
            self._left -= size
            self._known[file] = content_sha256(file.content)
        return self._known.get(file)


def _command(tree: Tree) -> list[str] | None:
    """From what a build has put there; in artifacts of others it may be anything."""
    node = tree.get(ENTRYPOINT)
    if not isinstance(node, File) or content_size(node.content) > MAX_CONFIG_SIZE:
        return None
    try:
        document = json.loads(b"".join(read_content(node.content)))
    except (ValueError, RecursionError):
        return None
    config = document.get("config") if isinstance(document, dict) else None
    if not isinstance(config, dict):
        return None
    parts = [config.get(key) or [] for key in ("Entrypoint", "Cmd")]
    words = [word for part in parts if isinstance(part, list) for word in part]
    return words if all(isinstance(word, str) for word in words) else None


def _provenance(opened: Opened) -> Provenance | None:
    """What is recorded beside the artifact, if it can be read and is about these bytes."""
    try:
        record = provenance.load(opened.path)
    except FledgeError:
        return None
    return record if record.sha256 == content_sha256(Span(opened.path, 0, opened.size)) else None
