"""The rules between the tables of fledge.toml: one ``/init``, and an executable one."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from fledge.formats import FORMATS, Format
from fledge.project.parser import Parsed
from fledge.project.schema import schema
from fledge.project.toml import Table
from fledge.sources import init
from fledge.sources.agent import Agent
from fledge.sources.init import MOUNT_POINTS, Init
from fledge.sources.kinds import IMAGES, SOURCES
from fledge.sources.mappings import Mappings, Placement
from fledge.sources.source import Source
from fledge.tree.names import printable, split_path

T = TypeVar("T")

INIT_PATH = b"/init"


def first_of_type(kind: type[T], sources: Iterable[object]) -> T | None:
    """Return the first source of a type; None if there is none."""
    return next((each for each in sources if isinstance(each, kind)), None)


def apply(parsed: Parsed) -> tuple[Source, ...]:
    """Check the rules and report violations to the document. Returns the sources to build from.

    Only the built-in init starts the agent. With another init, the agent is removed from the
    sources.
    """
    sources, strategy = parsed.sources, parsed.strategy
    if strategy is not None and strategy not in init.KIND.presence:
        return sources
    table, agent = parsed.tables["init"], parsed.tables["agent"]
    own_init = "path" in table.data or table.data.get("none") is True
    if own_init:
        if "agent" in table.document.top.data:
            agent.report(
                "only the built-in init starts the agent; remove [agent] or the keys of [init]"
            )
        sources = tuple(each for each in sources if not isinstance(each, Agent))
    if strategy is not None:
        mappings = first_of_type(Mappings, sources)
        placements = mappings.placements if mappings else ()
        mapped = next((each for each in placements if each.path == INIT_PATH), None)
        has_image = any(key in parsed.tables["source"].data for key in _image_keys())
        _check_init(table, first_of_type(Init, sources), mapped, has_image)
        if not own_init and mapped is None:
            _check_mount_points(parsed.tables["mappings"], placements)
    return sources


def json_schema() -> list[dict[str, object]]:
    """Return the same rules as conditions of a JSON Schema.

    They do not look at files, so an image or any mapping counts as providing ``/init``.
    """
    none = {"properties": {"none": {"const": True}}, "required": ["none"]}
    own_init = {"anyOf": [{"required": ["path"]}, none]}
    has_mapping = {"properties": {"mappings": {"minProperties": 1}}, "required": ["mappings"]}
    images = [{"required": [key]} for key in _image_keys()]
    has_image = {"properties": {"source": {"anyOf": images}}, "required": ["source"]}
    return [
        {
            "if": {"properties": {"init": own_init}, "required": ["init"]},
            "then": {"properties": {"agent": False}},
        },
        {
            "if": {"properties": {"init": none}, "required": ["init"]},
            "then": {"anyOf": [has_mapping, has_image]},
        },
        {"if": {"required": ["verity"]}, "then": {"anyOf": _read_only_filesystems()}},
    ]


def why_not_sealed(format_: Format) -> str:
    """Say why a disk cannot be sealed whose filesystem can be written, and what to do."""
    kinds: list[type[Any]] = list(FORMATS)
    names = [f'"{each.__struct_config__.tag}"' for each in kinds if each().read_only]
    option = ""
    if "read_only" in type(format_).__annotations__:
        option = "set read_only = true in [filesystem], "
    return (
        f"[verity] seals only a filesystem that is never written; {option}choose type ="
        f" {' or '.join(names)} in [filesystem], or remove the table"
    )


def _read_only_filesystems() -> list[dict[str, object]]:
    """Return the conditions of which [verity] needs one."""
    keys: list[dict[str, object]] = []
    kinds: list[type[Any]] = list(FORMATS)
    for each in kinds:
        struct = each.__struct_config__
        if each().read_only:
            keys.append({struct.tag_field: {"const": struct.tag}})
        elif "read_only" in each.__annotations__:
            keys.append({"read_only": {"const": True}})
    return [
        {
            "properties": {"filesystem": {"properties": each, "required": list(each)}},
            "required": ["filesystem"],
        }
        for each in keys
    ]


def _image_keys() -> list[str]:
    """Return the keys of ``[source]`` of which each names an image."""
    group = schema().sources[SOURCES.index(IMAGES)]
    return [key.name for key in group.alternatives]


def _check_init(table: Table, found: Init | None, mapped: Placement | None, image: bool) -> None:
    """Check ``/init`` as far as possible without the image.

    ``mapped`` is the placement at ``/init``, if any; ``image`` whether the config has an image.
    """
    if found and found.path and mapped and not _same_file(found.path, mapped.source):
        table.report_value("path", f"{mapped.source} is also mapped to /init; keep one of the two")
    elif found and found.none and not mapped and not image:
        table.report_value("none", "no mapping provides /init; map an executable to it")
    elif mapped and stat.S_ISDIR(mapped.file_type):
        table.report(f"{mapped.source} is mapped to /init but is a folder; map an executable")
    elif mapped and not mapped.mode & 0o111:
        table.report(
            f"{mapped.source} is mapped to /init but is not executable; run chmod +x on it"
        )


def _check_mount_points(table: Table, placements: tuple[Placement, ...]) -> None:
    """Report files below a directory that the built-in init mounts a filesystem on."""
    for placement in placements:
        mount_point = next((p for p in MOUNT_POINTS if placement.path.startswith(p + b"/")), None)
        if mount_point and placement.file_type != stat.S_IFDIR:
            table.report_value(
                _key_of(table, placement),
                f"{placement.source} would be hidden at {printable(placement.path)}: init mounts a"
                f" filesystem on {printable(mount_point)}",
            )


def _key_of(mappings: Table, placement: Placement) -> str:
    """Return the key of the mapping that a placement comes from."""
    path = split_path(placement.path)
    sources = (placement.source, *placement.source.parents)

    def is_above(destination: object) -> bool:
        parts = split_path(str(destination).encode())
        return path[: len(parts)] == parts

    return next(
        key
        for key, destination in mappings.data.items()
        if mappings.folder / key in sources and is_above(destination)
    )


def _same_file(first_path: Path, second_path: Path) -> bool:
    try:
        return first_path.samefile(second_path)
    except OSError:
        return False
