"""The kestrel agent: from a GitHub release, a file or a URL, to ``/bin/kestrel``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import msgspec

from fledge.errors import CorruptError, FledgeError, NetworkError
from fledge.net.fetch import Fetcher
from fledge.net.transport import HttpStatusError
from fledge.oci.document import Document
from fledge.project.config import Agent, HttpAgent, LocalAgent, ReleaseAgent
from fledge.project.lock import AgentPin
from fledge.tree import File, Tree, elf
from fledge.tree.content import Blob, whole_file

PATH = b"/bin/kestrel"
REPOSITORY = "volantvm/volant"
DEFAULT_API = "https://api.github.com"
API_VARIABLE = "FLEDGE_GITHUB_API"
"""Environment variable with another base URL: a mirror, or https://HOST/api/v3."""

CHECKSUMS = "checksums.txt"
ALIASES = {"amd64": ("amd64", "x86_64"), "arm64": ("arm64", "aarch64"), "386": ("386", "i386")}


class FetchedAgent(msgspec.Struct, frozen=True):
    content: Blob
    url: str | None
    """Where it came from; None for a file of this machine."""
    version: str | None
    """The tag of the release, if it is one and had to be looked up."""


def fetch(
    agent: Agent, architecture: str, fetcher: Fetcher, pin: AgentPin | None = None
) -> FetchedAgent:
    """Get the agent and verify it; with a pin that one and no other.

    ``architecture`` (OCI name) decides which asset of a release is taken, and whatever the
    source an agent for another one is refused. Raises `NetworkError` if it cannot be had and
    `CorruptError` if it is not what it should be.
    """
    if pin:
        found = _fetch_pinned(pin, fetcher)
    elif isinstance(agent, LocalAgent):
        found = FetchedAgent(whole_file(agent.path), None, None)
        if agent.checksum not in (None, found.content.sha256):
            raise CorruptError(
                f"{agent.path} has sha256 {found.content.sha256}, not the {agent.checksum}"
                " that [agent] checksum says",
                "Correct the checksum if the file is the one you mean.",
            )
    elif isinstance(agent, HttpAgent):
        found = FetchedAgent(fetcher.fetch(agent.url, "agent", agent.checksum), agent.url, None)
    elif agent.checksum and (cached := fetcher.cache.find(agent.checksum)):
        found = FetchedAgent(cached, _api_url(agent), None)
    else:
        found = _fetch_release(agent, architecture, fetcher)
        if agent.checksum:
            # As the next build says of it, which asks nobody any more.
            found = FetchedAgent(found.content, _api_url(agent), None)
    _check_program(found, architecture)
    return found


def resolve(agent: ReleaseAgent | HttpAgent, architecture: str, fetcher: Fetcher) -> AgentPin:
    """What the agent is now, and where it comes from. Raises as `fetch` does."""
    if isinstance(agent, HttpAgent):
        found = fetch(agent, architecture, fetcher)
    else:
        found = _fetch_release(agent, architecture, fetcher)
        _check_program(found, architecture)
    return AgentPin(found.version, found.url or "", found.content.sha256)


def install(tree: Tree, agent: FetchedAgent) -> None:
    """Put the agent at ``/bin/kestrel``, whatever ``/bin`` is a symlink to."""
    tree.add(PATH, File(mode=0o755, mtime_ns=tree.mtime_ns, content=agent.content))


def _fetch_pinned(pin: AgentPin, fetcher: Fetcher) -> FetchedAgent:
    what = f"the lock pins the agent with sha256 {pin.sha256}"
    try:
        return FetchedAgent(fetcher.fetch(pin.url, "agent", pin.sha256), pin.url, pin.version)
    except HttpStatusError as error:
        raise NetworkError(
            f"{what}, but {error.message}", "Run `fledge lock` to pin one that is there."
        ) from None
    except CorruptError as error:
        raise CorruptError(
            f"{what}, but {error.message}",
            "A release does not change: find out who changed it before you run `fledge lock`.",
        ) from None


def _api_url(agent: ReleaseAgent) -> str:
    tag = "latest" if agent.version == "latest" else f"tags/{quote(agent.version, safe='')}"
    api = (os.environ.get(API_VARIABLE) or DEFAULT_API).rstrip("/")
    return f"{api}/repos/{REPOSITORY}/releases/{tag}"


def _fetch_release(agent: ReleaseAgent, architecture: str, fetcher: Fetcher) -> FetchedAgent:
    """The asset of a release, as the API says now."""
    url = _api_url(agent)
    try:
        answer = fetcher.json(url, _authorization(url))
    except HttpStatusError as error:
        raise _explained(error, url, agent.version) from None
    release = _release(answer, url)
    asset = next((a for a in _asset_names(architecture) if a in release.assets), None)
    if asset is None:
        raise NetworkError(
            f"release {release.version} of kestrel has no asset for {architecture};"
            f" it has {', '.join(sorted(release.assets)) or 'none at all'} ({url})",
            'Choose another [agent] version, or give your own with source_strategy = "local".',
        )
    checksum = agent.checksum
    if CHECKSUMS in release.assets:
        listing = fetcher.text(release.assets[CHECKSUMS])
        published = _published_checksum(listing, asset, release.assets[CHECKSUMS])
        if checksum not in (None, published):
            raise CorruptError(
                f"{asset} of release {release.version} has sha256 {published} by its"
                f" {CHECKSUMS}, and {checksum} by [agent] checksum",
                "Find out which of the two is right before you change the checksum.",
            )
        checksum = published
    blob = fetcher.fetch(release.assets[asset], "agent", checksum)
    return FetchedAgent(blob, release.assets[asset], release.version)


class _Release(msgspec.Struct, frozen=True):
    version: str
    assets: dict[str, str]
    """Download URL by name."""


def _release(answer: object, url: str) -> _Release:
    """What matters of GitHub's answer ("Get a release" in its REST API documentation)."""
    try:
        document = Document(answer, url)
        assets = {
            asset.text("name"): asset.text("browser_download_url")
            for asset in document.members("assets")
        }
        return _Release(document.text("tag_name"), assets)
    except CorruptError as error:
        raise CorruptError(
            f"{error.message}: the answer does not describe a release",
            f"Check {API_VARIABLE}: it must be the base URL of a GitHub API.",
        ) from None


def _asset_names(architecture: str) -> Iterator[str]:
    """What the asset may be called; for amd64 it is usually the bare name."""
    if architecture == "amd64":
        yield "kestrel"
    for alias in ALIASES.get(architecture, (architecture,)):
        for separator in "-_":
            yield f"kestrel{separator}linux{separator}{alias}"
            yield f"kestrel{separator}{alias}"


def _published_checksum(listing: str, asset: str, url: str) -> str:
    """The digest of an asset from lines as sha256sum prints them."""
    for line in listing.splitlines():
        digest, _, name = line.partition(" ")
        if name[1:] == asset and re.fullmatch("[0-9a-fA-F]{64}", digest):
            return digest.lower()
    raise CorruptError(
        f"{url} has no checksum of {asset}",
        'Choose another [agent] version, or use source_strategy = "http" with a checksum.',
    )


def _authorization(url: str) -> dict[str, str]:
    """The user's token; never in the clear to another machine."""
    token = os.environ.get("GITHUB_TOKEN")
    parts = urlsplit(url)
    private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    return {"Authorization": f"Bearer {token}"} if token and private else {}


def _explained(error: HttpStatusError, url: str, version: str) -> FledgeError:
    if error.status == HTTPStatus.NOT_FOUND:
        return NetworkError(
            f"there is no release {version!r} of kestrel at {url}",
            f"See https://github.com/{REPOSITORY}/releases for what [agent] version can be.",
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
    """Refuse what the kernel would not run: ``/init`` has no way to explain it at boot."""
    where = agent.url or agent.content.path
    with agent.content.path.open("rb") as file:
        start = file.read(elf.ELF_HEADER_SIZE)
    machine = elf.architecture(start)
    if machine is None and not start.startswith(b"#!"):
        raise CorruptError(
            f"the agent from {where} is no program: it begins with {start!r}",
            "It must be an ELF binary or a script that begins with #!.",
        )
    if machine not in (None, architecture):
        raise CorruptError(
            f"the agent from {where} is for {machine}, the busybox for {architecture}",
            "Take both for the same architecture.",
        )
