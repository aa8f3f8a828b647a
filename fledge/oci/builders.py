"""Builds an image from a Dockerfile, by a builder that the user has.

The builders are programs, and their command lines are data here. Each one leaves the image in an
archive, from which its layers and its config come into the cache.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from fledge.errors import ConfigError, FledgeError, HostError, NetworkError, reason, unreadable
from fledge.host import programs
from fledge.host.settings import Settings
from fledge.host.signals import uninterrupted
from fledge.host.work import temporary_folder
from fledge.oci import archive, layers, recipe, working_containers
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.session import Session
from fledge.tree.regular import read_regular

BuilderName = Literal["auto", "buildctl", "buildx", "docker", "podman", "buildah"]

PASSED = re.compile(
    "HOME|USER|LOGNAME|TMPDIR|LANG|SSH_AUTH_SOCK|DBUS_SESSION_BUS_ADDRESS|REGISTRY_AUTH_FILE"
    "|SSL_CERT_(?:FILE|DIR)|SOURCE_DATE_EPOCH|(?i:(?:https?|ftp|no|all)_proxy)"
    "|(?:XDG|DOCKER|BUILDKIT|BUILDX|BUILDAH|_?CONTAINERS?|STORAGE)_.*"
    "|(?:AWS|AZURE|GOOGLE|CLOUDSDK)_.*"
)
"""The variables that a builder gets from the user's environment. Helpers for logins need the last
ones."""

ALWAYS = {"DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "DOCKER_CLI_HINTS": "0"}
"""The variables that fledge sets. Attestations would make an image of an index."""

BUILDX_FROM = 23
"""The first version of docker that needs its plugin buildx to build with BuildKit."""

MAX_SECRET_SIZE = 500 << 10
"""Maximum bytes of a secret, as in BuildKit."""

MIN_HIDDEN = 4
"""Minimum characters of a secret that is hidden in the output of a builder."""

QUOTED_LINES = 15
"""Maximum lines of a builder's output that an error quotes."""

RUNNING = re.compile(r"^Status:\s*running", re.MULTILINE)
DOCKER_DRIVER = re.compile(r"^Driver:\s*docker\s*$", re.MULTILINE)
"""What ``docker buildx inspect`` says of a builder."""

UNREACHABLE = re.compile(
    r"^(?:Error|ERROR|error|failed to solve)\b.*"
    r"(?:pinging container registry [^ ]+: Get |failed to do request: (?:Head|Get) )"
)
"""The last line of a builder that gets no answer from the registry of a base image: podman and
buildah, BuildKit."""

UNUSED_ARGUMENTS = re.compile(r"^(\[Warning\] one or more build args were not consumed: \[)(.+)\]$")
"""What podman and buildah say at the end."""
OF_PLATFORM = frozenset({"TARGETARCH", "TARGETOS", "TARGETPLATFORM", "TARGETVARIANT"})
"""The build arguments that they make of ``--platform``, and that no Dockerfile need use."""

MARK = "fledge.build"
"""The ID of a secret that no instruction mounts. podman and buildah record its path, which is that
of a private file, in the containers in which they build."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""A control code for colours (ECMA-48, SGR)."""


class Secret(msgspec.Struct, frozen=True):
    """A secret that RUN instructions may mount. It never becomes a part of the image.

    Its value is in a file or in a variable of the environment, and goes to the builder from there.
    """

    id: str
    file: Path | None = None
    env: str | None = None


class Request(msgspec.Struct, frozen=True):
    """What is to be built."""

    dockerfile: Path
    context: Path
    ignore: str
    """The ``.dockerignore`` that counts."""
    target: str | None
    """The stage to build; None: the last one."""
    build_args: tuple[tuple[str, str], ...]
    secrets: tuple[Secret, ...]
    platform: Platform
    name: str
    """Names the Dockerfile in messages."""


class Places(msgspec.Struct, frozen=True):
    """The files of one build, in a private folder."""

    folder: Path
    """The private folder, with a name that no other build has."""
    dockerfile: Path
    """A copy of the Dockerfile. BuildKit takes the ``.dockerignore`` that is named after it."""
    ignore: Path
    image_id: Path
    """Where the builder writes the ID of the image."""
    archive: Path
    """Where the archive of the image is to be."""

    @classmethod
    def below(cls, folder: Path) -> Places:
        """Return the places in a folder."""
        names = ("Dockerfile", "Dockerfile.dockerignore", "id", "image.tar")
        return cls(folder, *(folder / name for name in names))


class Unusable(Exception):
    """A builder cannot be used. The text says why."""


class NotInstalled(Unusable):
    """There is no such program."""


class Builder(msgspec.Struct, frozen=True):
    """One way to build an image."""

    name: str
    program: str
    version: tuple[str, ...]
    """The arguments by which the program prints its version. They fail if it is not installed."""
    alive: tuple[str, ...]
    """The arguments of a command that fails if the daemon does not answer."""
    build: Callable[[Request, Places, str], list[str]]
    """Returns the arguments that build the image. The text is what ``alive`` printed."""
    export: Callable[[str, Places], list[str]]
    """Returns the arguments that write the image with an ID to the archive, unless building it did
    so."""
    storage: tuple[str, ...] = ()
    """The arguments that print the folder of the program's storage, if a build that is stopped
    leaves containers there."""
    remove: tuple[str, ...] = ()
    """The arguments that remove containers, before their IDs."""


class Ready(msgspec.Struct, frozen=True):
    """A builder that can be used."""

    builder: Builder
    version: str
    answer: str
    """What its command ``alive`` printed."""

    def __str__(self) -> str:
        return f"{self.builder.name} {self.version}".strip()


class Built(msgspec.Struct, frozen=True):
    """The image that a builder has made. Its layers and its config are in the cache."""

    image: Image
    builder: str
    """The name and the version of the builder."""


def build(request: Request, wanted: BuilderName, session: Session) -> Built:
    """Build an image, and put its layers and its config into the cache.

    What the builder prints goes to the reporter of ``session``. An interrupt stops the builder, and
    removes its containers.
    Raises `HostError` if there is no builder, `FledgeError` that quotes the builder if it fails,
    `NetworkError` if it cannot reach a registry, `CorruptError` if its image is damaged.
    """
    settings = session.settings
    environment = environment_of(request.secrets, settings)
    ready = choose(wanted, environment, session)
    session.reporter.detail(f"building {request.name} by {ready}")
    try:
        with temporary_folder() as (folder, _):
            places = Places.below(folder)
            shutil.copyfile(request.dockerfile, places.dockerfile)
            places.ignore.write_text(request.ignore, "utf-8", "surrogateescape")
            arguments = ready.builder.build(request, places, ready.answer)
            try:
                _run(ready, arguments, request, environment, settings, session.reporter.output)
            except BaseException:
                with uninterrupted():
                    _remove_containers(ready.builder, places, environment, settings)
                raise
            if not places.archive.exists():
                arguments = ready.builder.export(places.image_id.read_text().strip(), places)
                _run(ready, arguments, request, environment, settings, session.reporter.detail)
            image = archive.open_built(places.archive, request.name, request.platform)
            for _ in layers.prepare(image, session):
                pass
            session.cache.store(image.config)
    except OSError as error:
        raise FledgeError(
            f"{ready} did not build {request.name}: {error.filename}: {reason(error)}",
            "Check the space in the folder for temporary files, or set TMPDIR to another.",
        ) from error
    return Built(image, str(ready))


def environment_of(secrets: Sequence[Secret], settings: Settings) -> dict[str, str]:
    """Return the environment of a builder: nothing of the user's but what it needs.

    Raises `ConfigError` if it lacks the variable of a secret.
    """
    names = {secret.env for secret in secrets if secret.env}
    for secret in secrets:
        if secret.env and secret.env not in settings.environment:
            raise ConfigError(
                f"the variable {secret.env}, which has the secret {secret.id}, is not set",
                "Set it, or name another in [source] secrets.",
            )
    passed = {
        name: value
        for name, value in settings.environment.items()
        if name in names or PASSED.fullmatch(name)
    }
    return {**passed, **ALWAYS, "PATH": programs.search_path(settings)}


def choose(wanted: BuilderName, environment: Mapping[str, str], session: Session) -> Ready:
    """Return the builder of that name; for ``auto``, the first of `BUILDERS` that can be used.

    Raises `HostError` if there is none.
    """
    problems = []
    for builder in BUILDERS:
        if wanted not in ("auto", builder.name):
            continue
        try:
            return _probe(builder, environment, session.settings)
        except NotInstalled as error:
            problems.append(f"{builder.name}: {error}")
        except Unusable as error:
            problems.append(f"{builder.name}: {error}")
            if wanted == "auto":
                session.reporter.note(f"{builder.name} is not used: {error}")
    hint = (
        "Install one: apt install podman, or buildah, or docker.io; or docker with its plugin"
        " buildx (docs.docker.com/engine/install)."
    )
    if wanted != "auto":
        raise HostError(f"the builder {problems[0]}", f"{hint} Or leave out builder in [source].")
    raise HostError("no builder for the Dockerfile can be used:", hint, problems)


def survey(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each installed builder, its version, and why it cannot be used; empty: it
    can. Starts none.
    """
    for builder in BUILDERS:
        alive = tuple(each for each in builder.alive if each != "--bootstrap")
        try:
            asked = msgspec.structs.replace(builder, alive=alive)
            ready = _probe(asked, environment_of((), settings), settings)
        except NotInstalled:
            continue
        except Unusable as error:
            yield builder.name, "", str(error)
        else:
            yield builder.name, ready.version, ""


def _probe(builder: Builder, environment: Mapping[str, str], settings: Settings) -> Ready:
    """Ask a builder whether it works. Raises `Unusable`."""

    def ask(arguments: tuple[str, ...]) -> tuple[int, str]:
        return programs.ask(builder.program, *arguments, settings=settings, environment=environment)

    try:
        status, said = ask(builder.version)
    except HostError as error:
        raise NotInstalled(error.message) from error
    if status:
        raise NotInstalled(f"{builder.program} {' '.join(builder.version)} fails")
    found = re.search(r"[0-9]+\.[0-9]+[^\s,]*", said)
    version = found[0] if found else ""
    if builder.name == "docker" and int(version.partition(".")[0] or 0) >= BUILDX_FROM:
        status, _ = ask(("buildx", "version"))
        if status:
            raise Unusable(f"docker {version} needs its plugin buildx, which is not installed")
    status, said = ask(builder.alive)
    is_down = builder.name == "buildx" and not RUNNING.search(said)  # it says so, but succeeds
    if status or is_down:
        lines = said.splitlines() or [f"exit status {status}"]
        raise Unusable(f"it does not answer: {lines[-1].strip()[: programs.MAX_QUOTED]}")
    return Ready(builder, version, said)


def _hidden(secrets: Sequence[Secret], environment: Mapping[str, str]) -> list[str]:
    """Return the lines of all secrets as `_run` hears them, the longest first.

    Raises `FledgeError`.
    """
    texts = []
    for secret in secrets:
        try:
            raw = read_regular(secret.file, MAX_SECRET_SIZE) if secret.file else b""
        except OSError as error:
            raise unreadable(secret.file or Path(), error) from error
        texts.append(_plain(raw or os.fsencode(environment.get(secret.env or "", ""))))
    lines = {line.strip() for text in texts for line in re.split(r"[\r\n]", text)}
    return sorted((line for line in lines if len(line) >= MIN_HIDDEN), key=len, reverse=True)


def _plain(raw: bytes) -> str:
    """Return the text of a secret as the output of a program would show it, without colours."""
    return COLOUR.sub("", programs.as_text(raw))


def _run(
    ready: Ready,
    arguments: Sequence[str],
    request: Request,
    environment: Mapping[str, str],
    settings: Settings,
    show: Callable[[str], None],
) -> None:
    """Run a command of a builder. Raises `FledgeError` with its last lines if it fails."""
    said: deque[str] = deque(maxlen=QUOTED_LINES)
    hidden = _hidden(request.secrets, environment)

    def hear(line: str) -> None:
        line = UNUSED_ARGUMENTS.sub(_without_platform, COLOUR.sub("", line))
        for secret in hidden:  # which a RUN instruction may print
            line = line.replace(secret, "***")
        if line.strip():
            show(line)
            said.append(line)

    status = programs.follow(
        ready.builder.program,
        *arguments,
        settings=settings,
        environment=environment,
        show=hear,
    )
    if status and said and UNREACHABLE.match(said[-1]):
        raise NetworkError(
            f"{ready} could not reach the registry of an image that {request.name} starts from",
            "Its last lines are above. Check the name of the image and the network.",
            said,
        )
    if status:
        failing = recipe.failing_instruction(said, request.dockerfile.read_text("utf-8", "replace"))
        where = request.name
        if failing:
            where += f":{failing.line}: {failing.text}" if failing.line else f": {failing.text}"
        raise FledgeError(
            f"{ready} failed at {where}" if failing else f"{ready} did not build {where}",
            "Its last lines are above. Mend the Dockerfile, or what it runs.",
            said,
        )


def _without_platform(warning: re.Match[str]) -> str:
    """Return a warning about build arguments without `OF_PLATFORM`; empty if no other is left."""
    names = [each for each in warning[2].split() if each not in OF_PLATFORM]
    return f"{warning[1]}{' '.join(names)}]" if names else ""


def _remove_containers(
    builder: Builder, places: Places, environment: Mapping[str, str], settings: Settings
) -> None:
    """Remove the containers that a stopped build has left; they are of no use, but large."""
    if not builder.storage:
        return

    def ask(*arguments: str) -> tuple[int, str]:
        return programs.ask(builder.program, *arguments, settings=settings, environment=environment)

    status, said = ask(*builder.storage)
    storage = Path(said.rpartition("\n")[2])  # below any warnings
    if status == 0 and (found := working_containers.marked(storage, places.folder.name)):
        ask(*builder.remove, *found)


def _arguments(request: Request, places: Places) -> list[str]:
    """Return the arguments that all programs but buildctl share."""
    return [
        *("--file", str(places.dockerfile), "--iidfile", str(places.image_id)),
        *("--platform", str(request.platform)),
        *(("--target", request.target) if request.target else ()),
        *(each for key, value in request.build_args for each in ("--build-arg", f"{key}={value}")),
        *(each for secret in request.secrets for each in ("--secret", _secret(secret))),
        str(request.context),
    ]


def _secret(secret: Secret) -> str:
    """Return where the builder finds a secret. The value itself is on no command line."""
    return f"id={secret.id},{f'src={secret.file}' if secret.file else f'env={secret.env}'}"


def _buildctl(request: Request, places: Places, answer: str) -> list[str]:
    options = {
        "filename": places.dockerfile.name,
        "platform": str(request.platform),
        **({"target": request.target} if request.target else {}),
        **{f"build-arg:{key}": value for key, value in request.build_args},
    }
    return [
        *("build", "--progress", "plain", "--frontend", "dockerfile.v0"),
        *("--local", f"context={request.context}"),
        *("--local", f"dockerfile={places.dockerfile.parent}"),
        *(each for key, value in options.items() for each in ("--opt", f"{key}={value}")),
        *(each for secret in request.secrets for each in ("--secret", _secret(secret))),
        *("--output", f"type=oci,dest={places.archive}"),
    ]


def _buildx(request: Request, places: Places, answer: str) -> list[str]:
    # Only the builder that is part of dockerd cannot write an archive.
    in_docker = DOCKER_DRIVER.search(answer)
    output = ("--load",) if in_docker else ("--output", f"type=oci,dest={places.archive}")
    return ["buildx", "build", "--progress", "plain", *output, *_arguments(request, places)]


def _docker(request: Request, places: Places, answer: str) -> list[str]:
    return ["build", *_arguments(request, places)]


def _podman(request: Request, places: Places, answer: str) -> list[str]:
    mark = f"id={MARK},src={places.ignore}"
    return [
        *("build", "--layers", "--ignorefile", str(places.ignore), "--secret", mark),
        *_arguments(request, places),
    ]


def _docker_save(image_id: str, places: Places) -> list[str]:
    return ["save", "--output", str(places.archive), image_id]


def _podman_save(image_id: str, places: Places) -> list[str]:
    return ["save", "--format", "oci-archive", "--output", str(places.archive), image_id]


def _buildah_push(image_id: str, places: Places) -> list[str]:
    return ["push", image_id, f"oci-archive:{places.archive}"]


BUILDERS = (
    Builder("buildctl", "buildctl", ("--version",), ("debug", "workers"), _buildctl, _docker_save),
    Builder(
        *("buildx", "docker", ("buildx", "version"), ("buildx", "inspect", "--bootstrap")),
        *(_buildx, _docker_save),
    ),
    Builder("docker", "docker", ("--version",), ("version",), _docker, _docker_save),
    Builder(
        *("podman", "podman", ("--version",), ("version",), _podman, _podman_save),
        *(("info", "--format", "{{.Store.GraphRoot}}"), ("rm", "--force")),
    ),
    Builder(
        *("buildah", "buildah", ("--version",), ("version",), _podman, _buildah_push),
        *(("info", "--format", "{{.store.GraphRoot}}"), ("rm",)),
    ),
)
"""In the order in which they are tried. buildctl always writes the archive itself."""
