"""Verifies an artifact against its provenance, by building it rebuilt_path."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, FledgeError, unreadable_argument
from fledge.host.files import PathLike
from fledge.oci.manifest import parse_platform
from fledge.operations import build
from fledge.operations.arguments import ConfigLike, as_config, as_session
from fledge.operations.diff import Difference, diff
from fledge.project import lock, provenance
from fledge.project.config import Config
from fledge.project.lock import PinFinder
from fledge.project.provenance import Provenance
from fledge.report import Reporter, Transfer
from fledge.session import Session
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest


class Verification(msgspec.Struct, frozen=True):
    """The result of building an artifact rebuilt_path."""

    artifact: Digest
    """The digest of the file."""
    recorded: Digest
    """The digest in its provenance."""
    rebuilt: Digest
    """The digest of the new build."""
    inputs: tuple[str, ...]
    """Describes each input that differs from the record, in one line each."""
    versions: tuple[str, ...]
    """Describes each version that differs from the record, of fledge and its codecs."""
    difference: Difference | None
    """The difference between the file and the new build. None if they are equal, or cannot be
    compared."""
    incomparable: str = ""
    """Why they cannot be compared; otherwise empty."""

    @property
    def equal(self) -> bool:
        """Whether the file, its provenance and the new build agree."""
        return self.artifact == self.recorded == self.rebuilt


def verify(
    artifact: PathLike,
    config: ConfigLike = "fledge.toml",
    *,
    session: Session | None = None,
) -> Verification:
    """Build an artifact rebuilt_path in a temporary folder, and compare the two.

    ``config`` must equal the config in the provenance, which is not trusted to name files of this
    machine. The build uses the image, agent and busybox that the provenance records. Raises
    `ConfigError` if the provenance is missing or has another config, `CorruptError` if it is
    malformed, `FledgeError` if the build fails.
    """
    artifact, config, session = Path(artifact), as_config(config), as_session(session)
    record = provenance.load(artifact)
    _check_comparable(record, config, artifact)
    with session.reporter.step("read") as step:
        with session.reporter.work("reading") as progress:
            digest = _digest(artifact, progress)
        step.detail = f"sha256 {digest.hex}"
    with tempfile.TemporaryDirectory(prefix="fledge-") as folder:
        rebuilt_path = Path(folder, artifact.name)
        rebuilt = _rebuild(record, config, rebuilt_path, session)
        difference, incomparable = None, ""
        if digest != rebuilt.digest:
            try:
                difference = diff(artifact, rebuilt_path, reporter=session.reporter)
            except FledgeError as error:
                incomparable = error.message
    return Verification(
        artifact=digest,
        recorded=record.digest,
        rebuilt=rebuilt.digest,
        inputs=tuple(_changed_inputs(record.inputs, rebuilt.inputs)),
        versions=tuple(_changed_versions(record)),
        difference=difference,
        incomparable=incomparable,
    )


def _check_comparable(record: Provenance, config: Config, artifact: Path) -> None:
    """Raise `ConfigError` if the config differs, or its format is not reproducible."""
    if record.config != config.data:
        raise ConfigError(
            f"{artifact} was built with a configuration that differs from {config.path}:"
            + "".join(f"\n  {line}" for line in _differences(record.config, config.data, "")),
            "Check out the version that it was built from, or name its file with -c FILE.",
        )
    if not config.format.reproducible:
        raise ConfigError(
            f"images of type {config.format.name} are not reproducible and cannot be verified",
            'Use type = "ext4" for artifacts that others verify.',
        )


def _rebuild(record: Provenance, config: Config, output: Path, session: Session) -> build.Artifact:
    """Build from the recorded inputs and the files of the project."""
    pins = PinFinder(config, output, lock.from_provenance(record, config), False, Reporter())
    platform = parse_platform(record.platform)
    start = Assembly(session, platform, config.path.parent, record.epoch)
    return build.build_pinned(config, pins, start, output)


def _digest(artifact: Path, progress: Transfer) -> Digest:
    try:
        progress.restart(0, artifact.stat().st_size)
        return hash_file(artifact, progress=progress).digest
    except OSError as error:
        raise unreadable_argument(artifact, error) from error


def _differences(recorded: object, here: object, key: str) -> list[str]:
    """Describe the values that differ between two configs, in one line each."""
    if isinstance(recorded, dict) and isinstance(here, dict):
        return [
            line
            for name in sorted({*recorded, *here})
            for line in _differences(
                recorded.get(name), here.get(name), f"{key}.{name}" if key else str(name)
            )
        ]
    return [f"{key}: {_shown(recorded)}, here {_shown(here)}"] if recorded != here else []


def _shown(value: object) -> str:
    return "absent" if value is None else repr(value)


def _changed_inputs(recorded: tuple[Input, ...], here: tuple[Input, ...]) -> list[str]:
    before = {(item.role, item.uri): item.digest.hex for item in recorded}
    after = {(item.role, item.uri): item.digest.hex for item in here}
    return [
        f"{role} {uri}: recorded {before.get((role, uri), 'nothing')},"
        f" here {after.get((role, uri), 'nothing')}"
        for role, uri in sorted(before.keys() | after.keys())
        if before.get((role, uri)) != after.get((role, uri))
    ]


def _changed_versions(record: Provenance) -> list[str]:
    here = provenance.versions()
    return [
        f"{name}: recorded {record.versions.get(name, 'nothing')}, here {here.get(name, 'nothing')}"
        for name in sorted({*record.versions, *here})
        if record.versions.get(name) != here.get(name)
    ]
