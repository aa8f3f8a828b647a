"""Whether an artifact is what its provenance says, and whether building it again gives it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fledge.errors import ConfigError, unreadable
from fledge.net.fetch import Fetcher
from fledge.operations import build
from fledge.project import provenance
from fledge.project.config import Config
from fledge.project.provenance import Input, Provenance
from fledge.tree.content import whole_file


class Verdict(msgspec.Struct, frozen=True):
    """Digests are hex."""

    artifact: str
    """SHA-256 of the file."""
    recorded: str
    """What its provenance says."""
    rebuilt: str
    """What the build gave now."""
    inputs: tuple[str, ...]
    """What was put in now and is not what is recorded, a line for each."""
    versions: tuple[str, ...]
    """How this fledge and its codecs differ from the recorded ones, a line for each."""

    @property
    def equal(self) -> bool:
        return self.artifact == self.recorded == self.rebuilt


def verify(artifact: Path, config: Config, again: Path, fetcher: Fetcher) -> Verdict:
    """Build an artifact once more, at ``again``, and compare it.

    ``config`` must be the one that it was built with: the provenance, which comes with the
    artifact, is not trusted to name files of this machine. Images, the agent and busybox are
    those of the provenance. Raises `ConfigError` if there is no provenance, or of another
    config; `CorruptError` if it is malformed; `FledgeError` if it cannot be built.
    """
    record = provenance.load(artifact)
    if record.config != config.data:
        raise ConfigError(
            f"{artifact} was built with another configuration than {config.path}:"
            + "".join(f"\n  {line}" for line in _differences(record.config, config.data, "")),
            "Check out the version that it was built from, or name that file with -c FILE.",
        )
    if config.strategy == "oci_rootfs" and config.filesystem.type != "ext4":
        raise ConfigError(
            f"{config.filesystem.type} images are filled by the kernel and never the same twice",
            'Use type = "ext4" for what others shall verify.',
        )
    with fetcher.reporter.step("read") as step:
        found = _digest(artifact)
        step.detail = f"sha256 {found}"
    made = build.rebuild(record, config, again, fetcher)
    return Verdict(
        artifact=found,
        recorded=record.sha256,
        rebuilt=made.sha256,
        inputs=tuple(_changed_inputs(record.inputs, made.inputs)),
        versions=tuple(_changed_versions(record)),
    )


def _digest(artifact: Path) -> str:
    try:
        return whole_file(artifact).sha256
    except OSError as error:
        raise unreadable(artifact, error) from error


def _differences(recorded: object, here: object, key: str) -> list[str]:
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
    return "left out" if value is None else repr(value)


def _changed_inputs(recorded: tuple[Input, ...], here: tuple[Input, ...]) -> list[str]:
    before = {(item.role, item.uri): item.sha256 for item in recorded}
    after = {(item.role, item.uri): item.sha256 for item in here}
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
