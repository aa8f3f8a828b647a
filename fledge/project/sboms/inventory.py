"""What a software bill of materials says, whatever its format."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from hashlib import sha256

import msgspec
from packageurl import PackageURL
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from fledge.sources.inputs import Input
from fledge.sources.kinds import IMAGE_ROLES
from fledge.tree.digest import Digest
from fledge.tree.names import printable
from fledge.tree.packages import Distribution, Found, Package

NAMESPACE = "https://github.com/volantvm/fledge/sbom"
"""What the names of documents begin with."""


NAMED_BY_URI = frozenset((*IMAGE_ROLES, "mapping"))
"""The roles of inputs of which there are many, so that only the URI tells which."""


class Inventory(msgspec.Struct, frozen=True):
    """The software in one artifact."""

    name: str
    """The file name of the artifact."""
    digest: Digest
    epoch: int
    """The time of the build, in seconds since 1970."""
    inputs: Sequence[Input]
    """What the artifact was built from. Empty if that is not known."""
    found: Found

    @property
    def uri(self) -> str:
        """A name for documents about these bytes, under this name, and for no others."""
        name = sha256(self.name.encode("utf-8", "replace")).hexdigest()
        return f"{NAMESPACE}/{name[:16]}-{self.digest.hex}"

    @property
    def serial_number(self) -> uuid.UUID:
        """The same as a UUID (RFC 9562, version 5)."""
        return uuid.uuid5(uuid.NAMESPACE_URL, self.uri)

    @property
    def created(self) -> str:
        """The time of the build (RFC 3339)."""
        moment = datetime.fromtimestamp(self.epoch, timezone.utc)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Component(msgspec.Struct, frozen=True):
    """One piece of software in an artifact."""

    id: str
    """Unique in a document, of letters, digits, dots and dashes alone."""
    name: str
    version: str
    """Empty: not known."""
    purl: str = ""
    """Its package URL. Empty: it is no package."""
    path: str = ""
    """The file that lists it, with a leading slash. Empty: it is an input."""
    licence: str = ""
    """What it declares, as SPDX writes it where it is an expression. Empty: it declares none."""
    is_expression: bool = False
    """Whether the licence is an expression of SPDX, whose terms SPDX lists."""
    digest: Digest | None = None
    """The digest of an input; None for a package."""
    uri: str = ""
    """Where an input came from: a URL, or a path in the project."""
    role: str = ""
    """What an input is for, such as ``agent``. Empty for a package."""
    source: str = ""
    """The source package that it was built from. Empty: not known."""


def components(inventory: Inventory) -> list[Component]:
    """Return all software in an artifact: the inputs, then the packages."""
    licences: dict[str, tuple[str, bool]] = {}
    return [
        *_from_inputs(inventory.inputs),
        *_from_packages(inventory.found, licences),
    ]


def _from_inputs(inputs: Sequence[Input]) -> Iterator[Component]:
    for number, item in enumerate(inputs):
        version = item.facts.get("version")
        uri = printable(item.uri)
        yield Component(
            id=f"input-{number}-{item.role}",
            name=uri if item.role in NAMED_BY_URI else item.role,
            version=version if isinstance(version, str) else "",
            digest=item.digest,
            uri=uri,
            role=item.role,
        )


def _from_packages(found: Found, licences: dict[str, tuple[str, bool]]) -> Iterator[Component]:
    """Yield the packages. ``licences`` keeps what `_licence` returns, for many have the same."""
    seen: set[str] = set()
    for package in found.packages:
        purl = package_url(package, found.distribution)
        key = sha256(purl.encode() + b"\0" + package.path).hexdigest()[:16]
        if key in seen:  # a file may list a package twice
            continue
        seen.add(key)
        if package.licence not in licences:
            licences[package.licence] = _licence(package.licence)
        licence, is_expression = licences[package.licence]
        yield Component(
            id=f"{package.kind}-{key}",
            name=package.name,
            version=package.version,
            purl=purl,
            path=printable(b"/" + package.path),
            licence=licence,
            is_expression=is_expression,
            source=package.source,
        )


def package_url(package: Package, distribution: Distribution) -> str:
    """Return the package URL of a package (package-url/purl-spec, types)."""
    kind, namespace, name = str(package.kind), "", package.name
    version, qualifiers = package.version, dict[str, str]()
    if kind in ("apk", "deb", "rpm"):
        namespace = distribution.id
        if package.architecture:
            qualifiers["arch"] = package.architecture
        if distribution.id and distribution.version:
            qualifiers["distro"] = f"{distribution.id}-{distribution.version}"
    if kind == "rpm" and ":" in version:
        qualifiers["epoch"], _, version = version.partition(":")
    if kind in ("golang", "npm"):
        namespace, _, name = name.rpartition("/")
    found = PackageURL(kind, namespace or None, name or "-", version or None, qualifiers or None)
    return found.to_string()


def _licence(declared: str) -> tuple[str, bool]:
    """Return a declared licence, and whether it is an expression of SPDX."""
    try:
        expression = canonicalize_license_expression(declared)
    except InvalidLicenseExpression:
        return declared, False
    # A reference would have to be explained, and nothing here explains it.
    return (declared, False) if "LicenseRef-" in expression else (str(expression), True)
