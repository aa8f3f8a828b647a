"""Finds the artifact of a build in a registry, and keeps it there for others.

The key of a build is a digest of all that decides its bytes. It is the tag of the artifact, which
is pushed as any other, with its provenance and its signatures.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fledge.errors import ConfigError, CorruptError, FledgeError, MalformedError, NetworkError
from fledge.host.files import NewFile
from fledge.net.exchange import HttpStatusError
from fledge.oci import artifact as artifacts
from fledge.oci import referrers
from fledge.oci.artifact import RemoteArtifact
from fledge.oci.login import DELETE
from fledge.oci.reference import Name
from fledge.oci.repository import NoManifestError, Places, Repository
from fledge.operations.arguments import as_session
from fledge.operations.documents import is_manifest_of, parse_plugin
from fledge.operations.pull import read_documents, write
from fledge.operations.push import registry_name, store
from fledge.project import lock, provenance
from fledge.project.config import Config
from fledge.project.lock import PinFinder
from fledge.project.manifest import PluginManifest
from fledge.project.provenance import Provenance
from fledge.project.sboms.table import SbomFormat
from fledge.project.schema import SETTINGS
from fledge.report import Reporter, human_size
from fledge.session import Session
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly
from fledge.store.housekeeping import Amount
from fledge.tree.digest import Digest

if TYPE_CHECKING:
    from fledge.project.policy import Policy

TAG = "build-"
"""What the tags of artifacts begin with. The digits of the key follow."""


class Sharing(msgspec.Struct, frozen=True):
    """How a build is shared with other machines."""

    keep_in: str | None = None
    """The repository to keep the artifact in. None: it is not kept."""
    sign_with: str | None = None
    """The key to sign the artifact with, as for `sign`. None: it is not signed."""
    policy: Policy | None = None
    """Whose signatures an artifact needs that was built elsewhere. None: as the project says."""


class EarlierBuild(msgspec.Struct, frozen=True):
    """An artifact that was built elsewhere, as its provenance describes it."""

    size: int
    record: Provenance
    manifest: PluginManifest | None
    envelope: bytes | None
    """Its signatures, as its file has them. None: it is not signed."""
    sboms: Mapping[SbomFormat, bytes]
    """The software bills of materials, as their files have them."""


class SharedBuild(msgspec.Struct, frozen=True):
    """A build whose artifact others may have kept, or will want."""

    key: Digest
    pins: PinFinder
    local: tuple[Input, ...]
    start: Assembly
    pull_from: Name | None
    """The repository to look in; None: none."""
    policy: Policy | None
    """Whose signatures what it has needs; None: it is trusted."""
    keep_in: Name | None
    """The repository to keep the artifact in; None: none."""

    @property
    def session(self) -> Session:
        """The session of the build."""
        return self.start.session

    @classmethod
    def open(
        cls, pins: PinFinder, start: Assembly, output_name: str, sharing: Sharing
    ) -> SharedBuild | None:
        """Return what there is to do for a build. None: it is not shared.

        Raises `ConfigError` if the name of a cache is none, if its policy has expired, or if a
        build is to be kept that is not locked: a key never stands for a tag, which moves.
        """
        if sharing.keep_in and not pins.strict:
            raise ConfigError(
                "only a build whose inputs are all pinned can be kept for others",
                "Add --locked, or leave out --cache-to.",
            )
        if not pins.strict:
            return None
        if programs := pins.config.format.host_programs():
            if sharing.keep_in:
                start.session.reporter.note(
                    f"the build is not kept: {programs[0]} of this machine decides its bytes, too"
                )
            return None
        config, session = pins.config, start.session
        own = session.settings.cache_registry
        registry = own or config.cache.registry
        keep_in = repository_name(sharing.keep_in) if sharing.keep_in else None
        pull_from = repository_name(registry) if registry and not session.offline else None
        policy = sharing.policy or _policy(config)
        if pull_from and policy:
            policy.check_date()
        is_trusted = session.settings.trusts_cache if own else config.cache.trusted
        if pull_from and not policy and not is_trusted:
            trust = "FLEDGE_CACHE_TRUSTED=1" if own else "[cache] trusted = true"
            session.reporter.note(
                f"the build cache {registry} is not used: nobody vouches for what is in it; set"
                f" {trust}, or say with --key or [cache] policy whose signatures it needs"
            )
            pull_from = None
        if not pull_from and not keep_in:
            return None
        pins.check_project(start)
        local = local_inputs(pins, start)
        key = build_key(pins, start, output_name, local)
        return cls(key, pins, local, start, pull_from, policy, keep_in)

    def pull(self, new: NewFile) -> EarlierBuild | None:
        """Write the artifact that was built elsewhere to an empty file.

        None: there is none, or it cannot be used, which is noted. The file is then worth nothing.
        """
        if not self.pull_from:
            return None
        where = f"the build cache {self.pull_from.host}/{self.pull_from.repository}"
        try:
            found = self._find(_tagged(self.pull_from, self.key))
            if found is None:
                self.session.reporter.detail(f"{where} does not have {TAG}{self.key.hex}")
                return None
            remote, places, build = found
            with self.session.reporter.step("pull") as step:
                write(remote, new, places, self.session)
                step.detail = f"{human_size(remote.size)}, built before: from {where}"
        except (NetworkError, CorruptError) as error:
            self.session.reporter.note(f"{where} is not used: {error.message}")
            return None
        return build

    def keep(self, artifact: Path, *, is_pulled: bool) -> None:
        """Keep an artifact for others, unless it was pulled from there. A failure is a note."""
        if not self.keep_in or (is_pulled and self.keep_in == self.pull_from):
            return
        try:
            with self.session.reporter.step("keep") as step:
                sent = store(artifact, _tagged(self.keep_in, self.key), self.session)
                step.detail = f"{human_size(sent)} sent to {self.keep_in.host}"
        except FledgeError as error:
            self.session.reporter.note(f"the build is not kept: {error.message}")

    def _find(self, name: Name) -> tuple[RemoteArtifact, Places, EarlierBuild] | None:
        """Return what a cache has under a name, and where. None: nobody has built it before.

        Raises `NetworkError` if the registry does not answer, `CorruptError` if that is not the
        artifact of this build, or is not signed as the policy asks for.
        """
        places = Places(name, self.session)
        try:
            raw = places.ask(Repository.read_named_manifest)
        except NoManifestError:
            return None
        where = f"{name}@{Digest.of(raw)}"
        remote = artifacts.parse(raw, where)
        if not isinstance(remote, RemoteArtifact):
            raise CorruptError(f"{where} is an index, and not the artifact of a build")
        documents = read_documents(Digest.of(raw), remote, places, where, self.policy)
        record, manifest = documents.provenance, documents.plugin_manifest
        if record is None or not self._is_record(record) or not is_manifest_of(record, manifest):
            raise CorruptError(f"{where} is not the artifact of this build")
        found = parse_plugin(manifest, where) if manifest is not None else None
        wanted = self.pins.config.sbom.formats if self.pins.config.sbom else ()
        if set(documents.sboms) != set(wanted):
            raise CorruptError(f"{where} lacks its software bill of materials")
        build = EarlierBuild(remote.size, record, found, documents.envelope, documents.sboms)
        return remote, places, build

    def _is_record(self, record: Provenance) -> bool:
        """Return whether a record is that of this build, whatever key it is kept under."""
        config, start = self.pins.config, self.start
        made = (_essential(record.config), record.epoch, record.versions)
        if made != (_essential(config.data), start.epoch, _versions(config)):
            return False
        if (record.manifest is None) != (config.manifest is None):
            return False
        # Unless it is asked for, busybox decides the platform of an initramfs.
        is_free = config.format.in_memory and not start.is_platform_given
        if not is_free and record.platform != str(start.platform):
            return False
        wanted = {(each.role, each.uri, each.digest) for each in self.local}
        found = {(each.role, each.uri, each.digest): each for each in record.inputs}
        pinned = [found[each] for each in found.keys() - wanted]
        return wanted <= found.keys() and all(self._is_pinned(each, record) for each in pinned)

    def _is_pinned(self, item: Input, record: Provenance) -> bool:
        """Return whether the lock pins an input that was recorded."""
        sources = [each for each in self.pins.config.sources if each.role == item.role]
        sections = self.pins.lock.sections if self.pins.lock else {}
        if not sources or item.role not in sections:
            return False
        try:
            key, _ = sources[0].recorded_pin(item, record.platform)
        except (MalformedError, msgspec.ValidationError):
            return False
        own = sections[item.role].pins.get(key)
        return own is not None and lock.has_digest(own, item.digest)


def repository_name(reference: str) -> Name:
    """Parse the name of the repository. Raises `ConfigError` if it is none, or has a tag."""
    name = registry_name(reference)
    if name.digest or ":" in reference.rpartition("/")[2]:
        raise ConfigError(
            f"{reference}: the cache is a repository, in which each build has a tag of its own",
            "Leave out the tag.",
        )
    return name


def local_inputs(pins: PinFinder, start: Assembly) -> tuple[Input, ...]:
    """Return the inputs of a build that no lock pins: the files of the project.

    Raises `FledgeError` if one cannot be read.
    """
    quiet = msgspec.structs.replace(start.session, reporter=Reporter(), offline=True)
    local = Assembly(quiet, start.platform, start.folder, start.epoch)
    local.architecture = ""  # not known without the programs that the lock pins
    for source in pins.config.sources:
        if source.section is None:
            source.lay(local, None)
    return tuple(local.inputs)


def build_key(pins: PinFinder, start: Assembly, output_name: str, local: Sequence[Input]) -> Digest:
    """Return the digest of all that decides the bytes of a build.

    That is the config, the lock, the files of the project, the platform, the time, and the versions
    of fledge and its codecs. ``pins`` must pin everything else than ``local``. The name of the
    output counts if it is in a document, too. ``start`` is an empty assembly for the build.
    """
    config = pins.config
    facts = {
        "config": _essential(config.data),
        "lock": pins.lock,
        "inputs": local,
        "platform": str(start.platform),
        "epoch": start.epoch,
        "versions": _versions(config),
        "name": output_name if config.manifest or config.sbom else "",
    }
    return Digest.of(msgspec.json.encode(facts, order="deterministic"))


def prune(
    reference: str,
    older_than: float | None,
    max_size: int | None,
    *,
    session: Session | None = None,
) -> tuple[Amount, Amount]:
    """Remove artifacts that were kept more than ``older_than`` seconds ago, then the oldest ones
    until what is left needs at most ``max_size`` bytes. None: no such limit. Returns the amounts
    that were removed and that are left, in artifacts and the bytes of their blobs.

    The registry frees the space when it collects its garbage. Raises `NetworkError` if it does not
    delete manifests.
    """
    session = as_session(session)
    repository = Repository.open(repository_name(reference), session, DELETE)
    kept: dict[Digest, RemoteArtifact] = {}
    for tag in repository.tags():
        if tag.startswith(TAG):
            with suppress(NoManifestError, CorruptError):
                raw = repository.read_manifest(tag)
                remote = artifacts.parse(raw, f"{repository.name}: {tag}")
                if isinstance(remote, RemoteArtifact):
                    kept[Digest.of(raw)] = remote
    uses = Counter(blob for remote in kept.values() for blob in set(remote.blobs))
    size = sum(blob.size for blob in uses)
    removed = left = Amount()
    start = time.time()
    for digest, remote in sorted(kept.items(), key=lambda each: (each[1].pushed, str(each[0]))):
        old = older_than is not None and start - remote.pushed > older_than
        own = [blob for blob in set(remote.blobs) if uses[blob] == 1]
        if not old and (max_size is None or size <= max_size):
            left += Amount(1)
            continue
        _delete(repository, digest)
        uses.subtract(set(remote.blobs))
        freed = sum(blob.size for blob in own)
        size -= freed
        removed += Amount(1, freed)
    return removed, left + Amount(0, size)


def _delete(repository: Repository, digest: Digest) -> None:
    try:
        referrers.delete(repository, digest)
        repository.delete_manifest(digest)
    except HttpStatusError as error:
        if error.status != HTTPStatus.METHOD_NOT_ALLOWED:
            raise
        raise NetworkError(
            f"{repository.name.host} does not delete manifests",
            "Allow it there, or prune with the tools of that registry.",
        ) from error


def _policy(config: Config) -> Policy | None:
    """Return the policy that the project names. Raises `ConfigError`."""
    if config.cache.policy is None:
        return None
    # Imported late because cryptography is slow to load, and only signatures need it.
    from fledge.project.policy import Policy  # noqa: PLC0415

    return Policy.load(config.cache.policy)


def _versions(config: Config) -> Mapping[str, str]:
    """Return the versions of everything that decides the bytes of a build."""
    return provenance.versions(has_sbom=bool(config.sbom))


def _tagged(repository: Name, key: Digest) -> Name:
    return Name(repository.host, repository.repository, f"{TAG}{key.hex}")


def _essential(data: Mapping[str, object]) -> dict[str, object]:
    """Return what of a config can change an artifact."""
    return {table: value for table, value in data.items() if table not in SETTINGS}
