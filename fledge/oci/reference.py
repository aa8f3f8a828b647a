"""Parses references to images, with a type for each transport.

Names follow the grammar of distribution/reference, which Docker, containerd and registries share.
Transports are spelled as in containers-transports(5).
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, MalformedError
from fledge.tree.digest import Digest
from fledge.tree.names import printable

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255
"""Maximum characters of host and repository together."""

HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
HUB_PAGE = re.compile(
    rf"(?:\w+://)?hub\.docker\.com/(?:_/({COMPONENT.pattern})|r/({COMPONENT.pattern}/{COMPONENT.pattern}))"
)
"""The address of Docker Hub's page about an image."""
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
PINNED_PATH = re.compile("(.+)@sha256", re.DOTALL)
"""What precedes the colon of ``PATH@sha256:HEX``, as messages write an image of a layout."""
RECIPE = re.compile(r"(?:^|[/.])(?:Docker|Container)file\b")
"""In the names of recipes for images, such as ``Dockerfile.dev`` or ``app.Dockerfile``."""
PORT = re.compile("[0-9]{1,5}/")
"""What follows a host that is called like a transport, such as ``podman:5000/app``."""


class Name(msgspec.Struct, frozen=True):
    """``host/repository:tag@sha256:digest``. Without a transport it is an image of the local
    Docker daemon or of a registry.
    """

    host: str
    """With the port if there is one. ``docker.io`` is Docker Hub."""
    repository: str
    tag: str | None = None
    """None if there is only a digest."""
    digest: Digest | None = None
    """The digest of the manifest or index; it takes precedence over the tag. None if not given."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


class RegistryReference(msgspec.Struct, frozen=True):
    """``docker://NAME``: an image in a registry."""

    name: Name

    def __str__(self) -> str:
        return f"docker://{self.name}"


class DaemonReference(msgspec.Struct, frozen=True):
    """``docker-daemon:NAME``: an image of the local Docker daemon."""

    name: Name

    def __str__(self) -> str:
        return f"docker-daemon:{self.name}"


class OciLayout(msgspec.Struct, frozen=True):
    """``oci:DIR[:TAG]``: an image in a folder with an OCI layout."""

    path: Path
    tag: str | None
    """What chooses an image, as `layout.open_image` describes. None: its only image."""

    def __str__(self) -> str:
        return _format("oci:", self.path, self.tag)


class OciArchive(msgspec.Struct, frozen=True):
    """``oci-archive:FILE[:TAG]``: an image in a tar of an OCI layout."""

    path: Path
    tag: str | None
    """What chooses an image, as `layout.open_image` describes. None: its only image."""

    def __str__(self) -> str:
        return _format("oci-archive:", self.path, self.tag)


class DockerArchive(msgspec.Struct, frozen=True):
    """``docker-archive:FILE[:TAG]``: an image in the output of ``docker save``."""

    path: Path
    tag: str | None
    """One of its ``RepoTags``, such as ``nginx:alpine``, or ``@0`` for its first image. None: its
    only image."""

    def __str__(self) -> str:
        return _format("docker-archive:", self.path, self.tag)


Reference = Name | RegistryReference | DaemonReference | OciLayout | OciArchive | DockerArchive

NAME_TRANSPORTS: dict[str, type[RegistryReference] | type[DaemonReference]] = {
    "docker://": RegistryReference,
    "docker-daemon:": DaemonReference,
}
"""The prefixes that a name follows."""
PATH_TRANSPORTS: dict[str, type[OciLayout] | type[OciArchive] | type[DockerArchive]] = {
    "oci:": OciLayout,
    "oci-archive:": OciArchive,
    "docker-archive:": DockerArchive,
}
"""The prefixes that a path, and perhaps a tag, follows."""

_PODMAN = (
    "Write docker-daemon:{0} while podman's service runs (`systemctl --user start podman.socket`),"
    " or run `podman save --format oci-archive -o FILE {0}` and write oci-archive:FILE."
)
_SKOPEO = "Run `skopeo copy {1} oci:FOLDER`, and write oci:FOLDER."
OTHER_TRANSPORTS = {
    "containers-storage": _PODMAN,
    "podman": _PODMAN,
    "dir": _SKOPEO,
    "ostree": _SKOPEO,
    "sif": _SKOPEO,
    "tarball": _SKOPEO,
    "oci-dir": "Write oci:{0}.",
    "oci-layout": "Write oci:{0}.",
    "docker-image": "Write docker://{0}.",
    "http": "Write docker://{0}.",
    "https": "Write docker://{0}.",
}
"""The transports of other tools, and what to do instead. ``{0}`` is what follows the transport,
``{1}`` the whole text. Without this list, some would be names of images on Docker Hub."""


def parse(text: str, folder: Path) -> Reference:
    """Parse a reference; relative paths in it start at ``folder``.

    Raises `ConfigError` whose hint says how to write the reference.
    """
    if page := HUB_PAGE.match(text):
        raise _invalid(text, "that is a web page about an image", f"Write {page[1] or page[2]}.")
    for prefix, by_name in NAME_TRANSPORTS.items():
        if text.startswith(prefix):
            return by_name(_parse_name(text.removeprefix(prefix), text))
    for prefix, by_path in PATH_TRANSPORTS.items():
        if text.startswith(prefix):
            # Like skopeo, end the path at the first colon: the tag may have colons.
            path, colon, tag = text.removeprefix(prefix).partition(":")
            pinned = PINNED_PATH.fullmatch(path)
            if pinned and tag:
                path, tag = pinned[1], f"sha256:{tag}"
            if not path or (colon and not tag):
                raise _invalid(
                    text, "the path or the tag is empty", f"Write {prefix}PATH or {prefix}PATH:TAG."
                )
            return by_path(folder / path, tag or None)
    transport, colon, rest = text.partition(":")
    if colon and transport in OTHER_TRANSPORTS and not PORT.match(rest):
        rest = printable(rest.removeprefix("//"))
        raise _invalid(
            text,
            f"{transport}: is a transport of other tools",
            OTHER_TRANSPORTS[transport].format(rest or "NAME", printable(text)),
        )
    if "://" in text:
        known = ", ".join([*NAME_TRANSPORTS, *PATH_TRANSPORTS])
        raise _invalid(
            text,
            "fledge does not know that transport",
            f"Write a name such as nginx:alpine, or begin with one of {known}",
        )
    try:
        return _parse_name(text, text)
    except ConfigError as error:
        if found := _file_problem(text, folder):
            raise _invalid(text, *found) from error
        raise


def _file_problem(text: str, folder: Path) -> tuple[str, str] | None:
    """Return the problem of text that is no name but a path, and a hint. None if it is no path."""
    shown = printable(text)
    if RECIPE.search(text):
        return (
            "that is a recipe for an image, and not an image",
            f'Write dockerfile = "{shown}" in place of image.',
        )
    with suppress(OSError):  # no file can have that name
        file, _, _ = text.partition(":")
        path = folder / file
        if file and path.is_dir():
            return "that is a folder", f"If it is an OCI layout, write oci:{shown}."
        if file and path.is_file():
            return (
                "that is a file",
                f"If it is an image, write oci-archive:{shown} or docker-archive:{shown}.",
            )
    return None


def full_name(name: str) -> str:
    """Expand a name of an image: ``nginx`` becomes ``docker.io/library/nginx:latest``.

    Text that is no name stays as it is.
    """
    try:
        return str(_parse_name(name, name))
    except ConfigError:
        return name


def default_name(reference: Reference) -> str:
    """Return the default name of an image's artifact, without suffix: ``nginx`` for
    ``nginx:alpine``.
    """
    if isinstance(reference, RegistryReference | DaemonReference):
        reference = reference.name
    if isinstance(reference, Name):
        return reference.repository.rpartition("/")[2]
    path = reference.path.resolve()
    return (path.name if isinstance(reference, OciLayout) else path.stem) or "image"


def relative(reference: Reference, folder: Path) -> Reference:
    """Make the path in a reference relative to ``folder``, or absolute if it is not below it.

    `parse` with the same folder reverses this. References without a path stay as they are.
    """
    if isinstance(reference, Name | RegistryReference | DaemonReference):
        return reference
    path, folder = reference.path.absolute(), folder.absolute()
    return msgspec.structs.replace(
        reference, path=path.relative_to(folder) if path.is_relative_to(folder) else path
    )


def _format(prefix: str, path: Path, tag: str | None) -> str:
    return f"{prefix}{path}:{tag}" if tag else f"{prefix}{path}"


def _parse_name(name: str, text: str) -> Name:
    """Parse a name; ``text`` is the whole reference, for messages."""
    rest, at, pinned = name.partition("@")
    try:
        digest = Digest.parse(pinned) if at else None
    except MalformedError as error:
        raise _invalid(
            text,
            str(error),
            "Write NAME@sha256: and 64 digits out of 0-9 and a-f; no other kind is supported.",
        ) from error
    # A colon before the last slash separates host and port.
    folder, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    path = folder + slash + last
    if colon and not TAG.fullmatch(tag):
        problem = f"{tag!r} is not a tag" if tag else "the tag after the colon is empty"
        raise _invalid(
            text,
            problem,
            "A tag has at most 128 letters, digits, '_', '.' and '-', and does not begin with '.'"
            " or '-'.",
        )
    host, repository = _split_host(path)
    if len(f"{host}/{repository}") > MAX_NAME:
        raise _invalid(text, f"the name has more than {MAX_NAME} characters", "Check the name.")
    if not HOST.fullmatch(host):
        raise _invalid(
            text, f"{host!r} is not a host", "Write HOST/NAME:TAG or HOST:PORT/NAME:TAG."
        )
    for component in repository.split("/"):
        if not COMPONENT.fullmatch(component):
            raise _invalid(text, *_component_problem(component, text))
    return Name(
        host=host,
        repository=repository,
        tag=tag or (None if digest else DEFAULT_TAG),
        digest=digest,
    )


def _split_host(path: str) -> tuple[str, str]:
    """Split a path into host and repository, and complete short names of Docker Hub.

    The first component is a host only if it has a dot or a colon or is ``localhost``.
    """
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
    """Return the problem of an invalid component of a repository, and a hint."""
    if not component:
        return "the name is empty, or a part of it is", "Write NAME:TAG, such as nginx:alpine."
    lower = component.lower()
    if COMPONENT.fullmatch(lower):
        return f"{component!r} must be in lower case", f"Write {text.replace(component, lower, 1)}."
    return (
        f"{component!r} cannot be part of a name",
        "Between slashes, write lower-case letters and digits, separated by one of . _ __ -.",
    )


def _invalid(text: str, problem: str, hint: str) -> ConfigError:
    return ConfigError(f"image {text!r}: {problem}", hint)
