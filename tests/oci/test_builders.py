"""The command lines of builders, which of them is taken, and what they are told."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from fledge.errors import ConfigError, FledgeError, HostError
from fledge.host.settings import Settings
from fledge.oci import builders, recipe
from fledge.oci.builders import BUILDERS, BuilderName, Places, Request, Secret
from fledge.oci.manifest import Platform
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support import project

PLACES = Places.below(Path("/w"))
REQUEST = Request(
    dockerfile=Path("/p/app.Dockerfile"),
    context=Path("/p"),
    ignore="",
    target="release",
    build_args=(("A", "1, 2"), ("B", "x=y")),
    secrets=(Secret("key", file=Path("/k/key")), Secret("token", env="TOKEN")),
    platform=Platform("linux", "arm64"),
    name="app.Dockerfile",
)

SHARED = (
    "--file /w/Dockerfile --iidfile /w/id --platform linux/arm64 --target release"
    " --build-arg 'A=1, 2' --build-arg B=x=y --secret id=key,src=/k/key"
    " --secret id=token,env=TOKEN /p"
)

MARK = "--secret id=fledge.build,src=/w/Dockerfile.dockerignore"

COMMANDS = {
    # github.com/moby/buildkit, docs/reference/buildctl.md
    "buildctl": (
        "build --progress plain --frontend dockerfile.v0 --local context=/p --local dockerfile=/w"
        " --opt filename=Dockerfile --opt platform=linux/arm64 --opt target=release"
        " --opt 'build-arg:A=1, 2' --opt build-arg:B=x=y --secret id=key,src=/k/key"
        " --secret id=token,env=TOKEN --output type=oci,dest=/w/image.tar"
    ),
    # github.com/docker/buildx, docs/reference/buildx_build.md
    "buildx": f"buildx build --progress plain --output type=oci,dest=/w/image.tar {SHARED}",
    "docker": f"build {SHARED}",
    "podman": f"build --layers --ignorefile /w/Dockerfile.dockerignore {MARK} {SHARED}",
    "buildah": f"build --layers --ignorefile /w/Dockerfile.dockerignore {MARK} {SHARED}",
}

INSPECTED = """\
Name:          default
Driver:        docker
Last Activity: 2024-01-01 00:00:00 +0000 UTC

Nodes:
Name:             default
Endpoint:         default
Status:           running
BuildKit version: v0.12.5
"""
"""What ``docker buildx inspect`` prints."""


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda each: str(each.name))
def test_command_lines(builder: builders.Builder) -> None:
    assert builder.build(REQUEST, PLACES, "") == shlex.split(COMMANDS[builder.name])


def test_a_builder_in_docker_has_the_image_there() -> None:
    [buildx] = [each for each in BUILDERS if each.name == "buildx"]
    assert buildx.build(REQUEST, PLACES, INSPECTED)[:5] == [
        *("buildx", "build", "--progress", "plain", "--load")
    ]
    assert buildx.export("sha256:1", PLACES) == ["save", "--output", "/w/image.tar", "sha256:1"]


def test_what_is_not_asked_for_is_on_no_command_line() -> None:
    plain = Request(Path("D"), Path("/p"), "", None, (), (), Platform("linux", "amd64"), "D")
    for builder in BUILDERS:
        line = " ".join(builder.build(plain, PLACES, ""))
        assert "target" not in line
        assert "build-arg" not in line
        assert "secret" not in line.replace("--secret id=fledge.build,", "")


class Heard(Reporter):
    """Keeps the notes and the lines of programs."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def output(self, line: str) -> None:
        self.lines.append(line)


def machine(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: Mapping[str, str],
    variable: str = "s3cret!",
) -> tuple[Session, Heard]:
    """A machine with these shell scripts as its only programs."""
    monkeypatch.setattr("fledge.host.programs.SYSTEM_FOLDERS", "/nothing")
    for name, script in programs.items():
        project.write(folder / "bin", name, f"#!/bin/sh\n{script}\n".encode(), executable=True)
    heard = Heard()
    variables = {"PATH": str(folder / "bin"), "TOKEN": variable, "OTHER": "x", "HOME": "/h"}
    return Session(Settings(variables), Cache(folder / "cache"), heard), heard


DOWN = (
    'case "$*" in --version) echo "Docker version 20.10.24, build 1";; *) echo down; exit 1;; esac'
)
NEW = 'case "$*" in --version) echo "Docker version 28.2.2, build 1";; *) exit 1;; esac'
BUILDX = f"""case "$*" in
    "buildx version") echo "github.com/docker/buildx v0.12.1 1234";;
    "buildx inspect --bootstrap") echo '{INSPECTED}';;
    *) exit 1;;
esac"""
PODMAN = "echo podman version 4.3.1"
BUILDCTL = 'echo "buildctl github.com/moby/buildkit v0.12.5 abc"'


@pytest.mark.parametrize(
    ("programs", "wanted", "chosen", "note"),
    [
        ({"buildctl": BUILDCTL, "podman": PODMAN}, "auto", "buildctl 0.12.5", ""),
        ({"docker": BUILDX, "podman": PODMAN}, "auto", "buildx 0.12.1", ""),
        ({"docker": BUILDX, "podman": PODMAN}, "podman", "podman 4.3.1", ""),
        (
            {"docker": BUILDX.replace("running", "inactive"), "podman": PODMAN},
            "auto",
            "podman 4.3.1",
            "buildx is not used: it does not answer: BuildKit version: v0.12.5",
        ),
        (
            {"docker": DOWN, "podman": PODMAN},
            "auto",
            "podman 4.3.1",
            "docker is not used: it does not answer: down",
        ),
        (
            {"docker": NEW, "buildah": "echo buildah version 1.28.2"},
            "auto",
            "buildah 1.28.2",
            "docker is not used: docker 28.2.2 needs its plugin buildx, which is not installed",
        ),
    ],
)
def test_the_first_that_works_is_taken(
    programs: dict[str, str],
    wanted: BuilderName,
    chosen: str,
    note: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, heard = machine(tmp_path, monkeypatch, programs)
    assert str(builders.choose(wanted, session.settings.environment, session)) == chosen
    assert heard.notes == ([note] if note else [])


@pytest.mark.parametrize(
    ("programs", "wanted", "problem"),
    [
        ({}, "auto", "no builder for the Dockerfile can be used:"),
        ({}, "buildah", "the builder buildah: buildah is not installed"),
        ({"docker": DOWN}, "docker", "the builder docker: it does not answer: down"),
        ({"docker": DOWN}, "buildx", "the builder buildx: docker buildx version fails"),
    ],
)
def test_no_builder(
    programs: dict[str, str],
    wanted: BuilderName,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, heard = machine(tmp_path, monkeypatch, programs)
    with pytest.raises(HostError) as caught:
        builders.build(REQUEST, wanted, session)
    assert caught.value.message == problem
    assert "apt install podman" in caught.value.hint
    if wanted == "auto":
        assert [line.partition(":")[0] for line in caught.value.details] == [
            each.name for each in BUILDERS
        ]
    assert heard.notes == []


def test_a_builder_gets_little_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = machine(tmp_path, monkeypatch, {})
    found = builders.environment_of(REQUEST.secrets, session.settings)
    assert found.pop("PATH").startswith(str(tmp_path / "bin"))
    assert found == {"HOME": "/h", "TOKEN": "s3cret!", **builders.ALWAYS}
    with pytest.raises(ConfigError, match="the variable NONE, which has the secret a, is not set"):
        builders.environment_of([Secret("a", env="NONE")], session.settings)


def test_what_a_failing_builder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a secret is shown, and no line is too long."""
    project.write(tmp_path, "key", b"line one\nline two\n")
    script = """case $1 in
        --version|version) echo podman 1.0;;
        *)
            printf '\\033[31mred\\033[0m\\r%s\\n\\n' "$TOKEN"
            echo 'a line two'
            printf '%020000d\\n' 0
            exit 125;;
    esac"""
    session, heard = machine(tmp_path, monkeypatch, {"podman": script})
    dockerfile = project.write(tmp_path, "Dockerfile", b"FROM scratch\n")
    secrets = (Secret("key", file=tmp_path / "key"), Secret("token", env="TOKEN"))
    request = Request(
        dockerfile, tmp_path, "", None, (), secrets, Platform("linux", "amd64"), "Dockerfile"
    )
    with pytest.raises(FledgeError) as caught:
        builders.build(request, "auto", session)
    assert caught.value.exit_code == 1
    assert caught.value.message == "podman 1.0 did not build Dockerfile"
    assert heard.lines[:3] == ["red", "***", "a ***"]
    assert list(map(len, heard.lines[3:])) == [8192, 8192, 20000 - 2 * 8192]
    assert list(caught.value.details) == heard.lines


@pytest.mark.parametrize("value", [b"caf\xe9 noir", b"a \x1b[31mred\x1b[0m key", b"one\x0ctwo"])
@pytest.mark.parametrize("kind", ["file", "env"])
def test_secrets_are_hidden_as_they_are_shown(
    kind: str, value: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be no UTF-8, and have control characters in them."""
    key = project.write(tmp_path, "key", value + b"\n")
    script = f"""case $1 in
        --version|version) echo podman 1.0;;
        *)
            printf '%s\\n' "$TOKEN, too"
            while read -r line; do echo "<$line>"; done < {key}
            exit 125;;
    esac"""
    session, heard = machine(tmp_path, monkeypatch, {"podman": script}, os.fsdecode(value))
    dockerfile = project.write(tmp_path, "Dockerfile", b"FROM scratch\n")
    secret = Secret("key", file=key) if kind == "file" else Secret("key", env="TOKEN")
    request = Request(
        dockerfile, tmp_path, "", None, (), (secret,), Platform("linux", "amd64"), "Dockerfile"
    )
    with pytest.raises(FledgeError) as caught:
        builders.build(request, "auto", session)
    assert heard.lines == ["***, too" if kind == "env" else ", too", "<***>"]
    assert list(caught.value.details) == heard.lines


REFUSED = 'Get "https://localhost:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (
            "Error: creating build container: initializing source docker://localhost:1/x:latest:"
            f" pinging container registry localhost:1: {REFUSED}",
            3,
        ),
        (
            "ERROR: failed to solve: x.invalid/y: failed to resolve source metadata for"
            ' x.invalid/y:latest: failed to do request: Head "https://x.invalid/v2/y/manifests": x',
            3,
        ),
        (f"pinging container registry localhost:1: {REFUSED}", 1),
        ('Error: building at STEP "RUN curl": while running: exit status 7', 1),
        ("Error: reading manifest latest in docker.io/library/x: manifest unknown", 1),
    ],
)
def test_a_registry_that_cannot_be_reached(
    last: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"case $1 in --version|version) echo podman 1.0;; *) echo '{last}'; exit 125;; esac"
    session, heard = machine(tmp_path, monkeypatch, {"podman": script})
    with pytest.raises(FledgeError) as caught:
        builders.build(plain_request(tmp_path), "auto", session)
    assert caught.value.exit_code == code
    assert list(caught.value.details) == heard.lines == [last]


@pytest.mark.parametrize(
    ("unused", "shown"),
    [
        ("TARGETARCH TARGETOS TARGETPLATFORM", []),
        (
            "TARGETARCH TARGETOS TARGETPLATFORM VERSION",
            ["[Warning] one or more build args were not consumed: [VERSION]"],
        ),
    ],
)
def test_arguments_that_fledge_has_not_set_are_not_blamed(
    unused: str, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""case $1 in
        --version|version) echo podman 1.0;;
        *) echo '[Warning] one or more build args were not consumed: [{unused}]'; exit 1;;
    esac"""
    session, heard = machine(tmp_path, monkeypatch, {"podman": script})
    with pytest.raises(FledgeError):
        builders.build(plain_request(tmp_path), "auto", session)
    assert heard.lines == shown


def plain_request(folder: Path) -> Request:
    dockerfile = project.write(folder, "Dockerfile", b"FROM x\nRUN curl\n")
    return Request(dockerfile, folder, "", None, (), (), Platform("linux", "amd64"), "Dockerfile")


def test_only_containers_of_this_build_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that fails leaves one of its own beside that of another."""
    own, other = "a" * 64, "b" * 64
    for name in (own, other):
        project.write(tmp_path / "store", f"vfs-containers/{name}/userdata/buildah.json", b"{}")
    script = f"""store={tmp_path}/store
    case $1 in
        --version|version) echo podman 1.0;;
        info) echo 'level=warning'; echo $store;;
        build) echo "$@" > $store/vfs-containers/{own}/userdata/buildah.json; exit 1;;
        *) echo "$@" >> {tmp_path}/removed;;
    esac"""
    session, _ = machine(tmp_path, monkeypatch, {"podman": script})
    with pytest.raises(FledgeError):
        builders.build(plain_request(tmp_path), "auto", session)
    assert (tmp_path / "removed").read_text() == f"rm --force {own}\n"


DOCKERFILE = """\
FROM base AS one
RUN make
# a comment
RUN make all && \\
    # in between
    make $TARGET ${PREFIX:-/usr}
COPY a b
RUN ["/bin/sh", "-c", "exit 3"]
RUN <<EOF
make install
EOF
"""


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (['Error: building at STEP "RUN make all && make x /opt": while running'], 4),
        (['error building at STEP "RUN make": exit status 2', "more"], 2),
        (['Error: error building at STEP "COPY a b": checking'], 7),
        (["#4 [one 1/3] RUN make", "------", " > [one 2/3] RUN make all &&     make t /usr:"], 4),
        ([' > [3/3] RUN ["/bin/sh", "-c", "exit 3"]:'], 8),
        (["[1/2] STEP 4/5: RUN /bin/sh -c exit 3", "killed"], 8),
        (["STEP 2/5: COPY a b", "copier: no such file"], 7),
        (["#4 [one 2/4] COPY a b", "#4 CANCELED"], 7),
        ([" > [5/5] RUN <<EOF (make install):"], 9),
        ([" > [2/2] RUN other: "], None),
    ],
)
def test_the_failing_instruction(said: list[str], line: int | None) -> None:
    found = recipe.failing_instruction(said, DOCKERFILE)
    assert found
    assert found.line == line


def test_no_instruction_is_blamed() -> None:
    assert recipe.failing_instruction(["no space left on device"], DOCKERFILE) is None
