"""Describes an artifact: a summary, its entries, and its origin as far as it is recorded."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import msgspec

from fledge.errors import FledgeError
from fledge.formats import Opened, open_artifact
from fledge.host.files import PathLike
from fledge.net.json_document import MAX_DOCUMENT_SIZE
from fledge.operations import seal
from fledge.operations.entries import sockets_below, walk_below
from fledge.operations.seal import SealCheck
from fledge.project import provenance
from fledge.project.provenance import Provenance
from fledge.report import Transfer
from fledge.sources import paths
from fledge.sources.init import has_built_in
from fledge.sources.kinds import IMAGE_ROLES
from fledge.tree import TYPE_NAMES, Device, File, Node, Symlink, Tree
from fledge.tree.content import content_digest, content_size, hash_file, read_content
from fledge.tree.digest import Digest
from fledge.tree.elf import architecture
from fledge.tree.names import printable

MAX_EXTRA_SIZE = 1 << 35
"""Contents are hashed until their total exceeds the size of the artifact by this many bytes. Sparse
files can claim any size, and files can share blocks."""


class Program(msgspec.Struct, frozen=True):
    """A program in an artifact."""

    path: bytes
    """The path in the artifact, with a leading slash."""
    digest: Digest | None
    """The digest of the file. None if it was not computed because of `MAX_EXTRA_SIZE`."""
    size: int
    """Size in bytes."""
    format: str
    """The first line of a script, or the architecture of a program (OCI name)."""


class Summary(msgspec.Struct, frozen=True):
    """A summary of an artifact. Unknown facts are None."""

    names: dict[str, int]
    """The number of paths of each type, by the names in `TYPE_NAMES`."""
    content_size: int
    """Bytes in all files. A file with several names counts once."""
    init: Program | None
    """The program that the kernel would start."""
    has_own_init: bool
    """Whether that is the built-in init of this version of fledge."""
    agent: Program | None
    """The program at `paths.AGENT`."""
    agent_version: str | None
    """The tag of the agent's release, from the provenance."""
    image: str | None
    """The URI of the image, from the provenance."""
    command: list[str] | None
    """The entrypoint and arguments of the image, from its config in the artifact."""
    has_provenance: bool
    """Whether provenance for these bytes is beside the artifact."""
    seal: SealCheck | None
    """Whether it is what its hash tree of dm-verity says and, if there is provenance, be that for
    these bytes or other ones, the root hash there. None: it is not sealed."""


def inspect(artifact: PathLike) -> Summary:
    """Summarize an artifact, whoever made it.

    Raises what `open_artifact` and `summarize` raise.
    """
    path = Path(artifact)
    with finding_provenance(path) as record, open_artifact(path) as found:
        return summarize(found, record.result())


@contextmanager
def finding_provenance(
    path: Path, progress: Transfer | None = None
) -> Iterator[Future[Provenance | None]]:
    """Look for the provenance of an artifact, and hash the artifact, while the tree is read.

    The result is None unless the provenance is valid and for these bytes; it raises `OSError`.
    ``progress`` is told the bytes that are hashed. The end of the context ends the hashing.
    """
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(_provenance, path, stop, progress or Transfer())
        finally:
            stop.set()


def summarize(
    artifact: Opened, record: Provenance | None, progress: Transfer | None = None
) -> Summary:
    """Summarize an open artifact, of which ``record`` is the provenance, if it has one.

    ``progress`` is told the bytes that are hashed. Raises `FledgeError` if it cannot be read.
    """
    names = dict.fromkeys(TYPE_NAMES.values(), 0)
    files: set[File] = set()
    for _, node in artifact.tree.walk():
        names[TYPE_NAMES[node.file_type]] += 1
        if isinstance(node, File):
            files.add(node)
    names["socket"] = len(artifact.contents.sockets)
    digests = LimitedHasher(artifact)
    programs = (_program(artifact.tree, path, digests) for path in artifact.format.init_paths)
    first = next(filter(None, programs), None)
    kestrel = _program(artifact.tree, paths.AGENT, digests)
    recorded = seal.recorded_root_hash(artifact.path)
    inputs = {item.role: item for item in record.inputs} if record else {}
    version = inputs["agent"].facts.get("version") if "agent" in inputs else None
    return Summary(
        names=names,
        content_size=sum(content_size(file.content) for file in files),
        init=first,
        has_own_init=has_built_in(artifact.tree),
        agent=kestrel,
        agent_version=version if isinstance(version, str) else None,
        image=next((inputs[role].uri for role in inputs if role in IMAGE_ROLES), None),
        command=_command(artifact.tree),
        has_provenance=record is not None,
        seal=seal.examine(artifact.path, recorded, progress),
    )


def describe(artifact: Opened, summary: Summary) -> dict[str, Any]:
    """Return the facts about an artifact, without its entries, for ``inspect --json``."""
    answer: dict[str, Any] = {
        "kind": artifact.format.name,
        "size": artifact.size,
        "names": summary.names,
        "content_size": summary.content_size,
        "init": _program_json(summary.init),
        "agent": _program_json(summary.agent),
        "agent_version": summary.agent_version,
        "image": summary.image,
        "command": summary.command,
        "has_provenance": summary.has_provenance,
        "verity": _seal_json(summary.seal),
    }
    return {**answer, **artifact.contents.describe()}


def describe_entries(artifact: Opened, path: bytes, top: Node) -> Iterator[dict[str, Any]]:
    """Yield all fields of the entry at ``path`` and of those below it, for ``inspect --json``.

    Names are text, as `json_text` returns it. ``sha256`` is None if it was not computed because of
    `MAX_EXTRA_SIZE`.
    """
    digests = LimitedHasher(artifact)
    for name, node in walk_below(path, top):
        yield {**json_text("path", b"/" + name), **_entry_fields(artifact, node, digests)}
    for name in sockets_below(artifact, path):
        yield {**json_text("path", b"/" + name), "type": "socket"}


def _entry_fields(artifact: Opened, node: Node, digests: LimitedHasher) -> dict[str, Any]:
    stat = artifact.contents.stat(node)
    fields: dict[str, Any] = {
        "type": TYPE_NAMES[node.file_type],
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "size": stat.size,
        "mtime_ns": node.mtime_ns,
        "links": stat.links,
        "inode": stat.inode,
    }
    if isinstance(node, File):
        digest = digests.of(node)
        fields["sha256"] = digest.hex if digest else None
    elif isinstance(node, Symlink):
        fields |= json_text("target", node.target)
    elif isinstance(node, Device):
        fields |= {"major": node.major, "minor": node.minor}
    fields["xattrs"] = [
        {**json_text("name", name), "value_base64": b64encode(value).decode()}
        for name, value in sorted(node.xattrs.items())
    ]
    return {**fields, **artifact.contents.describe_node(node)}


def json_text(key: str, value: bytes) -> dict[str, str]:
    """Return bytes as text for JSON.

    If they are not UTF-8, the text has U+FFFD in place of invalid bytes, and ``KEY_base64`` beside
    it has the exact bytes.
    """
    try:
        return {key: value.decode()}
    except UnicodeDecodeError:
        return {key: value.decode(errors="replace"), f"{key}_base64": b64encode(value).decode()}


def _program(tree: Tree, path: bytes, digests: LimitedHasher) -> Program | None:
    node = tree.get(path, follow=True)
    if not isinstance(node, File):
        return None
    start = next(islice(read_content(node.content), 1), b"")
    if start.startswith(b"#!"):
        kind = printable(start[:200].split(b"\n")[0])
    else:
        kind = architecture(start) or "not a program"
    return Program(path, digests.of(node), content_size(node.content), kind)


def _program_json(program: Program | None) -> dict[str, Any] | None:
    if program is None:
        return None
    return {
        "path": program.path.decode(),
        "sha256": program.digest.hex if program.digest else None,
        "size": program.size,
        "format": program.format,
    }


def _seal_json(found: SealCheck | None) -> dict[str, Any] | None:
    if found is None:
        return None
    answer: dict[str, Any] = {
        "expected": found.expected.hex if found.expected else None,
        "intact": found.is_intact,
        "problem": found.problem,
    }
    if found.seal is None:
        return answer
    tree, trusted = found.seal.tree, found.trusted
    return {
        **answer,
        "root_hash": found.seal.root_hash.hex,
        "damaged": [
            {
                "offset": each.offset,
                "size": each.size,
                "level": each.level,
                **(json_text("path", each.path) if each.path else {"path": None}),
            }
            for each in found.damaged
        ],
        "salt": tree.salt.hex(),
        "uuid": str(tree.uuid),
        "data_size": tree.data_size,
        "hash_tree": "appended" if found.seal.is_appended else "beside",
        "hash_tree_size": tree.size,
        "kernel_parameters": seal.kernel_parameters(trusted) if trusted else None,
        "systemd_parameters": seal.systemd_parameters(trusted) if trusted else None,
    }


class LimitedHasher:
    """Hashes the contents of an artifact, each once, up to a total size.

    That is the size of the artifact and ``extra`` bytes; see `MAX_EXTRA_SIZE`.
    """

    def __init__(self, artifact: Opened, extra: int = MAX_EXTRA_SIZE) -> None:
        self._left = artifact.size + extra
        self._known: dict[File, Digest] = {}

    def of(self, file: File) -> Digest | None:
        """Return the digest of a file; None if the total would be exceeded."""
        size = content_size(file.content)
        if file not in self._known and size <= self._left:
            self._left -= size
            self._known[file] = content_digest(file.content)
        return self._known.get(file)


def _command(tree: Tree) -> list[str] | None:
    """Read the command from the image's config. Other makers may store anything at that path."""
    node = tree.get(paths.IMAGE_CONFIG)
    if not isinstance(node, File) or content_size(node.content) > MAX_DOCUMENT_SIZE:
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


def _provenance(path: Path, stop: Event, progress: Transfer) -> Provenance | None:
    """Return the provenance beside an artifact; None unless it is valid and for these bytes."""
    try:
        record = provenance.load(path)
    except FledgeError:
        return None
    progress.restart(0, path.stat().st_size)
    digest = hash_file(path, stop, progress).digest
    return record if record.digest == digest else None
