"""Results as text, for people and for programs; nothing here prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from stat import filemode

from fledge.artifact import Opened
from fledge.ext4.reader import Image
from fledge.operations import inspect as inspection
from fledge.operations.build import Artifact
from fledge.operations.diff import Report
from fledge.operations.inspect import Program, Summary
from fledge.operations.verify import Verdict
from fledge.report import human_size
from fledge.store.housekeeping import Amount
from fledge.tree import NANOSECONDS, Device, Node, Symlink
from fledge.tree.names import printable

MAX_VALUES = 20
"""Items of a list that one line shows; JSON has all."""


def listed(opened: Opened, path: bytes, node: Node) -> str:
    """A line as of ls -l; times are UTC."""
    size = (
        f"{node.major}, {node.minor}"
        if isinstance(node, Device)
        else str(inspection.size(opened, node))
    )
    arrow = f" -> {printable(node.target)}" if isinstance(node, Symlink) else ""
    return (
        f"{filemode(node.file_type | node.mode)} {opened.links(node):>3} {node.uid:>5}"
        f" {node.gid:>5} {size:>10} {_second(node.mtime_ns)} {printable(path)}{arrow}"
    )


def listed_socket(path: bytes) -> str:
    """The same of a socket, of which no tree has more than the path."""
    unknown = f"{'?':>3} {'?':>5} {'?':>5} {'?':>10} {'?':>19}"
    return f"s????????? {unknown} {printable(path)}"


def _second(time_ns: int) -> str:
    """In UTC."""
    time = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(0, time_ns // NANOSECONDS)
    return f"{time:%Y-%m-%d %H:%M:%S}"


def summary(opened: Opened, found: Summary) -> Iterator[str]:
    """An artifact in a dozen lines."""

    def program(found: Program | None, more: str | None) -> str:
        if found is None:
            return "none"
        name = found.path.decode()
        return ", ".join(filter(None, (name, more, found.format, human_size(found.size))))

    def line(title: str, text: str) -> str:
        return f"  {title:<13}{text}"

    yield str(opened.path)
    yield line("kind", opened.kind)
    yield line("size", f"{human_size(opened.size)} ({opened.size} bytes)")
    if isinstance(opened.holds, Image):
        superblock = opened.holds.superblock
        free = superblock.free_blocks_count * superblock.block_size
        room = superblock.blocks_count * superblock.block_size
        yield line("free", f"{human_size(free)} of {human_size(room)}")
        yield line("inodes", f"{superblock.free_inodes_count} of {superblock.inodes_count} free")
        yield line("features", " ".join(superblock.features))
    else:
        for archive in opened.holds.archives:
            yield line(
                "archive",
                f"{archive.compression or 'not compressed'}, at byte {archive.offset},"
                f" {human_size(archive.size)} unpacked, {archive.entries} entries",
            )
    yield line("holds", f"{human_size(found.content_size)} in {_names(found.names)}")
    yield line("init", program(found.init, "built into fledge" if found.has_own_init else None))
    yield line("agent", program(found.agent, found.agent_version))
    if found.image or found.command is not None:
        yield line("image", found.image or "an image, which its provenance would tell")
    if found.command:
        yield line("command", shlex.join(found.command))
    yield line(
        "provenance",
        "beside it, of these bytes" if found.has_provenance else "none of these bytes",
    )


def _names(counts: dict[str, int]) -> str:
    plurals = {"directory": "directories"}
    return ", ".join(
        f"{count} {kind if count == 1 else plurals.get(kind, kind + 's')}"
        for kind, count in counts.items()
        if count
    )


def counted(amount: Amount) -> str:
    """A number of files and their size."""
    plural = "" if amount.files == 1 else "s"
    return f"{amount.files} file{plural}, {human_size(amount.size)}"


def verdict(artifact: Path, found: Verdict) -> Iterator[str]:
    """Whether an artifact is what it should be, and what was put in or done otherwise."""
    if found.equal:
        yield f"equal: {artifact} is what its provenance says, and building it again gives it"
    else:
        yield f"different: {artifact}"
        yield f"  sha256 of the file      {found.artifact}"
        yield f"  as its provenance says  {found.recorded}"
        yield f"  as it was built now     {found.rebuilt}"
    for line in (*found.inputs, *found.versions):
        yield f"  {line}"


def difference(report: Report) -> Iterator[str]:
    """Lines for a person; names in them are still what the artifacts say."""
    if report.same_bytes:
        yield "the same bytes"
        return
    count = len(report.changes)
    paths = "1 path differs" if count == 1 else f"{count} paths differ"
    yield paths if count else "the same tree, other bytes"
    yield f"  the first other byte is at {report.first_difference}"
    for what in report.not_compared:
        yield f"  not compared, for only ext4 has them: {what}"
    for note in report.notes:
        yield f"  {note}"
    for name, (old, new) in report.container.items():
        yield f"  {_field(name, old, new, ':')}"
    for name, detail in report.details.items():
        where = "1 path" if detail.paths == 1 else f"{detail.paths} paths, first"
        field = _field(name, detail.before, detail.after, ":")
        yield f"  {field} ({where} /{printable(detail.path)})"
    signs = {"added": "+", "removed": "-", "changed": "~"}
    for change in report.changes:
        fields = ", ".join(_field(name, *both) for name, both in change.fields.items())
        yield f"{signs[change.kind]} /{printable(change.path)}{': ' if fields else ''}{fields}"
        yield from (f"    {line}" for line in change.lines)


def _field(name: str, old: object, new: object, colon: str = "") -> str:
    if name.endswith("_ns"):
        return f"{name.removesuffix('_ns')}{colon} {_time(old)} → {_time(new)}"
    return f"{name}{colon} {_value(old)} → {_value(new)}"


def _time(time_ns: object) -> str:
    if not isinstance(time_ns, int):
        return _value(time_ns)
    part = time_ns % NANOSECONDS
    return _second(time_ns) + (f".{part:09}" if part else "")


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return _value([f"{_value(key)}={_value(each)}" for key, each in value.items()])
    if isinstance(value, list):
        more = [f"{len(value) - MAX_VALUES} more"] if len(value) > MAX_VALUES else []
        return ", ".join([*map(_value, value[:MAX_VALUES]), *more]) or "none"
    return "none" if value is None else str(value)


def difference_document(report: Report) -> dict[str, object]:
    """The same and more, as JSON has it."""

    def pair(both: tuple[object, object]) -> dict[str, object]:
        return dict(zip(("before", "after"), map(_plain, both), strict=True))

    return {
        "same_bytes": report.same_bytes,
        "first_difference": report.first_difference,
        "same_tree": not report.changes,
        "not_compared": list(report.not_compared),
        "notes": list(report.notes),
        "container": {name: pair(both) for name, both in report.container.items()},
        "details": {
            name: {
                "paths": detail.paths,
                **inspection.text("first", b"/" + detail.path),
                **pair((detail.before, detail.after)),
            }
            for name, detail in report.details.items()
        },
        "changes": [
            {
                **inspection.text("path", change.path),
                "kind": change.kind,
                "fields": {name: pair(both) for name, both in change.fields.items()},
                "lines": list(change.lines),
            }
            for change in report.changes
        ],
    }


def _plain(value: object) -> object:
    """What JSON can hold."""
    if isinstance(value, bytes):
        found = inspection.text("text", value)
        return found if len(found) > 1 else value.decode()
    if isinstance(value, dict):
        return [{"name": _plain(key), "value": _plain(each)} for key, each in value.items()]
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def artifact_document(artifact: Artifact) -> dict[str, object]:
    """What a build made, as JSON has it."""
    return {
        "path": str(artifact.path),
        "size": artifact.size,
        "sha256": artifact.sha256,
        "inputs": [
            {"role": item.role, "uri": item.uri, "sha256": item.sha256} for item in artifact.inputs
        ],
    }
