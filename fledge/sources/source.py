"""Defines the interface of a source, and the tree under construction that sources change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from fledge.errors import OfflineError
from fledge.oci.manifest import Platform
from fledge.session import Session
from fledge.sources.inputs import Input
from fledge.store.cache import BackgroundVerifier
from fledge.tree import NANOSECONDS, Tree
from fledge.tree.digest import Digest

Checksum = Annotated[
    Digest | None,
    Meta(
        description="The sha256 of the file. Without it, the file is not checked.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    ),
]
"""A key of fledge.toml: 64 hexadecimal digits, with or without the prefix ``sha256:``."""

Url = Annotated[
    str,
    Meta(
        description="The URL of the file.",
        examples=["https://example.org/file"],
        extra={"kind": "url"},
    ),
]
"""A key of fledge.toml: an http, https or file URL."""

InputFile = Annotated[
    Path,
    Meta(
        description="A file of the project.",
        examples=["path/of/the/file"],
        extra={"kind": "file"},
    ),
]
"""A key of fledge.toml: a readable file, relative to the folder of fledge.toml."""


class Assembly:
    """A tree under construction, and what its sources need and report."""

    def __init__(  # noqa: PLR0913 -- each is a fact about one build
        self,
        session: Session,
        platform: Platform,
        folder: Path,
        epoch: int = 0,
        verification: BackgroundVerifier | None = None,
        *,
        is_platform_given: bool = False,
        trusts_pins: bool = True,
        may_build: bool = True,
    ) -> None:
        """``epoch`` is the time of everything that fledge adds, in seconds since 1970."""
        self.session = session
        self.platform = platform
        self.folder = folder
        """The folder of fledge.toml."""
        self.epoch = epoch
        self.is_platform_given = is_platform_given
        """The user asked for ``platform``. Otherwise a source may choose another."""
        self.trusts_pins = trusts_pins
        """The pins come from the project's own lock, and not with an artifact. Pins that are not
        trusted name no files and no hosts, and everything they say is checked."""
        self.may_build = may_build
        """Whether a source may run what the project says to make an input, such as a Dockerfile."""
        self.verification = verification
        """Verifies cached layers in the background while they are in use. None: a layer is
        verified before it is used."""
        self.architecture = platform.architecture
        """The architecture of programs in the artifact (OCI name). That of the platform, unless a
        source sets another. Empty: not known, in a check."""
        self.tree = Tree(mtime_ns=epoch * NANOSECONDS)
        self.inputs: list[Input] = []
        """The inputs that were laid over the tree so far, in that order."""
        self.has_image = False
        """Whether the tree is based on an image, of ``platform``."""

    def empty_copy(self, verification: BackgroundVerifier | None) -> Assembly:
        """Make an assembly for the same artifact with an empty tree."""
        return Assembly(
            self.session,
            self.platform,
            self.folder,
            self.epoch,
            verification,
            is_platform_given=self.is_platform_given,
            trusts_pins=self.trusts_pins,
            may_build=self.may_build,
        )

    def relative(self, path: Path) -> str:
        """Return ``path`` relative to the folder of fledge.toml, if it is below that folder."""
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)


class Presence(Enum):
    """When a config with a certain strategy has a source of some kind."""

    ALWAYS = "every key has a default"
    IF_GIVEN = "if one of its keys is given"
    IF_TABLE = "if its table is there"
    REQUIRED = "its keys must be given"


class KeyedBy(Enum):
    """How the pins of a source differ. The value is the name of their table in the lock."""

    PLATFORM = "platforms"
    ARCHITECTURE = "architectures"


class LockSection(msgspec.Struct, frozen=True):
    """The layout of a source's table in ``fledge.lock``, which has the name of its role."""

    pin: type[msgspec.Struct]
    """The type of one pin. A digest in a field named ``sha256`` is written as bare digits, any
    other as ``sha256:HEX``."""
    name_key: str = "name"
    """The key whose value is the pinned name, as returned by `Source.pinned_name`."""
    name_type: Any = str
    """The type of that value, annotated like a field of a source."""
    keyed_by: KeyedBy | None = None
    """None: the source has one pin, whose fields are beside the name."""

    def key(self, assembly: Assembly) -> str:
        """Return the key of the pin that an artifact needs."""
        if self.keyed_by is None:
            return ""
        by_platform = self.keyed_by is KeyedBy.PLATFORM
        return str(assembly.platform) if by_platform else assembly.architecture


class Need(msgspec.Struct, frozen=True):
    """What a build has to fetch or make for a source, because the cache lacks it."""

    role: str
    """The role of the source."""
    uri: str
    """The URL or reference that it comes from, or the path of what makes it."""
    size: int | None = None
    """Bytes to download; None: only downloading tells."""
    note: str = ""
    """What it is, if the URI does not say so: ``2 of 5 layers``."""


class Source(msgspec.Struct, frozen=True):
    """A source of files for the tree, as fledge.toml describes it.

    A subclass is a frozen struct. Its fields are the keys of its table: the annotations declare
    type, default and description, and the parser, the reference and the JSON Schema are derived
    from them. To add a source, write such a class and put its `Kind` into `SOURCES`.
    """

    role: ClassVar[str]
    """The name of the source in progress reports, the lock and provenance."""
    section: ClassVar[LockSection | None] = None
    """How the lock pins the source. None: it has no pin, because it is part of the project."""
    missing: ClassVar[str] = "must be fetched"
    """What a build has to do if the source is neither on this machine nor in the cache."""

    def artifact_name(self) -> str | None:
        """Return a name for the artifact, without suffix. None: the source suggests none."""
        return None

    def local_files(self) -> Sequence[Path]:
        """Return the files and folders of the project that the source reads. A build may not
        overwrite them.
        """
        return ()

    def programs(self) -> Sequence[bytes]:
        """Return the paths of the programs that the source adds and that Linux should run."""
        return ()

    def pinned_name(self, folder: Path) -> str | None:
        """Return the name that the lock pins, such as an image reference. None: there is no pin.

        Paths in the name are relative to ``folder``, the folder of fledge.toml.
        """
        return None

    def conflict(self, pin: Any, assembly: Assembly) -> str | None:
        """Describe how a pin contradicts the project, in words that follow "the lock pins". None if
        it does not.

        Raises `FledgeError` if a file of the project cannot be read.
        """
        return None

    def loss(self, pin: Any, session: Session) -> str | None:
        """Say why what is pinned cannot be had, in words that follow "the lock pins". None if it
        can, or if only fetching it will tell.
        """
        return None

    def resolve(self, assembly: Assembly, old: Any | None) -> tuple[Any, str]:
        """Look up what the pinned name refers to now; return the pin and a line for the step.

        ``old`` is the pin in the current lock, if any. Raises `FledgeError` if the lookup fails.
        """
        raise NotImplementedError

    def recorded_pin(self, record: Input, platform: str) -> tuple[str, Any]:
        """Return the key and the pin of an input that provenance recorded.

        Raises `MalformedError` or `msgspec.ValidationError` if the record is malformed.
        """
        raise NotImplementedError

    def needs(self, assembly: Assembly, pin: Any | None) -> Sequence[Need]:
        """Say what `lay` would have to fetch. Reads manifests and listings, but no contents.

        Raises `FledgeError` if those cannot be read.
        """
        return ()

    def lay(self, assembly: Assembly, pin: Any | None) -> str:
        """Fetch the source, exactly as pinned if ``pin`` is not None, and lay it over the tree.

        Appends what it used to ``assembly.inputs``, and returns a summary for the progress
        report. Raises `FledgeError` if the source cannot be fetched or is invalid, `TreeError`
        if a path cannot be added to the tree.
        """
        raise NotImplementedError

    def check(self, assembly: Assembly, pin: Any | None) -> str | None:
        """Do as `lay` does, without the network, to find what is wrong with files of this machine.

        ``assembly`` is of an offline session. Returns the summary; None if the source is left out,
        because it is neither on this machine nor in the cache. Raises the errors of `lay`.
        """
        try:
            return self.lay(assembly, pin)
        except OfflineError:
            return None


class Kind(msgspec.Struct, frozen=True):
    """One kind of source, and its place in fledge.toml."""

    table: str
    """The table of its keys. Several kinds may share a table."""
    variants: tuple[type[Source], ...]
    """The classes to choose from; the first is the default. If there are several, either the key
    named by their ``tag_field`` chooses, whose value is the tag of a class; or, if they have no
    tags, the first required key of each does, of which only one may be given."""
    presence: Mapping[str, Presence]
    """By strategy. A strategy that is missing does not accept this kind."""
    description: str = ""
    """The description in the reference. If empty, the docstring of the first variant."""
