"""Finds the software packages in a tree, as their own metadata lists them.

To add a kind of package, write a module with an `Ecosystem` and add it to `ECOSYSTEMS`.
"""

from __future__ import annotations

import msgspec

from fledge.errors import MalformedError
from fledge.report import human_size
from fledge.tree.content import content_size, read_range
from fledge.tree.names import printable
from fledge.tree.nodes import File, Tree
from fledge.tree.packages.apk import APK
from fledge.tree.packages.dpkg import DPKG
from fledge.tree.packages.golang import GO
from fledge.tree.packages.node import NODE
from fledge.tree.packages.package import Ecosystem, LimitError, Meter, Package, optional_text
from fledge.tree.packages.python import PYTHON
from fledge.tree.packages.rpm import RPM

__all__ = ["ECOSYSTEMS", "Distribution", "Found", "Package", "find_packages"]

ECOSYSTEMS: tuple[Ecosystem, ...] = (APK, DPKG, RPM, PYTHON, NODE, GO)
"""All kinds of packages."""

MAX_PACKAGES = 100_000
"""Maximum packages that are listed."""
MAX_LISTED = 32 << 20
"""Maximum bytes and characters of all paths, names and licences that are listed."""
MAX_PROBLEMS = 100
"""Maximum files that are named of those whose packages could not be read."""
MAX_OS_RELEASE = 1 << 16
"""Bytes of os-release that are read."""


class Distribution(msgspec.Struct, frozen=True):
    """The operating system of a tree (os-release(5))."""

    id: str = ""
    """Such as ``debian``. Empty: not known."""
    version: str = ""
    """Such as ``12``. Empty: not known, or it has none."""


class Found(msgspec.Struct, frozen=True):
    """The packages in a tree."""

    packages: tuple[Package, ...]
    """In the order of their paths, and as their metadata has them."""
    problems: tuple[str, ...]
    """Describes each file whose packages are missing or incomplete, in one line each."""
    distribution: Distribution


def find_packages(tree: Tree) -> Found:
    """Find the packages in a tree.

    What cannot be read is among the problems. Raises `FledgeError` if a content cannot be read from
    this machine.
    """
    found: list[Package] = []
    problems: list[str] = []
    size = 0  # of the packages, as `_size` returns it
    count = 0  # of files whose packages cannot be read
    meter = Meter()
    try:
        for path, node in tree.walk():
            if not isinstance(node, File):
                continue
            for ecosystem in ECOSYSTEMS:
                if not ecosystem.matches(path, node.mode):
                    continue
                try:
                    for package in ecosystem.read(path, node.content, meter):
                        if len(found) == MAX_PACKAGES:
                            raise LimitError(f"there are more than {MAX_PACKAGES} packages")
                        size += _size(package)
                        if size > MAX_LISTED:
                            raise LimitError(f"their names have more than {human_size(MAX_LISTED)}")
                        found.append(package)
                except MalformedError as error:
                    count += 1
                    if count <= MAX_PROBLEMS:
                        problems.append(f"/{printable(path)}: {printable(str(error))}")
    except LimitError as error:
        problems.append(f"not all packages are listed: {error}")
    if count > MAX_PROBLEMS:
        problems.append(f"the packages of {count - MAX_PROBLEMS} more files cannot be read either")
    return Found(tuple(found), tuple(problems), _distribution(tree))


def _size(package: Package) -> int:
    """Return the length of all that is listed of a package."""
    texts = (package.path, package.name, package.version, package.licence, package.source)
    return sum(map(len, texts))


def _distribution(tree: Tree) -> Distribution:
    """Return what os-release says."""
    for path in (b"/etc/os-release", b"/usr/lib/os-release"):
        node = tree.get(path, follow=True)
        if isinstance(node, File):
            size = min(content_size(node.content), MAX_OS_RELEASE)
            lines = (
                line.partition(b"=") for line in read_range(node.content, 0, size).split(b"\n")
            )
            values = {name.strip(): value.strip().strip(b"\"'") for name, _, value in lines}
            return Distribution(
                optional_text(values.get(b"ID")), optional_text(values.get(b"VERSION_ID"))
            )
    return Distribution()
