"""Verifies an artifact against its provenance, by building it again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fledge.errors import (
    ConfigError,
    CorruptError,
    FledgeError,
    NetworkError,
    reason,
    unreadable_argument,
)
from fledge.host.files import NewFile, PathLike
from fledge.host.work import temporary_folder
from fledge.oci.manifest import parse_platform
from fledge.operations import build, documents, seal
from fledge.operations.arguments import ConfigLike, as_config, as_session
from fledge.operations.diff import Difference, diff
from fledge.operations.digests import read_digest
from fledge.project import lock, manifest, provenance
from fledge.project.config import Config
from fledge.project.lock import Lock, PinFinder
from fledge.project.provenance import Provenance
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.project.target import Target
from fledge.report import Reporter
from fledge.session import Session
from fledge.sources.source import Assembly
from fledge.tree import NANOSECONDS
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

if TYPE_CHECKING:
    from fledge.project.policy import Policy

MAX_LINES = 1000
"""Maximum fields that are named, of a provenance that differs in more."""

MAX_TEXT = 500
"""Maximum characters of a key or value that are shown."""

_NOTHING = object()
"""Stands for a value that a document does not have."""

_VERSIONS = "predicate.runDetails.builder.version."
_DEPENDENCIES = "predicate.buildDefinition.resolvedDependencies"
_EPOCH = "predicate.buildDefinition.externalParameters.SOURCE_DATE_EPOCH"


class Verification(msgspec.Struct, frozen=True):
    """The result of building an artifact again."""

    artifact: Digest
    """The digest of the file."""
    recorded: Digest
    """The digest in its provenance."""
    rebuilt: Digest | None
    """The digest of the new build. None if nothing can be built as recorded."""
    false_claims: tuple[str, ...]
    """Describes each field of the provenance that the new build contradicts, in one line each. If
    nothing can be built as recorded, a build of the project as it is contradicts them."""
    versions: tuple[str, ...]
    """Describes each version that differs from the record, of fledge and its codecs. They are no
    false claims where they made no difference."""
    difference: Difference | None = None
    """The difference between the file and the new build. None if they are equal, or cannot be
    compared."""
    problem: str = ""
    """Why nothing can be built as recorded, or why the two cannot be compared; otherwise empty."""
    signers: tuple[str, ...] = ()
    """The keys of the policy that have signed the provenance; empty without a policy."""

    @property
    def equal(self) -> bool:
        """Whether the file, its provenance and the new build agree."""
        return self.artifact == self.recorded == self.rebuilt and not self.false_claims


def verify(
    artifact: PathLike,
    config: ConfigLike = "fledge.toml",
    *,
    policy: Policy | None = None,
    session: Session | None = None,
) -> Verification:
    """Build an artifact again in a temporary folder, and compare the two.

    With a ``policy``, the signatures beside the artifact are checked first, as by
    `verify_signatures`, and the provenance that counts is the signed one.

    ``config`` must equal the config in the provenance. The build uses the image, agent and busybox
    that the provenance records; where they come from is said by the config and the lock of the
    project, because the provenance comes with the artifact and is not trusted to name files, hosts
    or logins. If nothing can be built as recorded, the project is built as it is, to find the
    fields that are false. Raises `ConfigError` if the provenance is missing, `CorruptError` if it
    is malformed, `FledgeError` if it has another config or an input cannot be fetched.
    """
    artifact, session = Path(artifact), as_session(session)
    # No kernel changes the bytes, and the one that was named may be on another machine.
    config = msgspec.structs.replace(as_config(config), target=Target())
    try:
        artifact.stat()
    except OSError as error:
        raise unreadable_argument(artifact, error) from error
    statement: Mapping[str, Any]
    signers: tuple[str, ...] = ()
    if policy:
        # Imported late because cryptography is slow to load, and only signatures need it.
        from fledge.operations.trust import verify_signatures  # noqa: PLC0415

        trusted = verify_signatures(artifact, policy, session=session)
        statement, record, digest = trusted.statement, trusted.record, trusted.record.digest
        signers = tuple(key.name for key in trusted.keys)
    else:
        statement, record = provenance.read_statement(artifact)
    _check_comparable(record, config, artifact)
    claimed = lock.from_provenance(record, config)
    if not policy:
        digest = read_digest(artifact, session)
    with temporary_folder() as (path, folder):
        new = NewFile(folder.descriptor, artifact.name)
        os.close(new.create())
        tree = None
        if config.verity and config.verity.is_beside:
            tree = NewFile(folder.descriptor, seal.path_beside(artifact).name)
            os.close(tree.create())
        rebuilt_path = path / artifact.name
        try:
            rebuilt = _rebuild(record, claimed, config, new, rebuilt_path, tree, session)
        except (ConfigError, CorruptError, NetworkError) as error:
            session.reporter.note("cannot be built as recorded; building the project as it is")
            claims = _nearest_claims(statement, record, config, new, rebuilt_path, session)
            if isinstance(error, NetworkError) and not claims:
                raise
            return Verification(
                digest, record.digest, None, claims, (), problem=error.message, signers=signers
            )
        difference, problem = None, ""
        if digest != rebuilt.digest:
            try:
                difference = diff(artifact, rebuilt_path, reporter=session.reporter)
            except FledgeError as error:
                problem = error.message
    false_claims = [
        *_false_claims(statement, config, rebuilt, record.epoch),
        *_epoch_claim(difference, record.epoch),
        *_manifest_claims(record, artifact),
        *_sbom_claims(record, artifact),
        *filter(None, [seal.problem_beside(artifact, record)]),
    ]
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
        signers=signers,
    )


def _check_comparable(record: Provenance, config: Config, artifact: Path) -> None:
    """Raise `FledgeError` if the config differs, `ConfigError` if it is not reproducible."""
    if record.config != config.data:
        raise FledgeError(
            f"{artifact} was built with a configuration that differs from {config.path}:",
            "Check out the version that it was built from, or name its file with -c FILE.",
            tuple(_limited(_differences(record.config, config.data))),
        )
    if not config.format.reproducible:
        raise ConfigError(
            f"images of type {config.format.name} are not reproducible and cannot be verified",
            'Use type = "ext4" for artifacts that others verify.',
        )


def _rebuild(
    record: Provenance,
    claimed: Lock,
    config: Config,
    new: NewFile,
    path: Path,
    tree: NewFile | None,
    session: Session,
) -> build.Artifact:
    """Build from the recorded inputs, which ``claimed`` pins, and the files of the project.

    ``new`` and ``tree`` are as for `build.build_pinned`.
    """
    pins = PinFinder(config, path, claimed, False, Reporter())
    start = Assembly(
        session,
        parse_platform(record.platform),
        config.path.parent,
        record.epoch,
        is_platform_given=True,
        trusts_pins=False,
        may_build=False,
    )
    return build.build_pinned(config, pins, start, new, path, _url(record, config), tree)


def _url(record: Provenance, config: Config) -> str | None:
    """Return where the manifest says that the artifact is; None: without a manifest."""
    return record.url or "/" if config.manifest else None


def _manifest_claims(record: Provenance, artifact: Path) -> Iterator[str]:
    """Describe how the plugin manifest beside the artifact differs from its digest."""
    path = manifest.path_beside(artifact)
    if record.manifest is None:
        return
    try:
        text = read_regular(path, manifest.MAX_MANIFEST_SIZE)
    except OSError as error:
        yield f"{path}: {reason(error)}"
        return
    if not documents.is_manifest_of(record, text):
        yield f"{path}: recorded sha256 {record.manifest.hex}, here {Digest.of(text).hex}"


def _sbom_claims(record: Provenance, artifact: Path) -> Iterator[str]:
    """Describe how the software bills of materials beside an artifact differ from the record."""
    for kind, digest in record.sboms.items():
        path = sbom_path(artifact, kind)
        try:
            here = hash_file(path).digest
        except OSError as error:
            yield f"{path}: {reason(error)}"
            continue
        if here != digest:
            yield f"{path}: recorded sha256 {digest.hex}, here {here.hex}"


def _nearest_claims(
    statement: Mapping[str, Any],
    record: Provenance,
    config: Config,
    new: NewFile,
    path: Path,
    session: Session,
) -> tuple[str, ...]:
    """Describe every field that the project as it is contradicts; none if it cannot be built.

    The record may name several platforms, of which one is false: the one counts that leaves the
    fewest fields.
    """
    found = []
    recorded = [record.platform, *(item.facts.get("platform") for item in record.inputs)]
    for platform in dict.fromkeys(each for each in recorded if isinstance(each, str)):
        with suppress(FledgeError):
            pins = lock.load_pins(config, Reporter(), strict=False)
            start = Assembly(
                session,
                parse_platform(platform),
                config.path.parent,
                record.epoch,
                may_build=False,
            )
            url = _url(record, config)
            built = build.build_pinned(config, pins, start, new, path, url)
            found.append(tuple(_false_claims(statement, config, built, record.epoch)))
    return min(found, key=len, default=())


def _epoch_claim(difference: Difference | None, epoch: int) -> Iterator[str]:
    """Describe the time that paths have in place of the recorded one, if they share it."""
    changes = difference.changes if difference else ()
    times = [change.fields["mtime_ns"] for change in changes if "mtime_ns" in change.fields]
    before = {old for old, new in times if new == epoch * NANOSECONDS}
    if len(before) == 1 and isinstance(old := before.pop(), int):
        yield f"{_EPOCH}: recorded {epoch}, and paths in the artifact have {old // NANOSECONDS}"


def _false_claims(
    claimed: Mapping[str, Any], config: Config, built: build.Artifact, epoch: int
) -> list[str]:
    """Describe the fields that differ from the statement about a build, in one line each."""
    here = provenance.statement(build.describe(config, built, epoch))
    lines = _limited(_differences(claimed, here))
    if not lines and claimed != here:
        return [f"{_DEPENDENCIES}: recorded in another order than here, or twice"]
    return lines


def _limited(lines: Iterator[str]) -> list[str]:
    first = list(islice(lines, MAX_LINES))
    return [*first, "and more"] if next(lines, None) is not None else first


def _differences(before: object, after: object, path: str = "") -> Iterator[str]:
    """Describe every value that differs between two JSON documents, in one line each."""
    kinds = {type(value) for value in (before, after) if value is not _NOTHING}
    if kinds not in ({dict}, {list}):
        if kinds != {type(before)} or before != after:
            yield f"{path}: recorded {_shown(before)}, here {_shown(after)}"
        return
    old, new = _members(before, path), _members(after, path)
    if not old and not new and before != after:
        yield f"{path}: recorded {_shown(before)}, here {_shown(after)}"
    for key in sorted(old.keys() | new.keys()):
        where = f"{path}{' ' if path.endswith(':') else '.'}{_cut(key)}".lstrip(".")
        if path == _DEPENDENCIES:
            where = _cut(key)
        yield from _differences(old.get(key, _NOTHING), new.get(key, _NOTHING), where)


def _members(value: object, path: str) -> dict[str, object]:
    """Return the members of an object or a list; dependencies by name and URI."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return {}
    if path == _DEPENDENCIES and all(isinstance(each, dict) for each in value):
        return {f"{each.get('name')} {each.get('uri')}:": each for each in value}
    return {str(index): each for index, each in enumerate(value)}


def _shown(value: object) -> str:
    return "nothing" if value is _NOTHING else _cut(str(value))


def _cut(text: str) -> str:
    """Shorten a text of a provenance, whose lines could be of any length."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"
