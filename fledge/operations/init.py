"""Starts a project: finds out what a plugin is made of, and writes the files that build it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import tomli

from fledge.errors import (
    ConfigError,
    CorruptError,
    FledgeError,
    MalformedError,
    unreadable_argument,
)
from fledge.host.files import PathLike
from fledge.oci import reference, runtime
from fledge.oci.manifest import host_platform
from fledge.oci.reference import DockerArchive, OciArchive, OciLayout, Reference
from fledge.oci.runtime import Runtime
from fledge.oci.transports import open_image
from fledge.operations.arguments import as_session
from fledge.operations.check import check
from fledge.operations.manifest import image_version, workload_keys
from fledge.operations.scaffold import CONFIG, Scaffold
from fledge.project import config as configs
from fledge.project import manifest as plugin
from fledge.project import starter
from fledge.project.config import is_dockerfile
from fledge.project.recipes import Service
from fledge.report import Reporter
from fledge.session import Session
from fledge.sources.busybox import DEFAULT_ARCHITECTURE
from fledge.sources.programs import START_SIZE, check_program, describe
from fledge.tree import elf, programs
from fledge.tree.content import Span
from fledge.tree.names import printable
from fledge.tree.regular import read_regular

MAX_FILES = 1000
"""Files of a folder that are looked at to find a program."""

PROGRAM_FOLDERS = ("", "bin", "build", "dist", "target/release", "target/*/release")
"""Where compilers put programs, from the folder of a project."""

RECIPES = ("Dockerfile", "Containerfile")
"""The usual names of a Dockerfile."""

SHELLS = tuple(map(os.fsdecode, programs.SHELLS))
"""The interpreters that busybox is in an initramfs."""

GUESSED_PORT = 8080

ASK = (
    "Name it: fledge init nginx:alpine, fledge init ./Dockerfile or fledge init path/of/a/program."
)


class Workload(msgspec.Struct, frozen=True):
    """What a plugin is made of."""

    description: str
    """What it is, for people."""
    settings: starter.Settings
    """What its fledge.toml sets."""


def init(
    what: str | None = None,
    folder: PathLike = ".",
    *,
    ci: Service | None = None,
    session: Session | None = None,
) -> tuple[Path, ...]:
    """Write a fledge.toml, its JSON Schema, .gitignore and, for ``ci``, a recipe for that service.

    ``what`` is the name of an image, or the path of a Dockerfile, a static program or a script for
    sh; relative paths start at the working directory. None: the one that is in ``folder``, which is
    made if it is missing. An image is looked up, to know its ports; if that fails, or the session
    is offline, its ports are left out. What is written has passed `check`.

    Returns the paths that were written. Raises `ConfigError` if one of them exists, before anything
    is written, or if there is nothing to make a plugin of; `CorruptError` if the program is damaged
    or not for Linux.
    """
    session, folder = as_session(session), Path(folder)
    with Scaffold(folder, ci) as scaffold:
        scaffold.check([folder / CONFIG])
        workload = _recognize(what or _find(folder), folder, session)
        text = starter.render(workload.settings)
        if not text.replace("\n", "").isprintable():
            raise ConfigError(f"{folder / CONFIG} cannot name {what} in UTF-8", "Rename it.")
        config = configs.load_data(tomli.loads(text), folder / CONFIG)
        check(config, session=msgspec.structs.replace(session, reporter=Reporter()))
        session.reporter.note(f"{printable(str(folder / CONFIG))}: {workload.description}")
        for key, guess in workload.settings.guesses.items():
            session.reporter.note(f"[manifest] {key}: {guess}")
        scaffold.add(folder / CONFIG, text.encode())
        return scaffold.write(config)


def _find(folder: Path) -> str:
    """Return the path of the one Dockerfile, image or program in a folder. Raises `ConfigError`."""
    for name in RECIPES:
        if (folder / name).is_file():
            return str(folder / name)
    names = _names(folder)
    found = [name for name in names if is_dockerfile(folder / name)]
    found = found or [name for name in names if (folder / name / "oci-layout").is_file()]
    found = [str(folder / name) for name in found] or list(_programs(folder))
    if not found:
        tag = f" An image called {folder.name} needs its tag: fledge init {folder.name}:latest"
        raise ConfigError(
            f"{folder} has no Dockerfile, no OCI layout and no static program to make a plugin of",
            ASK + (tag if folder.name else ""),
        )
    if len(found) > 1:
        listed = ", ".join(map(printable, found[:8]))
        raise ConfigError(f"{folder} has several: {listed}", "Name the one to make a plugin of.")
    return found[0]


def _names(folder: Path) -> list[str]:
    """Return the sorted names of what a folder has; at most `MAX_FILES`."""
    try:
        return sorted(os.listdir(folder))[:MAX_FILES]
    except OSError:
        return []


def _programs(folder: Path) -> Iterator[str]:
    """Yield the paths of the programs where compilers put them that an initramfs can run."""
    for pattern in PROGRAM_FOLDERS:
        for place in sorted(folder.glob(pattern)) if pattern else [folder]:
            for path in (place / name for name in _names(place)):
                try:
                    start = read_regular(path, START_SIZE)
                    is_program = start.startswith(elf.ELF_MAGIC) and os.access(path, os.X_OK)
                    if is_program and _why_not_static(path) is None:
                        yield str(path)
                except (OSError, FledgeError):
                    continue


def _recognize(what: str, folder: Path, session: Session) -> Workload:
    """Find out what a text names: a file, or else an image. Raises `ConfigError`."""
    path = Path(what)
    if not what.isprintable():
        raise ConfigError(f"{printable(what)} is not printable text in UTF-8", "Rename it.")
    if path.is_dir():
        if (path / "oci-layout").is_file():
            return _image(f"oci:{what}", folder, session)
        raise ConfigError(
            f"{what} is a folder, and neither an OCI layout nor a program",
            f"An image called {path.name} needs its tag: {path.name}:latest. The folder to start in"
            f" comes first: fledge init {what} IMAGE",
        )
    if path.suffix == ".toml":
        raise ConfigError(
            f"{what} is a configuration",
            f"If it is one of the original fledge: fledge init --from-original {what}",
        )
    if is_dockerfile(path) and path.exists():
        return _dockerfile(path, folder)
    if os.path.lexists(path):
        return _program(path, folder)
    if what.startswith(("./", "../", "/")) or is_dockerfile(path) or _is_below_a_folder(path):
        hint = "Check the path, or build the program first."
        raise ConfigError(
            f"{what}: no such file", f"{hint} For an image of that name: docker://NAME."
        )
    return _image(what, folder, session)


def _is_below_a_folder(path: Path) -> bool:
    """Return whether a path begins with a folder that exists, as no name of an image would."""
    return len(path.parts) > 1 and Path(path.parts[0]).is_dir()


def _dockerfile(path: Path, folder: Path) -> Workload:
    values = {"source": {"dockerfile": _from_folder(path, folder)}}
    name = path.resolve().parent.name
    settings = _settings("oci_rootfs", values, folder, _disk_manifest(name, None, ""))
    why = "[manifest] is switched off, because its ports are known when it is built"
    return Workload(f"a disk image of what {path} builds; {why}", settings)


def _image(what: str, folder: Path, session: Session) -> Workload:
    parsed = reference.parse(what, Path())
    text = what
    if isinstance(parsed, OciLayout | OciArchive | DockerArchive):
        text = str(reference.relative(parsed, folder))
    found = _look_up(parsed, session)
    manifest = _disk_manifest(reference.default_name(parsed), found, str(parsed))
    settings = _settings("oci_rootfs", {"source": {"image": text}}, folder, manifest)
    return Workload(f"a disk image of {what}", settings)


def _look_up(parsed: Reference, session: Session) -> Runtime | None:
    """Return how to run an image; None if it cannot be read now, which a note says."""
    try:
        with session.reporter.step("image") as step:
            image = open_image(parsed, host_platform(), session)
            step.detail = image.uri
        return runtime.parse(image.config)
    except (FledgeError, MalformedError) as error:
        why = error.message if isinstance(error, FledgeError) else str(error)
        session.reporter.note(f"{parsed} was not looked at, so [manifest] is switched off: {why}")
        return None


def _disk_manifest(name: str, found: Runtime | None, image: str) -> tuple[dict[str, object], bool]:
    """Return the settings of a manifest, and whether they and the image make it complete."""
    keys = workload_keys(found) if found else {}
    settings: dict[str, object] = {"name": _plugin_name(name)}
    if not (found and image_version(image, found)):
        settings["version"] = "0.1.0"
    settings["workload.base_url"] = keys.get("base_url", f"http://127.0.0.1:{GUESSED_PORT}")
    return settings, "base_url" in keys and "entrypoint" in keys


def _program(path: Path, folder: Path) -> Workload:
    """Make an initramfs of a program that needs no libraries. Raises `ConfigError`."""
    try:
        start = read_regular(path, START_SIZE)
    except OSError as error:
        raise unreadable_argument(path, error) from error
    if start.startswith(b"#!"):
        check_program(start, str(path), "")
        _check_script(path, start)
        kind = "a script"
    elif start.startswith(elf.ELF_MAGIC):
        check_program(start, str(path), "")
        _check_static(path, start)
        kind = "a static program"
    else:
        raise ConfigError(
            f"{path} is neither a program nor a Dockerfile: it {describe(start)}",
            f"If it is an image, write oci-archive:{path} or docker-archive:{path}; if it is a"
            f" Dockerfile, call it {path.name}.Dockerfile.",
        )
    place = f"/usr/bin/{path.name}"
    values = {"mappings": {_from_folder(path, folder): place}}
    manifest: dict[str, object] = {
        "name": _plugin_name(path.name),
        "version": "0.1.0",
        "workload.entrypoint": [place],
        "workload.base_url": f"http://127.0.0.1:{GUESSED_PORT}",
    }
    guess = f"that {path.name} listens at port {GUESSED_PORT} is a guess. Correct it."
    settings = _settings(
        "initramfs", values, folder, (manifest, True), {"workload.base_url": guess}
    )
    return Workload(f"an initramfs with {path}, {kind}", settings)


def _check_script(path: Path, start: bytes) -> None:
    """Raise `ConfigError` if busybox is not the interpreter of a script."""
    line = start.partition(b"\n")[0][2:].split()
    name = printable(line[0]) if line else ""
    if name not in (*SHELLS, "/bin/busybox"):
        raise ConfigError(
            f"{path} needs {name}, and an initramfs has only busybox",
            "Write a Dockerfile on an image that has it, and name that: fledge init ./Dockerfile",
        )


def _check_static(path: Path, start: bytes) -> None:
    """Raise `ConfigError` if a program needs what an initramfs has not."""
    machine = elf.architecture(start)
    if machine != DEFAULT_ARCHITECTURE:
        raise ConfigError(
            f"{path} is for {machine}, and the busybox that fledge knows is for"
            f" {DEFAULT_ARCHITECTURE}",
            f"Build it for {DEFAULT_ARCHITECTURE}; or copy it into an image with a Dockerfile, and"
            " name that: fledge init ./Dockerfile",
        )
    if why := _why_not_static(path):
        raise ConfigError(
            f"{path} {why}, and an initramfs has no libraries",
            "Link it statically (Go: CGO_ENABLED=0; Rust: --target x86_64-unknown-linux-musl; C:"
            " -static). Or write a Dockerfile that copies it into an image with its libraries, such"
            " as FROM debian:12-slim, and name that: fledge init ./Dockerfile",
        )


def _why_not_static(path: Path) -> str | None:
    """Say what a program needs to run; None: nothing. Raises `CorruptError` if it is damaged."""
    try:
        found = elf.read(Span(path, 0, path.stat().st_size))
    except MalformedError as error:
        raise CorruptError(f"{path} is damaged: {error}", "Build it again.") from error
    libraries = ", ".join(map(printable, found.libraries[: programs.MAX_NAMED]))
    if found.loader:
        return f"needs {printable(found.loader)}" + (f" and {libraries}" if libraries else "")
    return f"is a library, or needs {libraries}" if libraries else None


def _settings(
    strategy: str,
    tables: Mapping[str, Mapping[str, object]],
    folder: Path,
    manifest: tuple[dict[str, object], bool],
    guesses: Mapping[str, str] | None = None,
) -> starter.Settings:
    """Return settings, without those of a manifest if there is a manifest.toml."""
    if plugin.find(folder / CONFIG, None):
        return starter.Settings(strategy, tables, None, has_manifest=False)
    keys, is_complete = manifest
    return starter.Settings(strategy, tables, keys, is_complete, guesses or {})


def _plugin_name(name: str) -> str:
    """Return a name that a plugin may have, like ``name``."""
    plain = re.sub("[^A-Za-z0-9._-]+", "-", name).lstrip("._-")
    return plain or "plugin"


def _from_folder(path: Path, folder: Path) -> str:
    """Return the path of a file from a folder, whichever symlinks lead to the two."""
    return os.path.relpath(path.parent.resolve() / path.name, folder.resolve())
