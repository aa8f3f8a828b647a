"""The configuration in ``fledge.toml``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.formats import Format
from fledge.host.settings import Settings as Environment
from fledge.oci.reference import RECIPE
from fledge.project import manifest as plugin
from fledge.project import overrides, parser, rules, toml, variables
from fledge.project.build_cache import BuildCache
from fledge.project.manifest import Settings, WrongKeys
from fledge.project.rules import T, first_of_type
from fledge.project.sboms.table import Sbom
from fledge.project.schema import check_fields, schema
from fledge.project.sealing import Verity
from fledge.project.target import Target
from fledge.project.toml import Document, Table
from fledge.sources.kinds import IMAGES, SOURCES
from fledge.sources.source import Presence, Source
from fledge.tree.kernel import DM_VERITY, Requirement


class Config(msgspec.Struct, frozen=True):
    """A valid fledge.toml: the format of the artifact, and its sources.

    The constructor raises `ValueError` if a field of the format or a source has a value that
    fledge.toml could not set, if the strategy does not accept a source or lacks a required one, if
    two sources are of one kind, if they are not in the order of `SOURCES`, or if a filesystem is to
    be sealed that can be written.
    """

    path: Path
    """The path of the file. Paths in it are relative to its folder."""
    format: Format
    """The format of the artifact, with its options."""
    sources: tuple[Source, ...]
    """In the order of `SOURCES`, in which a build lays them over the tree."""
    target: Target = Target()
    """Where the artifact is to run."""
    cache: BuildCache = BuildCache()
    """Where builds are shared."""
    verity: Verity | None = None
    """How the disk is sealed. None: it is not."""
    sbom: Sbom | None = None
    """The software bills of materials to write. None: none."""
    data: dict[str, Any] = msgspec.field(default_factory=dict)
    """The parsed TOML, with the settings of manifest.toml as a table ``manifest``; empty if the
    config was not read from a file."""
    manifest: Settings | None = None
    """What the project says about the plugin manifest. None: a build writes no manifest."""

    def __post_init__(self) -> None:
        positions = []
        check_fields(self.format)
        for source in self.sources:
            check_fields(source)
            kind = next((each for each in SOURCES if isinstance(source, each.variants)), None)
            if kind is None or self.strategy not in kind.presence:
                raise ValueError(f"{self.strategy} does not accept {type(source).__name__}")
            positions.append(SOURCES.index(kind))
        if positions != sorted(set(positions)):
            raise ValueError("the sources are not in order, one of each kind")
        for position, kind in enumerate(SOURCES):
            required = kind.presence.get(self.strategy) is Presence.REQUIRED
            if required and position not in positions:
                raise ValueError(f"{self.strategy} needs {kind.variants[0].__name__}")
        if self.verity and not self.format.read_only:
            raise ValueError(rules.why_not_sealed(self.format))

    @property
    def requirements(self) -> Sequence[Requirement]:
        """What a kernel must be able to do to boot the artifact."""
        return (*self.format.requirements(), *(DM_VERITY if self.verity else ()))

    @property
    def strategy(self) -> str:
        """The ``strategy`` in fledge.toml."""
        return self.format.strategy

    def source(self, kind: type[T]) -> T | None:
        """Return the source of that class; None if the config has none."""
        return first_of_type(kind, self.sources)

    @property
    def image(self) -> Source | None:
        """The source that is an image; None if the config has none."""
        return next((each for each in self.sources if isinstance(each, IMAGES.variants)), None)


def is_dockerfile(path: Path) -> bool:
    """Return whether a path is by its name that of a Dockerfile, which may stand for a config."""
    name = path.name.replace("dockerfile", "Dockerfile")
    return path.suffix != ".toml" and RECIPE.search(name) is not None


def load(path: Path, manifest: Path | None = None, changes: Sequence[str] = ()) -> Config:
    """Read and validate a fledge.toml and the files that it names.

    A Dockerfile stands for a fledge.toml that names it and says nothing else. ``manifest`` is a
    file with the settings of the plugin manifest; by default manifest.toml in the same folder, if
    there is one. ``changes`` are keys to set, as in `overrides.apply`. Variables are those of this
    process. Raises `InvalidConfig` with all problems of a file, or `ConfigError` if one cannot be
    read.
    """
    return from_document(read_document(path, manifest, changes))


def read_document(
    path: Path, manifest: Path | None = None, changes: Sequence[str] = ()
) -> Document:
    """Read the TOML of a config, changed and with its variables replaced, as for `load`."""
    if is_dockerfile(path):
        document = Document(path, _of_dockerfile(path))
    else:
        hint = "Run fledge in a folder with a fledge.toml, or name one with -c FILE."
        if (recipe := path.parent / "Dockerfile").is_file():
            hint += f" Or build from the Dockerfile alone: fledge build {_as_argument(recipe)}"
        document = toml.read(path, hint)
    _add_manifest(document, manifest)
    declared = schema()
    overrides.apply(document, changes, declared)
    variables.expand(document, declared, Environment.from_environment())
    return document


def load_data(data: dict[str, Any], path: Path) -> Config:
    """Do as `load` with a fledge.toml that is not written yet. Messages have no line numbers."""
    document = Document(path, data)
    _add_manifest(document, None)
    return from_document(document)


def _add_manifest(document: Document, manifest: Path | None) -> None:
    """Add the settings in a file to a document, as its table ``manifest``."""
    file = plugin.find(document.path, manifest)
    if file is None:
        return
    if plugin.TABLE in document.top.data:
        document.report((plugin.TABLE,), f"[manifest] excludes {file}; keep one of the two")
        raise document.error()
    beside = toml.read(file, "Name another file with -m FILE.")
    _read_manifest(beside.top)
    beside.finish()
    document.top.data[plugin.TABLE] = beside.top.data
    document.included[plugin.TABLE] = beside


def _as_argument(path: Path) -> str:
    """Return a path for a command line, which begins with ./ if it is in the working directory."""
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")


def _of_dockerfile(path: Path) -> dict[str, Any]:
    """Return the smallest fledge.toml that builds an artifact from a Dockerfile beside it."""
    return {"version": "1", "strategy": "oci_rootfs", "source": {"dockerfile": path.name}}


def parse(data: dict[str, Any], path: Path) -> Config:
    """Validate parsed TOML as if it were the fledge.toml at ``path``.

    Raises `InvalidConfig` with all problems, but without line numbers.
    """
    return from_document(Document(path, data))


def from_document(document: Document) -> Config:
    """Validate a document. Raises `InvalidConfig` with all problems."""
    parsed = parser.parse(document, schema())
    sources = rules.apply(parsed)
    manifest = None
    if plugin.TABLE in document.top.data:
        manifest = _read_manifest(document.top.table(plugin.TABLE))
    if "verity" in parsed.settings and parsed.format and not parsed.format.read_only:
        document.report(("verity",), rules.why_not_sealed(parsed.format))
    if document.has_problems or parsed.format is None:
        raise document.error()
    target = first_of_type(Target, parsed.settings.values()) or Target()
    cache = first_of_type(BuildCache, parsed.settings.values()) or BuildCache()
    verity = first_of_type(Verity, parsed.settings.values())
    sbom = first_of_type(Sbom, parsed.settings.values())
    data = document.top.data
    return Config(
        document.path, parsed.format, sources, target, cache, verity, sbom, data, manifest
    )


def _read_manifest(table: Table) -> Settings | None:
    """Read the settings of the manifest from a table. Reports problems and returns None."""
    try:
        return plugin.settings(table.data)
    except WrongKeys as error:
        header = f"[{table.name}] " if table.keys else ""
        for each in error.found:
            table.document.report((*table.keys, *each.keys), f"{header}{each}")
        return None
