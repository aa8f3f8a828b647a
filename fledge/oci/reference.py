"""What people write to name an image, as a type for each place that it may be in.

Names follow the grammar of distribution/reference (what Docker, containerd and the
registries have in common), transports are spelled as in containers-transports(5).
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from fledge.errors import ConfigError

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255
"""Characters of host and repository together."""

HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Name(msgspec.Struct, frozen=True):
    """``host/repository:tag@sha256:digest``; by itself, an image of the daemon or a registry."""

    host: str
    """With its port if it has one; ``docker.io`` is Docker Hub."""
    repository: str
    tag: str | None = None
    """Given, or ``latest``; None only beside a digest."""
    sha256: str | None = None
    """The digest of the manifest or index, hex. It decides; a tag beside it is for people."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@sha256:{self.sha256}" if self.sha256 else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


class InRegistry(msgspec.Struct, frozen=True):
    """``docker://NAME``"""

    name: Name

    def __str__(self) -> str:
        return f"docker://{self.name}"


class InDaemon(msgspec.Struct, frozen=True):
    """``docker-daemon:NAME``"""

    name: Name

    def __str__(self) -> str:
        return f"docker-daemon:{self.name}"


class OciLayout(msgspec.Struct, frozen=True):
    """``oci:DIR[:TAG]``"""

    path: Path
    tag: str | None
    """The ``org.opencontainers.image.ref.name`` in its index."""

    def __str__(self) -> str:
        return _stored("oci:", self.path, self.tag)


class OciArchive(msgspec.Struct, frozen=True):
    """``oci-archive:FILE[:TAG]``: a tar of an OCI layout."""

    path: Path
    tag: str | None

    def __str__(self) -> str:
        return _stored("oci-archive:", self.path, self.tag)


class DockerArchive(msgspec.Struct, frozen=True):
    """``docker-archive:FILE[:TAG]``: what ``docker save`` writes."""

    path: Path
    tag: str | None
    """One of its ``RepoTags``, such as ``nginx:alpine``."""

    def __str__(self) -> str:
        return _stored("docker-archive:", self.path, self.tag)


Reference = Name | InRegistry | InDaemon | OciLayout | OciArchive | DockerArchive

NAMED: dict[str, type[InRegistry] | type[InDaemon]] = {
    "docker://": InRegistry,
    "docker-daemon:": InDaemon,
}
FILES: dict[str, type[OciLayout] | type[OciArchive] | type[DockerArchive]] = {
    "oci:": OciLayout,
    "oci-archive:": OciArchive,
    "docker-archive:": DockerArchive,
}


def parse(text: str, folder: Path) -> Reference:
    """The image that a text names; relative paths start at ``folder``.

    Raises `ConfigError` that says what would be right.
    """
    for prefix, named in NAMED.items():
        if text.startswith(prefix):
            return named(_name(text.removeprefix(prefix), text))
    for prefix, stored in FILES.items():
        if text.startswith(prefix):
            # As skopeo does: a path has no colon, what follows it may have.
            path, colon, tag = text.removeprefix(prefix).partition(":")
            if not path or (colon and not tag):
                raise _wrong(
                    text, "the path or the tag is empty", f"Write {prefix}PATH or {prefix}PATH:TAG."
                )
            return stored(folder / path, tag or None)
    if "://" in text:
        known = ", ".join([*NAMED, *FILES])
        raise _wrong(
            text,
            "that is no transport that fledge knows",
            f"Write a name such as nginx:alpine, or begin with one of {known}",
        )
    return _name(text, text)


def default_name(reference: Reference) -> str:
    """What to call the artifact of an image, without suffix: ``nginx`` for ``nginx:alpine``."""
    if isinstance(reference, InRegistry | InDaemon):
        reference = reference.name
    if isinstance(reference, Name):
        return reference.repository.rpartition("/")[2]
    path = reference.path.resolve()
    return (path.name if isinstance(reference, OciLayout) else path.stem) or "image"


def relative(reference: Reference, folder: Path) -> Reference:
    """The same with a path as `parse` takes it with that folder, if it is one below."""
    if isinstance(reference, Name | InRegistry | InDaemon):
        return reference
    path, folder = reference.path.absolute(), folder.absolute()
    return msgspec.structs.replace(
        reference, path=path.relative_to(folder) if path.is_relative_to(folder) else path
    )


def _stored(prefix: str, path: Path, tag: str | None) -> str:
    return f"{prefix}{path}:{tag}" if tag else f"{prefix}{path}"


def _name(name: str, text: str) -> Name:
    """The name that is all of ``text``, or what follows a transport in it."""
    rest, at, digest = name.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise _wrong(
            text,
            f"{digest!r} is no digest",
            "Write NAME@sha256: and 64 digits out of 0-9 and a-f; no other kind is supported.",
        )
    # A colon before the last slash belongs to the port of the host.
    folder, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    path = folder + slash + last
    if colon and not TAG.fullmatch(tag):
        problem = f"{tag!r} is no tag" if tag else "the tag after the colon is empty"
        raise _wrong(
            text,
            problem,
            "A tag has at most 128 letters, digits, '_', '.' and '-', and begins with none of"
            " the last two.",
        )
    host, repository = _split_host(path)
    if len(f"{host}/{repository}") > MAX_NAME:
        raise _wrong(text, f"the name has more than {MAX_NAME} characters", "Check the name.")
    if not HOST.fullmatch(host):
        raise _wrong(text, f"{host!r} is no host", "Write HOST/NAME:TAG or HOST:PORT/NAME:TAG.")
    for component in repository.split("/"):
        if not COMPONENT.fullmatch(component):
            raise _wrong(text, *_component_problem(component, text))
    return Name(
        host=host,
        repository=repository,
        tag=tag or (None if digest else DEFAULT_TAG),
        sha256=digest.removeprefix("sha256:") or None,
    )


def _split_host(path: str) -> tuple[str, str]:
    """Host and repository; only a dot, a colon or ``localhost`` makes a first component a host."""
    first, slash, rest = path.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, repository = first, rest
    else:
        host, repository = DOCKER_HUB, path
    if host == "index.docker.io":
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}" if repository else ""
    return host, repository


def _component_problem(component: str, text: str) -> tuple[str, str]:
    """What is wrong with one component of a repository, and what to do about it."""
    if not component:
        return "the name is empty, or a part of it is", "Write NAME:TAG, such as nginx:alpine."
    lower = component.lower()
    if COMPONENT.fullmatch(lower):
        return f"{component!r} must be in lower case", f"Write {text.replace(component, lower, 1)}."
    return (
        f"{component!r} is no part of a name",
        "Between slashes there are lower-case letters and digits, joined by one of . _ __ -.",
    )


def _wrong(text: str, problem: str, hint: str) -> ConfigError:
    return ConfigError(f"image {text!r}: {problem}", hint)
