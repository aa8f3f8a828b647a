"""Writes the files of a new project together, and none of them over a file that exists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType

from fledge.errors import ConfigError, HostError, reason, unreadable
from fledge.formats import FORMATS
from fledge.host.files import create, replacing_together
from fledge.operations.build import default_output
from fledge.project import recipes
from fledge.project.config import Config
from fledge.project.jsonschema import json_schema_text
from fledge.project.recipes import PATHS, Project, Service
from fledge.project.starter import SCHEMA_FILE
from fledge.sources.dockerfile import Dockerfile
from fledge.sources.ownfiles import DOCUMENT_SUFFIXES
from fledge.tree.names import printable
from fledge.tree.regular import read_regular

CONFIG = "fledge.toml"

MAX_IGNORE_SIZE = 1 << 20
"""Maximum bytes of a .gitignore."""


class Scaffold:
    """The files of a new project. Use it as a context: folders that it made and that stay empty
    are removed at the end.
    """

    def __init__(self, folder: Path, ci: Service | None) -> None:
        """``folder`` is made if it is missing. ``ci`` is the service to write a recipe for."""
        self.folder = folder
        self._ci = ci
        self._files: dict[Path, bytes] = {}
        self._replaced: dict[Path, bytes] = {}
        self._folders: list[Path] = []

    def __enter__(self) -> Scaffold:
        self._make_folder(self.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for made in reversed(self._folders):
            with suppress(OSError):  # it has files
                made.rmdir()

    def check(self, paths: Sequence[Path]) -> None:
        """Raise `ConfigError` if one of the paths exists, or the recipe for the CI service, or if
        a recipe cannot name the folder.
        """
        if self._ci and not str(self._place).isprintable():
            raise ConfigError(
                f"a recipe cannot name the folder {printable(str(self._place))}",
                "Rename it: it needs printable text in UTF-8.",
            )
        recipe = [self._recipe_path(self._ci)] if self._ci else []
        found = [path for path in (*paths, *recipe) if os.path.lexists(path)]
        if found:
            listed = " and ".join(map(str, found))
            verb = "exists" if len(found) == 1 else "exist"
            raise ConfigError(
                f"{listed} {verb}, and nothing is overwritten",
                "Move it away, or start in another folder: fledge init DIR WHAT. A fledge.toml of"
                " the original fledge is changed by: fledge init --from-original fledge.toml",
            )

    def add(self, path: Path, data: bytes) -> None:
        """Have a file written that must not exist."""
        self._files[path] = data

    def replace(self, path: Path, data: bytes) -> None:
        """Have a file of the folder replaced, or written if there is none."""
        self._replaced[path] = data

    def write(self, config: Config) -> tuple[Path, ...]:
        """Write the files for a config, and add what is missing to .gitignore. Returns their paths.

        A JSON Schema that exists stays: it belongs to another version of fledge. Raises
        `FledgeError`; then the files are as they were before.
        """
        schema = self.folder / SCHEMA_FILE
        if not os.path.lexists(schema):
            self.add(schema, json_schema_text().encode())
        if self._ci:
            text = recipes.recipe(self._ci, self._project(config))
            self.add(self._recipe_path(self._ci), text.encode())
        ignore = self.folder / ".gitignore"
        old = _read_if_there(ignore)
        if (new := ignoring(old, config)) != old:
            self.replace(ignore, new)
        written: list[Path] = []
        try:
            for path, data in self._files.items():
                self._make_folder(path.parent)
                create(path, data, 0o666)
                written.append(path)
            self._replace_all()
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        return (*written, *self._replaced)

    def _replace_all(self) -> None:
        if not self._replaced:
            return
        with replacing_together(*self._replaced) as files:
            for each, data in zip(files, self._replaced.values(), strict=True):
                with each.open() as file:
                    file.write(data)

    @property
    def _repository(self) -> Path:
        """The top of the git repository of the folder; the folder if it is in none."""
        folder = self.folder.absolute()
        tops = (each for each in (folder, *folder.parents) if (each / ".git").exists())
        top = next(tops, folder)
        return self.folder / os.path.relpath(top, folder)

    def _recipe_path(self, service: Service) -> Path:
        name = "fledge" if self._place == PurePosixPath(".") else f"fledge-{self._place.name}"
        return Path(os.path.normpath(self._repository / PATHS[service].format(name)))

    @property
    def _place(self) -> PurePosixPath:
        """The path of the folder from the top of its repository."""
        return PurePosixPath(os.path.relpath(self.folder, self._repository))

    def _project(self, config: Config) -> Project:
        artifact = default_output(config).name
        return Project(self._place, artifact, isinstance(config.image, Dockerfile))

    def _make_folder(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
        for each in reversed(missing):
            try:
                each.mkdir()
            except OSError as error:
                raise HostError(f"{each} could not be made: {reason(error)}") from error
            self._folders.append(each)


def ignoring(old: bytes, config: Config) -> bytes:
    """Return a .gitignore with lines for what builds write, and for private keys.

    The artifacts of all formats are among them, because a config changes. Lines of ``old`` stay.
    """
    formats = config.format, *(each() for each in FORMATS)
    artifacts = (f"*.{each.default_output(None).partition('.')[2]}" for each in formats)
    documents = (f"*{each}" for each in DOCUMENT_SUFFIXES)
    names = list(dict.fromkeys([*artifacts, *documents, "*.key", ".fledge-*/"]))
    present = {line.strip() for line in old.decode("utf-8", "replace").splitlines()}
    missing = [name for name in names if name not in present]
    if not missing:
        return old
    separator = b"\n" if old and not old.endswith(b"\n") else b""
    return old + separator + "".join(f"{name}\n" for name in missing).encode()


def _read_if_there(path: Path) -> bytes:
    try:
        found = read_regular(path, MAX_IGNORE_SIZE + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise unreadable(path, error) from error
    if len(found) > MAX_IGNORE_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_IGNORE_SIZE} bytes", "Check the file.")
    return found
