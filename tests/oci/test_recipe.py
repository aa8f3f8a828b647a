"""What a Dockerfile declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.errors import ConfigError
from fledge.oci.recipe import Declarations, read_declarations
from tests.support import project

DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG BASE=debian OTHER="a B c"
FROM --platform=$BUILDPLATFORM $BASE as Build
arg VERSION
RUN --mount=type=cache,target=/c \\
    # a comment
    --mount=type=secret,id=token,required=true --mount=type=secret,target=/etc/key make
FROM scratch
COPY --from=Build /out /
FROM base AS release
"""


def read(folder: Path, text: str) -> Declarations | None:
    return read_declarations(project.write(folder, "Dockerfile", text.encode()))


def test_declarations(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + DOCKERFILE) == Declarations(
        stages=("Build", "1", "release"),
        arguments=frozenset({"BASE", "OTHER", "VERSION"}),
        secrets=frozenset({"token", "key"}),
    )


@pytest.mark.parametrize(
    ("target", "is_there"),
    [("release", True), ("build", True), ("0", True), ("2", True), ("3", False), ("releas", False)],
)
def test_targets(tmp_path: Path, target: str, is_there: bool) -> None:
    found = read(tmp_path, DOCKERFILE)
    assert found
    assert found.has_stage(target) == is_there


@pytest.mark.parametrize(
    "text",
    [
        "# escape=`\nFROM a AS b\n",
        "# a comment\n#syntax = example.org/other\nFROM a AS b\n",
        "FROM a AS ${NAME}\n",
        "FROM a\nRUN --mount=type=secret,id=$ID make\n",
        "FROM a\n" + "#" * (1 << 20),
    ],
)
def test_what_only_the_builder_can_tell(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) is None


@pytest.mark.parametrize("text", ["", "\n# a comment\n  \n"])
def test_an_empty_dockerfile(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/Dockerfile is empty"):
        read(tmp_path, text)
