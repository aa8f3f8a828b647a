"""The agent source: adds kestrel, from a GitHub release, a file or a URL, as ``/bin/kestrel``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta

from fledge.errors import CorruptError, FledgeError, NetworkError
from fledge.host.settings import Settings
from fledge.net.exchange import HttpStatusError
from fledge.net.json_document import JsonObject
from fledge.report import human_size
from fledge.session import Session
from fledge.sources import paths, programs
from fledge.sources.inputs import Input
from fledge.sources.source import (
    Assembly,
    Checksum,
    InputFile,
    KeyedBy,
    Kind,
    LockSection,
    Need,
    Presence,
    Source,
    Url,
)
from fledge.tree import File, Tree
from fledge.tree.content import Blob, hash_file, open_content
from fledge.tree.digest import Digest
from fledge.tree.names import suggestion

REPOSITORY = "volantvm/volant"
API_VARIABLE = "FLEDGE_GITHUB_API"
CHECKSUMS = "checksums.txt"
MAX_RELEASES = 100
"""Releases to look through for one like a missing one: the most that GitHub lists at once."""
ARCHITECTURE_ALIASES = {
    "amd64": ("amd64", "x86_64"),
    "arm64": ("arm64", "aarch64"),
    "386": ("386", "i386"),
}


class AgentPin(msgspec.Struct, frozen=True):
    """The pin of an agent for one architecture."""

    version: str | None
    """The tag of the release; None if the agent is not a release."""
    url: Url
    sha256: Digest


class FetchedAgent(msgspec.Struct, frozen=True):
    """An agent on this machine, verified against its pin or checksum if it has one."""

    content: Blob
    url: str | None
    """The URL that it was downloaded from; None for a local file."""
    version: str | None
    """The tag of the release; None if the agent is not a release, or came from the cache."""


class Agent(Source, frozen=True, tag_field="source_strategy"):
    """The keys and methods that all strategies for the agent share."""

    role: ClassVar[str] = "agent"

    checksum: Checksum = None

    def conflict(self, pin: AgentPin, assembly: Assembly) -> str | None:
        """Compare the digest with the checksum in the config."""
        if self.checksum in (None, pin.sha256):
            return None
        return (
            f"the agent {pin.url} with sha256 {pin.sha256.hex}, not {self.checksum.hex} as the"
            " project says"
        )

    def resolve(self, assembly: Assembly, old: AgentPin | None) -> tuple[AgentPin, str]:
        """Fetch the agent and return its pin. Raises what `fetch` raises."""
        found = self.look_up(assembly.architecture, assembly.session)
        _check_program(found, assembly.architecture)
        url = found.url or ""
        return AgentPin(found.version, url, found.content.digest), url

    def recorded_pin(self, record: Input, platform: str) -> tuple[str, AgentPin]:
        """Return the architecture, and the version and digest of the agent.

        The URL in the record is not trusted to name a file or a host: `find_recorded` finds it
        anew.
        """
        facts = msgspec.convert(record.facts, _Facts)
        return facts.architecture, AgentPin(facts.version, "", record.digest)

    def programs(self) -> Sequence[bytes]:
        """Return the path of the agent."""
        return (paths.AGENT,)

    def lay(self, assembly: Assembly, pin: AgentPin | None) -> str:
        """Fetch the agent and add it as ``/bin/kestrel``. Raises what `fetch` raises."""
        architecture = assembly.architecture
        found = fetch(self, architecture, assembly.session, pin)
        install(assembly.tree, found.content)
        uri = found.url or assembly.relative(found.content.path)
        facts = {"architecture": architecture}
        if found.version:
            facts["version"] = found.version
        assembly.inputs.append(Input(self.role, uri, found.content.digest, facts))
        name = found.version or uri.rpartition("/")[2]
        return f"{name}, {human_size(found.content.size)}"

    def needs(self, assembly: Assembly, pin: AgentPin | None) -> Sequence[Need]:
        """Name the URL of the agent, unless the cache has the pinned one, or the one with the
        checksum.
        """
        digest = pin.sha256 if pin else self.checksum
        if digest and assembly.session.cache.claim(digest):
            return ()
        if pin and pin.url:
            return (Need(self.role, pin.url, note=pin.version or ""),)
        found = self.listed(assembly)
        return (found,) if found else ()

    def listed(self, assembly: Assembly) -> Need | None:
        """Return what `look_up` would download, without doing so. None: nothing."""
        raise NotImplementedError

    def get(self, architecture: str, session: Session) -> FetchedAgent:
        """Return the agent without a pin; from the cache if it has a checksum and is cached."""
        return self.look_up(architecture, session)

    def look_up(self, architecture: str, session: Session) -> FetchedAgent:
        """Return the agent that its origin provides now."""
        raise NotImplementedError

    def find_recorded(self, pin: AgentPin, architecture: str, session: Session) -> FetchedAgent:
        """Return the agent of a pin that came with an artifact, which names no URL."""
        raise NotImplementedError


class _Facts(msgspec.Struct):
    """The facts that provenance records about an agent."""

    architecture: str
    version: str | None = None


class ReleaseAgent(Agent, frozen=True, tag="release"):
    """A release of kestrel on GitHub."""

    section: ClassVar[LockSection | None] = LockSection(AgentPin, keyed_by=KeyedBy.ARCHITECTURE)

    version: Annotated[
        str,
        Meta(
            description='The tag of the release. "latest" is the newest release.',
            examples=["v1.2.3", "latest"],
            extra={"variables": True},
        ),
    ] = "latest"

    def pinned_name(self, folder: Path) -> str:
        """Return the version."""
        return self.version

    def get(self, architecture: str, session: Session) -> FetchedAgent:
        """Return the cached file with that checksum, or else the asset of the release."""
        url = _api_url(self.version, session.settings)
        if self.checksum is None:
            return self.look_up(architecture, session)
        content = session.cache.find(self.checksum)
        if content is None:
            content = self.look_up(architecture, session).content
        # The same URL, whether cached or not, so that the next build records the same.
        return FetchedAgent(content, url, None)

    def find_recorded(self, pin: AgentPin, architecture: str, session: Session) -> FetchedAgent:
        """Download the asset of the recorded version, which must have the recorded digest."""
        if pin.version is None:
            return self.get(architecture, session)
        recorded = ReleaseAgent(version=pin.version, checksum=pin.sha256)
        return _fetch_release(recorded, architecture, session)

    def listed(self, assembly: Assembly) -> Need | None:
        """Return the URL and size of the asset, which the API lists."""
        release, asset = _find_asset(self, assembly.architecture, assembly.session)
        return Need(self.role, release.assets[asset], release.sizes.get(asset), release.version)

    def look_up(self, architecture: str, session: Session) -> FetchedAgent:
        """Download the asset of the release."""
        return _fetch_release(self, architecture, session)


class LocalAgent(Agent, frozen=True, tag="local", kw_only=True):
    """A file on this machine."""

    path: Annotated[
        InputFile, Meta(description="The file of the agent.", examples=["build/kestrel"])
    ]

    def listed(self, assembly: Assembly) -> Need | None:
        """Return None: the file is on this machine."""
        return None

    def local_files(self) -> Sequence[Path]:
        """Return the file."""
        return (self.path,)

    def look_up(self, architecture: str, session: Session) -> FetchedAgent:
        """Hash the file. Raises `CorruptError` if it does not match the checksum."""
        found = FetchedAgent(hash_file(self.path), None, None)
        if self.checksum not in (None, found.content.digest):
            raise CorruptError(
                f"{self.path} has sha256 {found.content.digest.hex}, not the"
                f" {self.checksum.hex} in [agent] checksum",
                "Correct the checksum if this is the right file.",
            )
        return found


class HttpAgent(Agent, frozen=True, tag="http", kw_only=True):
    """A URL: http, https or file."""

    section: ClassVar[LockSection | None] = LockSection(AgentPin, keyed_by=KeyedBy.ARCHITECTURE)

    url: Annotated[
        Url,
        Meta(description="The URL of the agent.", examples=["https://example.org/kestrel"]),
    ]

    def pinned_name(self, folder: Path) -> str:
        """Return the URL."""
        return self.url

    def find_recorded(self, pin: AgentPin, architecture: str, session: Session) -> FetchedAgent:
        """Download the URL of the config, whose content must have the recorded digest."""
        return FetchedAgent(session.fetcher.fetch(self.url, "agent", pin.sha256), self.url, None)

    def listed(self, assembly: Assembly) -> Need | None:
        """Return the URL."""
        return Need(self.role, self.url)

    def look_up(self, architecture: str, session: Session) -> FetchedAgent:
        """Download the URL, or take the file with that checksum from the cache."""
        content = session.fetcher.fetch(self.url, "agent", self.checksum)
        return FetchedAgent(content, self.url, None)


KIND = Kind(
    table="agent",
    description="The kestrel agent, which becomes /bin/kestrel.",
    variants=(ReleaseAgent, LocalAgent, HttpAgent),
    presence={"initramfs": Presence.ALWAYS, "oci_rootfs": Presence.ALWAYS},
)


def fetch(
    agent: Agent, architecture: str, session: Session, pin: AgentPin | None = None
) -> FetchedAgent:
    """Fetch and verify the agent: the pinned one, or if ``pin`` is None, the current one.

    ``architecture`` (OCI name) selects the asset of a release. Raises `NetworkError` if the agent
    cannot be downloaded, `CorruptError` if it has the wrong digest, is not a program, or is for
    another architecture.
    """
    if pin is None:
        found = agent.get(architecture, session)
    elif pin.url:
        found = _fetch_pinned(pin, session)
    else:
        found = agent.find_recorded(pin, architecture, session)
    _check_program(found, architecture)
    return found


def install(tree: Tree, content: Blob) -> None:
    """Add the agent to the tree at `paths.AGENT`."""
    tree.add(paths.AGENT, File(mode=0o755, mtime_ns=tree.mtime_ns, content=content))


def _fetch_pinned(pin: AgentPin, session: Session) -> FetchedAgent:
    pinned = f"the lock pins the agent with sha256 {pin.sha256.hex}"
    try:
        content = session.fetcher.fetch(pin.url, "agent", pin.sha256)
    except HttpStatusError as error:
        raise NetworkError(
            f"{pinned}, but {error.message}", "Run `fledge lock` to pin one that exists."
        ) from error
    except CorruptError as error:
        raise CorruptError(
            f"{pinned}, but {error.message}",
            "Releases should not change: find out why this one did before you run `fledge lock`.",
        ) from error
    return FetchedAgent(content, pin.url, pin.version)


def _api_url(version: str, settings: Settings) -> str:
    tag = "latest" if version == "latest" else f"tags/{quote(version, safe='')}"
    return f"{settings.github_api}/repos/{REPOSITORY}/releases/{tag}"


def _find_asset(agent: ReleaseAgent, architecture: str, session: Session) -> tuple[_Release, str]:
    """Return a release as the API lists it now, and the name of the asset for an architecture."""
    fetcher = session.fetcher
    url = _api_url(agent.version, session.settings)
    try:
        answer = fetcher.json(url, _authorization(url, session.settings))
    except HttpStatusError as error:
        missing = error.status == HTTPStatus.NOT_FOUND and agent.version != "latest"
        known = _release_tags(session) if missing else []
        raise _release_error(error, url, agent.version, known) from error
    release = _release(answer, url)
    asset = next((a for a in _asset_names(architecture) if a in release.assets), None)
    if asset is None:
        raise NetworkError(
            f"release {release.version} of kestrel has no asset for {architecture};"
            f" its assets: {', '.join(sorted(release.assets)) or 'none'} ({url})",
            'Choose another [agent] version, or your own file with source_strategy = "local".',
        )
    return release, asset


def _fetch_release(agent: ReleaseAgent, architecture: str, session: Session) -> FetchedAgent:
    """Download the asset of a release that the API lists now."""
    fetcher = session.fetcher
    release, asset = _find_asset(agent, architecture, session)
    checksum = agent.checksum
    if CHECKSUMS in release.assets:
        listing = fetcher.text(release.assets[CHECKSUMS])
        published = _published_checksum(listing, asset, release.assets[CHECKSUMS])
        if checksum not in (None, published):
            raise CorruptError(
                f"{asset} of release {release.version} has sha256 {published.hex} in its"
                f" {CHECKSUMS}, but {checksum.hex} in [agent] checksum",
                "Find out which is right before you change the checksum.",
            )
        checksum = published
    elif checksum is None:
        session.reporter.note(
            f"release {release.version} of kestrel has no {CHECKSUMS}: the agent is not verified;"
            " [agent] checksum would pin it"
        )
    blob = fetcher.fetch(release.assets[asset], "agent", checksum)
    return FetchedAgent(blob, release.assets[asset], release.version)


class _Release(msgspec.Struct, frozen=True):
    """A release on GitHub."""

    version: str
    """Its tag."""
    assets: dict[str, str]
    """The download URLs of the assets, by name."""
    sizes: dict[str, int]
    """Their sizes in bytes, by name, of those that have one."""


def _release(answer: object, url: str) -> _Release:
    """Parse GitHub's answer ("Get a release" in the documentation of its REST API)."""
    try:
        document = JsonObject(answer, url)
        listed = document.members("assets")
        assets = {each.text("name"): each.text("browser_download_url") for each in listed}
        sizes = {each.text("name"): each.natural("size") for each in listed if each.has("size")}
        return _Release(document.text("tag_name"), assets, sizes)
    except CorruptError as error:
        raise CorruptError(
            f"{error.message}: the answer does not describe a release",
            f"Check {API_VARIABLE}: it must be the base URL of a GitHub API.",
        ) from error


def _asset_names(architecture: str) -> Iterator[str]:
    """Yield the possible names of the asset. For amd64, releases use the bare name."""
    if architecture == "amd64":
        yield "kestrel"
    for alias in ARCHITECTURE_ALIASES.get(architecture, (architecture,)):
        for separator in "-_":
            yield f"kestrel{separator}linux{separator}{alias}"
            yield f"kestrel{separator}{alias}"


def _published_checksum(listing: str, asset: str, url: str) -> Digest:
    """Return the digest of an asset from a listing in the format of sha256sum."""
    for line in listing.splitlines():
        digest, _, name = line.partition(" ")
        if name[1:] == asset and re.fullmatch("[0-9a-fA-F]{64}", digest):
            return Digest(digest.lower())
    raise CorruptError(
        f"{url} has no checksum of {asset}",
        'Choose another [agent] version, or use source_strategy = "http" with a checksum.',
    )


def _authorization(url: str, settings: Settings) -> dict[str, str]:
    """Return a header with the user's token; none if it would leave this machine unencrypted."""
    token = settings.github_token
    parts = urlsplit(url)
    private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    return {"Authorization": f"Bearer {token}"} if token and private else {}


def _release_tags(session: Session) -> list[str]:
    """Return the tags of the newest releases; none if the API does not list them."""
    url = f"{session.settings.github_api}/repos/{REPOSITORY}/releases?per_page={MAX_RELEASES}"
    with suppress(NetworkError, CorruptError):
        answer = session.fetcher.json(url, _authorization(url, session.settings))
        if isinstance(answer, list):
            return [JsonObject(each, url).text("tag_name") for each in answer]
    return []


def _release_error(error: HttpStatusError, url: str, version: str, known: list[str]) -> FledgeError:
    """Explain why the API refused to describe a release. ``known`` are the tags of others."""
    if error.status == HTTPStatus.NOT_FOUND:
        listing = f"https://github.com/{REPOSITORY}/releases lists the values for [agent] version."
        return NetworkError(
            f"kestrel has no release {version!r} at {url}",
            f"{suggestion(version, known)} {listing}".lstrip(),
        )
    if error.status == HTTPStatus.UNAUTHORIZED:
        return NetworkError(
            f"{url} does not accept the token in GITHUB_TOKEN", "Renew the token, or unset it."
        )
    limited = error.headers.get("X-RateLimit-Remaining") == "0"
    if limited or error.status == HTTPStatus.TOO_MANY_REQUESTS:
        reset = error.headers.get("X-RateLimit-Reset", "")
        until = ""
        if re.fullmatch("[0-9]{1,11}", reset):
            until = time.strftime(" until %Y-%m-%d %H:%M UTC", time.gmtime(int(reset)))
        return NetworkError(
            f"GitHub's rate limit for this address is used up{until} ({url})",
            "Set GITHUB_TOKEN, or pin [agent] checksum so that the cache can be used.",
        )
    return error


def _check_program(agent: FetchedAgent, architecture: str) -> None:
    where = agent.url or agent.content.path
    with open_content(agent.content) as file:
        start = os.pread(file, programs.START_SIZE, 0)
    programs.check_program(start, f"the agent from {where}", architecture)
