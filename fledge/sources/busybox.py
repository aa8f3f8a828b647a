"""The busybox source: adds the program, and a symlink for each of its applets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from fledge.errors import ConfigError, CorruptError
from fledge.oci.manifest import Platform
from fledge.sources import paths
from fledge.sources.inputs import Input
from fledge.sources.programs import START_SIZE, describe
from fledge.sources.source import Assembly, Kind, LockSection, Need, Presence, Source, Url
from fledge.tree import File, Symlink, Tree
from fledge.tree.applets import MAX_BUSYBOX_SIZE, applets
from fledge.tree.content import Span, read_content
from fledge.tree.digest import Digest
from fledge.tree.elf import architecture, is_executable

DEFAULT_URL = "https://busybox.net/downloads/binaries/1.35.0-x86_64-linux-musl/busybox"
DEFAULT_ARCHITECTURE = "amd64"
DEFAULT_DIGEST = Digest("6e123e7f3202a8c1e9b1f94d8941580a25135382b99e8d3e34fb858bba311348")


class BusyboxPin(msgspec.Struct, frozen=True):
    """The pin of a busybox. Its name in the lock is its URL."""

    sha256: Digest


class Busybox(Source, frozen=True):
    """The busybox of an initramfs."""

    role: ClassVar[str] = "busybox"
    section: ClassVar[LockSection | None] = LockSection(BusyboxPin, name_key="url", name_type=Url)

    url: Annotated[
        Url,
        Meta(
            description="The URL of busybox. It requires busybox_sha256, unless it is the default.",
            examples=["https://example.org/busybox"],
        ),
    ] = msgspec.field(name="busybox_url", default=DEFAULT_URL)
    digest: Annotated[
        Digest,
        Meta(
            description="The sha256 of the file at busybox_url. It requires busybox_url. Without"
            " both keys, fledge uses busybox 1.35.0 for x86_64.",
            examples=[DEFAULT_DIGEST.hex],
        ),
    ] = msgspec.field(name="busybox_sha256", default=DEFAULT_DIGEST)

    @classmethod
    def problems(cls, given: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yield each key that is missing beside the ``given`` keys, and why it is needed."""
        for key, partner in (
            ("busybox_url", "busybox_sha256"),
            ("busybox_sha256", "busybox_url"),
        ):
            if key in given and partner not in given:
                yield partner, f"{key} requires it, so that both describe one file"

    def pinned_name(self, folder: Path) -> str:
        """Return the URL. The config pins the bytes as well, and the lock must agree with it."""
        return self.url

    def conflict(self, pin: BusyboxPin, assembly: Assembly) -> str | None:
        """Compare the digest with that of the config."""
        if pin.sha256 == self.digest:
            return None
        return (
            f"the busybox {self.url} with sha256 {pin.sha256.hex}, not {self.digest.hex} as the"
            " project says"
        )

    def resolve(self, assembly: Assembly, old: BusyboxPin | None) -> tuple[BusyboxPin, str]:
        """Return the digest. Fetches and installs busybox, which sets the architecture."""
        self.lay(assembly, None)
        return BusyboxPin(self.digest), self.url

    def recorded_pin(self, record: Input, platform: str) -> tuple[str, BusyboxPin]:
        """Return the digest."""
        return "", BusyboxPin(record.digest)

    def needs(self, assembly: Assembly, pin: BusyboxPin | None) -> Sequence[Need]:
        """Name the URL, unless the cache has the file."""
        has = assembly.session.cache.claim(self.digest)
        return () if has else (Need(self.role, self.url),)

    def lay(self, assembly: Assembly, pin: BusyboxPin | None) -> str:
        """Install busybox, and set the architecture of the artifact to that of busybox.

        Raises `ConfigError` if the image or the requested platform has another architecture, and
        what `install` raises.
        """
        binary = assembly.session.fetcher.fetch(self.url, "busybox", self.digest)
        machine, applet_count = install(assembly.tree, binary)
        _set_architecture(assembly, machine)
        assembly.inputs.append(Input(self.role, self.url, self.digest))
        return f"{machine}, {applet_count} applets"

    def check(self, assembly: Assembly, pin: BusyboxPin | None) -> str | None:
        """Install busybox. If it must be downloaded, at most its architecture is known."""
        summary = super().check(assembly, pin)
        if summary is None and self.digest == DEFAULT_DIGEST:
            _set_architecture(assembly, DEFAULT_ARCHITECTURE)
        elif summary is None and not (assembly.has_image or assembly.is_platform_given):
            assembly.architecture = ""
        return summary


KIND = Kind(
    table="source",
    variants=(Busybox,),
    presence={"initramfs": Presence.ALWAYS},
    description="In an initramfs, also busybox.",
)


def _set_architecture(assembly: Assembly, machine: str) -> None:
    """Set the architecture of the artifact. Raises `ConfigError` if it must be another."""
    if assembly.has_image and machine != assembly.architecture:
        raise ConfigError(
            f"the busybox is for {machine}, the image for {assembly.architecture}",
            f"Build with --platform linux/{machine}, or name another busybox_url.",
        )
    if machine != assembly.platform.architecture:
        if assembly.is_platform_given:
            raise ConfigError(
                f"the busybox is for {machine}, not for {assembly.platform}",
                f"Name a busybox for {assembly.platform.architecture} with busybox_url and"
                " busybox_sha256, or leave out --platform.",
            )
        assembly.platform = Platform("linux", machine)
    assembly.architecture = machine


def install(tree: Tree, binary: Span) -> tuple[str, int]:
    """Add busybox as ``/bin/busybox``, and a symlink in ``/bin`` for each applet.

    A symlink does not replace an existing file. Returns the architecture of busybox (OCI name)
    and the number of applets. Raises `CorruptError` if ``binary`` is not a busybox.
    """
    if binary.size > MAX_BUSYBOX_SIZE:
        raise CorruptError(f"{binary.path} has {binary.size} bytes: too large for a busybox")
    program = b"".join(read_content(binary))
    machine = architecture(program)
    if machine is None or not is_executable(program):
        found = describe(program[:START_SIZE]) if machine is None else "is an object file"
        raise CorruptError(
            f"the busybox is not an ELF program: it {found}",
            "Check the file at busybox_url in [source].",
        )
    names = applets(program)
    if not names:
        raise CorruptError(
            "the busybox contains no applets",
            "Set busybox_url in [source] to the URL of a static busybox binary.",
        )
    tree.add(paths.BUSYBOX, File(mode=0o755, mtime_ns=tree.mtime_ns, content=binary))
    for name in names:
        if tree.get(b"/bin/" + name) is None:
            tree.add(b"/bin/" + name, Symlink(target=b"busybox", mtime_ns=tree.mtime_ns))
    return machine, len(names)
