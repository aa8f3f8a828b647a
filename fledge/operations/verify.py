"""Verifies an artifact against its provenance, by building it again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fledge.errors import ConfigError, CorruptError, FledgeError, unreadable_argument
from fledge.host.files import NewFile, PathLike
from fledge.host.work import temporary_folder
from fledge.oci.manifest import parse_platform
from fledge.operations import build
from fledge.operations.arguments import ConfigLike, as_config, as_session
from fledge.operations.diff import Difference, diff
from fledge.project import lock, provenance
from fledge.project.config import Config
from fledge.project.lock import Lock, PinFinder
from fledge.project.provenance import Provenance
from fledge.report import Reporter, Transfer
from fledge.session import Session
from fledge.sources.source import Assembly
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest

_VERSIONS = "predicate.runDetails.builder.version."
_DEPENDENCIES = "predicate.buildDefinition.resolvedDependencies"


class Verification(msgspec.Struct, frozen=True):
    """The result of building an artifact again."""

    artifact: Digest
    """The digest of the file."""
    recorded: Digest
    """The digest in its provenance."""
    rebuilt: Digest | None
    """The digest of the new build. None if nothing can be built as recorded."""
    false_claims: tuple[str, ...]
    """Describes each field of the provenance that the new build contradicts, in one line each."""
    versions: tuple[str, ...]
    """Describes each version that differs from the record, of fledge and its codecs. They are no
    false claims where they made no difference."""
    difference: Difference | None = None
    """The difference between the file and the new build. None if they are equal, or cannot be
    compared."""
    problem: str = ""
    """Why nothing can be built as recorded, or why the two cannot be compared; otherwise empty."""

    @property
    def equal(self) -> bool:
        """Whether the file, its provenance and the new build agree."""
        return self.artifact == self.recorded == self.rebuilt and not self.false_claims


def verify(
    artifact: PathLike,
    config: ConfigLike = "fledge.toml",
    *,
    session: Session | None = None,
) -> Verification:
    """Build an artifact again in a temporary folder, and compare the two.

    ``config`` must equal the config in the provenance. The build uses the image, agent and busybox
    that the provenance records; where they come from is said by the config and the lock of the
    project, because the provenance comes with the artifact and is not trusted to name files, hosts
    or logins. Raises `ConfigError` if the provenance is missing, `CorruptError` if it is malformed,
    `FledgeError` if it has another config or an input cannot be fetched.
    """
    artifact, config, session = Path(artifact), as_config(config), as_session(session)
    statement, record = provenance.read_statement(artifact)
    _check_comparable(record, config, artifact)
    claimed = lock.from_provenance(record, config)
    with session.reporter.step("read") as step:
        with session.reporter.work("reading") as progress:
            digest = _digest(artifact, progress)
        step.detail = f"sha256 {digest.hex}"
    with temporary_folder() as (path, folder):
        new = NewFile(folder.descriptor, artifact.name)
        os.close(new.create())
        rebuilt_path = path / artifact.name
        try:
            rebuilt = _rebuild(record, claimed, config, new, rebuilt_path, session)
        except (ConfigError, CorruptError) as error:
            return Verification(digest, record.digest, None, (), (), problem=error.message)
        difference, problem = None, ""
        if digest != rebuilt.digest:
            try:
                difference = diff(artifact, rebuilt_path, reporter=session.reporter)
            except FledgeError as error:
                problem = error.message
    described = provenance.statement(build.describe(config, rebuilt, record.epoch))
    false_claims = list(_false_claims(statement, described))
    return Verification(
        artifact=digest,
        recorded=record.digest,
        rebuilt=rebuilt.digest,
        false_claims=tuple(line for line in false_claims if not line.startswith(_VERSIONS)),
        versions=tuple(
            line.removeprefix(_VERSIONS) for line in false_claims if line.startswith(_VERSIONS)
        ),
        difference=difference,
        problem=problem,
    )


def _check_comparable(record: Provenance, config: Config, artifact: Path) -> None:
    """Raise `FledgeError` if the config differs, `ConfigError` if it is not reproducible."""
    if record.config != config.data:
        raise FledgeError(
            f"{artifact} was built with a configuration that differs from {config.path}:"
            + "".join(
                f"\n  {line}" for line in _differences(_flat(record.config), _flat(config.data))
            ),
            "Check out the version that it was built from, or name its file with -c FILE.",
        )
    if not config.format.reproducible:
        raise ConfigError(
            f"images of type {config.format.name} are not reproducible and cannot be verified",
            'Use type = "ext4" for artifacts that others verify.',
        )


def _rebuild(
    record: Provenance, claimed: Lock, config: Config, new: NewFile, path: Path, session: Session
) -> build.Artifact:
    """Build from the recorded inputs, which ``claimed`` pins, and the files of the project."""
    pins = PinFinder(config, path, claimed, False, Reporter())
    start = Assembly(
        session,
        parse_platform(record.platform),
        config.path.parent,
        record.epoch,
        is_platform_given=True,
        trusts_pins=False,
    )
    return build.build_pinned(config, pins, start, new, path)


def _digest(artifact: Path, progress: Transfer) -> Digest:
    try:
        progress.restart(0, artifact.stat().st_size)
        return hash_file(artifact, progress=progress).digest
    except OSError as error:
        raise unreadable_argument(artifact, error) from error


def _false_claims(claimed: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Describe every field that differs between two statements, in one line each."""
    claims, facts = _flat(claimed), _flat(here)
    yield from _differences(claims, facts)
    if claims == facts and claimed != here:
        yield f"{_DEPENDENCIES}: recorded in another order than here"


def _flat(document: object) -> dict[str, object]:
    """Return every value in a JSON document by its path; dependencies by name and URI."""
    return dict(_walk(document, ""))


def _walk(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        separator = " " if path.endswith(":") else "."
        for key, each in value.items():
            yield from _walk(each, f"{path}{separator}{key}".lstrip("."))
        if not value:
            yield path, value
    elif isinstance(value, list):
        for index, each in enumerate(value):
            named = path == _DEPENDENCIES and isinstance(each, dict)
            where = f"{each.get('name')} {each.get('uri')}:" if named else f"{path}.{index}"
            yield from _walk(each, where)
        if not value:
            yield path, value
    else:
        yield path, value


def _differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Describe the values that differ between two documents, in one line each."""
    return [
        f"{path}: recorded {_shown(before, path)}, here {_shown(after, path)}"
        for path in sorted(before.keys() | after.keys())
        if path not in before or path not in after or before[path] != after[path]
    ]


def _shown(values: Mapping[str, object], path: str) -> str:
    return str(values[path]) if path in values else "nothing"
