"""Formats artifacts and differences as lines of text. Nothing here prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from fledge.cli.entries import second
from fledge.formats import Opened
from fledge.machine.check import KernelCheck
from fledge.operations import seal
from fledge.operations.diff import Difference
from fledge.operations.inspect import Program, Summary
from fledge.operations.seal import SealCheck
from fledge.report import counted, human_size
from fledge.tree import NANOSECONDS
from fledge.tree.block_digests import BLOCK_SIZE
from fledge.tree.names import printable

MAX_DIFFERENCE = 100
"""Maximum lines of a difference without ``--verbose``."""

MAX_DAMAGES = 10
"""Maximum damaged blocks that are shown."""

MAX_VALUES = 20
"""Maximum items of a list in one line. ``--json`` prints all of them."""

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def summary_lines(opened: Opened, found: Summary) -> Iterator[str]:
    """Yield the summary of an artifact. Names in it are not escaped."""
    yield str(opened.path)
    yield _line("kind", opened.format.name)
    yield _line("size", f"{human_size(opened.size)} ({counted(opened.size, 'byte')})")
    for title, text in opened.contents.summary():
        yield _line(title, text)
    yield _line("content", f"{human_size(found.content_size)} in {_names(found.names)}")
    yield _line("init", _program(found.init, "built-in" if found.has_own_init else None))
    yield _line("agent", _program(found.agent, found.agent_version))
    if found.image or found.command is not None:
        yield _line("image", found.image or "unknown; only provenance names it")
    if found.command:
        yield _line("command", shlex.join(found.command))
    if found.seal:
        yield from _seal_summary(found.seal)
    yield _line(
        "provenance",
        "valid for these bytes" if found.has_provenance else "none for these bytes",
    )


def _seal_summary(found: SealCheck) -> Iterator[str]:
    if found.seal is None:
        yield _line("sealed", f"by dm-verity: damaged: {found.problem}")
        if found.expected:
            yield _line("root hash", f"{found.expected.hex}, by its provenance")
        return
    tree = found.seal.tree
    yield _line("root hash", found.seal.root_hash.hex)
    state = "all data is intact" if found.is_intact else "damaged"
    where = "appended" if found.seal.is_appended else f"in {found.seal.file}"
    yield _line("sealed", f"{human_size(tree.data_size)} by dm-verity, hash tree {where}: {state}")
    if not found.is_intact:
        yield from (f"    {line}" for line in damage_lines(found))
    yield _line("salt", tree.salt.hex() or "none")
    if found.trusted:
        # Lines of their own, so that they can be copied from any terminal.
        yield _line("kernel", "")
        yield seal.kernel_parameters(found.trusted)
        yield _line("systemd", "")
        yield seal.systemd_parameters(found.trusted)


def damage_lines(found: SealCheck) -> Iterator[str]:
    """Yield what is damaged in a sealed artifact. Names in the lines are not escaped."""
    if found.seal is None:
        yield found.problem
    elif found.expected and found.seal.root_hash != found.expected:
        yield f"its root hash is {found.seal.root_hash.hex}, and should be {found.expected.hex}"
    for each in found.damaged[:MAX_DAMAGES]:
        level = "" if each.level is None else f", below a damaged block of level {each.level}"
        file = f", in {printable(each.path)}" if each.path else ""
        number = each.offset // BLOCK_SIZE
        blocks = f"block {number}"
        if each.size > BLOCK_SIZE:
            blocks = f"blocks {number} to {(each.offset + each.size) // BLOCK_SIZE - 1}"
        yield f"{blocks}, {counted(each.size, 'byte')} at {each.offset}{file}{level}"
    if len(found.damaged) > MAX_DAMAGES:
        yield "and more; --json of fledge inspect lists them"


def _line(title: str, text: str) -> str:
    return f"  {title:<13}{text}".rstrip()


def _program(found: Program | None, note: str | None) -> str:
    if found is None:
        return "none"
    path = found.path.decode()
    return ", ".join(filter(None, (path, note, found.format, human_size(found.size))))


def _names(counts: Mapping[str, int]) -> str:
    return ", ".join(counted(count, kind) for kind, count in counts.items() if count)


def kernel_lines(found: KernelCheck) -> Iterator[str]:
    """Yield what an artifact needs of a kernel, whether that has it, and what to change.

    Names in it are not escaped.
    """
    kernel = found.kernel
    version = f"Linux {kernel.version[0]}.{kernel.version[1]}" if kernel.version else None
    facts = ", ".join(filter(None, (version, kernel.architecture)))
    yield f"{kernel.source}{f' ({facts})' if facts else ''}"
    width = max(len(each.requirement.purpose) for each in found.findings)
    for each in found.findings:
        yield f"  {each.state.value:<9} {each.requirement.purpose:<{width}}  {each.reason}".rstrip()
    if found.boots:
        yield "this kernel boots the artifact"
    else:
        yield "this kernel does not boot the artifact by itself"
    for each in found.findings:
        if each.advice:
            yield f"  {each.requirement.purpose}: {each.advice}"
    if found.unchecked:
        yield f"  its files were not checked: {found.unchecked}"


def difference_lines(found: Difference, max_lines: int | None = None) -> Iterator[str]:
    """Yield ``max_lines`` lines of a difference, and one that counts the rest.

    None: all lines. Names in them are not escaped.
    """
    for number, line in enumerate(lines := _all_difference_lines(found)):
        if number == max_lines:
            rest = 1 + sum(1 for _ in lines)
            yield f"… and {counted(rest, 'more line')}; use -v or --json to see all"
            return
        yield line


def _all_difference_lines(found: Difference) -> Iterator[str]:
    if found.same_bytes:
        yield "all bytes are equal"
        yield from _container_lines(found)
        return
    count = len(found.changes)
    paths = "1 path differs" if count == 1 else f"{count} paths differ"
    yield paths if count else "the trees are equal, but the bytes differ"
    yield f"  first different byte at {found.first_difference}"
    for feature in found.not_compared:
        yield f"  not compared, because only one of the two formats supports it: {feature}"
    for note in found.notes:
        yield f"  {note}"
    yield from _container_lines(found)
    for name, detail in found.details.items():
        where = "1 path" if detail.paths == 1 else f"{detail.paths} paths, first"
        field = _field(name, detail.before, detail.after, ":")
        yield f"  {field} ({where} /{printable(detail.path)})"
    for change in found.changes:
        fields = ", ".join(_field(name, *both) for name, both in change.fields.items())
        yield f"{_SIGNS[change.kind]} /{printable(change.path)}{': ' if fields else ''}{fields}"
        yield from (f"    {line}" for line in change.lines)


def _container_lines(found: Difference) -> Iterator[str]:
    for name, (old, new) in found.container.items():
        yield f"  {_field(name, old, new, ':')}"


def _field(name: str, old: object, new: object, colon: str = "") -> str:
    if name.endswith("_ns"):
        return f"{name.removesuffix('_ns')}{colon} {_time(old)} → {_time(new)}"
    return f"{name}{colon} {_value(old)} → {_value(new)}"


def _time(time_ns: object) -> str:
    if not isinstance(time_ns, int):
        return _value(time_ns)
    fraction = time_ns % NANOSECONDS
    return second(time_ns) + (f".{fraction:09}" if fraction else "")


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return _value([f"{_value(key)}={_value(each)}" for key, each in value.items()])
    if isinstance(value, list):
        rest = [f"{len(value) - MAX_VALUES} more"] if len(value) > MAX_VALUES else []
        return ", ".join([*map(_value, value[:MAX_VALUES]), *rest]) or "none"
    return "none" if value is None else str(value)
