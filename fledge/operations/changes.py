"""Tells whether an artifact is what a build would write, without building it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fledge.errors import FledgeError, MalformedError
from fledge.operations import seal
from fledge.operations.build import laying, outputs_of
from fledge.operations.manifest import artifact_url
from fledge.project import manifest, provenance
from fledge.project.lock import PinFinder
from fledge.project.provenance import Provenance
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, Source
from fledge.tree.content import hash_file


def up_to_date(
    output: Path, pins: PinFinder, start: Assembly, base_url: str | None
) -> Provenance | None:
    """Return the provenance beside an artifact if a build would write both again; otherwise None.

    It must record the same config, time, versions of fledge, platform and inputs: files of the
    project are hashed, and what is pinned is compared with ``pins`` and not fetched. The artifact
    and its manifest must have the recorded digests, and a hash tree beside it the recorded root
    hash. ``start`` is an empty assembly for the build, and is used up. What is wrong with an input
    is for the build to say, so it counts as a change.
    """
    config = pins.config
    try:
        record = provenance.load(output)
        url = artifact_url(config.manifest, base_url, output) if config.manifest else None
        here = (config.data, start.epoch, provenance.versions(has_sbom=bool(config.sbom)), url)
        recorded = (record.config, record.epoch, record.versions, record.url)
        if not config.data or here != recorded or not _has_inputs(record, pins, start):
            return None
        if str(start.platform) != record.platform or hash_file(output).digest != record.digest:
            return None
        has_all = all(each.exists() for each in outputs_of(config, output))
        if not has_all or not _is_recorded_beside(record, output):
            return None
    except (FledgeError, OSError):
        return None
    return record


def _is_recorded_beside(record: Provenance, output: Path) -> bool:
    """Return whether the files beside an artifact are those that are recorded."""
    beside = manifest.path_beside(output)
    if record.manifest and hash_file(beside).digest != record.manifest:
        return False
    for kind, digest in record.sboms.items():
        if hash_file(sbom_path(output, kind)).digest != digest:
            return False
    return not seal.problem_beside(output, record)


def _has_inputs(record: Provenance, pins: PinFinder, assembly: Assembly) -> bool:
    """Return whether a build would have the recorded inputs. Lays those that need no look-up."""
    left = list(record.inputs)
    for source in pins.config.sources:
        pin = pins.find(source, assembly)
        if source.section is None or source.section.keyed_by is None:
            with laying(source, assembly):
                source.lay(assembly, pin)
            continue
        item = next((each for each in left if each.role == source.role), None)
        if item is None or not _is_pinned(source, item, pin, record, assembly):
            return False
        left.remove(item)
    return left == assembly.inputs


def _is_pinned(
    source: Source, item: Input, pin: Any | None, record: Provenance, assembly: Assembly
) -> bool:
    """Return whether a recorded input is what the pin says."""
    try:
        key, found = source.recorded_pin(item, record.platform)
    except (MalformedError, msgspec.ValidationError):
        return False
    if source.section is None or pin is None or key != source.section.key(assembly):
        return False
    fields = {name: getattr(found, name) for name in found.__struct_fields__}
    # A record is not trusted to say where an input is, so its pin has no URL.
    return all(value == getattr(pin, name) for name, value in fields.items() if value != "")
