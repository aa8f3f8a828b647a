"""Writes recipes for CI services: install fledge, check, build from the lock, verify.

The syntax is that of docs.github.com/actions/reference/workflows-and-actions/workflow-syntax and of
docs.gitlab.com/ci/yaml. Text is quoted as in JSON, which YAML includes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

import msgspec

DISTRIBUTION = "fledge-volant"
"""The name of fledge in the Python Package Index."""

Service = Literal["github", "gitlab"]

PATHS: dict[Service, str] = {
    "github": ".github/workflows/{}.yml",
    "gitlab": ".gitlab-ci.yml",
}
"""Where a service looks for its recipe, from the top of the repository. ``{}`` is a name."""


class Project(msgspec.Struct, frozen=True):
    """What a recipe builds."""

    folder: PurePosixPath
    """The folder of fledge.toml, from the top of the repository."""
    artifact: str
    """The file name of the artifact."""
    needs_builder: bool
    """Whether a program of the CI machine has to build the image, because it is in no registry."""


def recipe(service: Service, project: Project) -> str:
    """Return the text of a recipe."""
    return _github(project) if service == "github" else _gitlab(project)


def _commands(project: Project) -> list[str]:
    artifact = shlex.quote(f"./{project.artifact}")
    # The image of a Dockerfile is in a cache alone, and a new machine has an empty one.
    lock = ["fledge lock"] if project.needs_builder else []
    return [
        "fledge check",
        *lock,
        f"fledge build --locked -o {artifact}",
        f"fledge verify {artifact}",
    ]


def _github(project: Project) -> str:
    lock = json.dumps(str(project.folder / "fledge.lock"))[1:-1].replace("'", "''")
    kept = [str(project.folder / each) for each in _kept(project)]
    steps = [f"- run: {json.dumps(each)}" for each in _commands(project)]
    return f"""\
# Builds the plugin from fledge.lock on every push, and verifies that it is what the lock says.
name: fledge
on: [push, pull_request]
permissions:
  contents: read
jobs:
  plugin:
    runs-on: ubuntu-24.04
    defaults:
      run:
        working-directory: {json.dumps(str(project.folder))}
    steps:
      - uses: actions/checkout@v4
        with:
          persist-credentials: false
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - uses: actions/cache@v4
        with:
          path: ~/.cache/fledge
          key: "fledge-${{{{ hashFiles('{lock}') }}}}"
          restore-keys: fledge-
      - run: "pip install {DISTRIBUTION}"
{_indented(steps, "      ")}
      - uses: actions/upload-artifact@v4
        with:
          name: {json.dumps(project.artifact)}
          path: |
{_indented(kept, "            ")}
"""


def _gitlab(project: Project) -> str:
    tools = ["apt-get update", "apt-get install -y buildah"] if project.needs_builder else []
    commands = [
        *tools,
        f"pip install {DISTRIBUTION}",
        f"cd {shlex.quote(str(project.folder))}",
        *_commands(project),
    ]
    lock = json.dumps(str(project.folder / "fledge.lock"))
    script = [f"- {json.dumps(each)}" for each in commands]
    kept = [f"- {json.dumps(str(project.folder / each))}" for each in _kept(project)]
    return f"""\
# Builds the plugin from fledge.lock on every push, and verifies that it is what the lock says.
plugin:
  image: python:3.12-slim
{_GITLAB_BUILDER if project.needs_builder else _GITLAB_CACHE.format(lock)}\
  script:
{_indented(script, "    ")}
  artifacts:
    paths:
{_indented(kept, "      ")}
"""


_GITLAB_CACHE = """\
  variables:
    FLEDGE_CACHE_DIR: $CI_PROJECT_DIR/.cache/fledge
    PIP_CACHE_DIR: $CI_PROJECT_DIR/.cache/pip
  cache:
    key:
      files:
        - {}
    paths:
      - .cache/
"""
_GITLAB_BUILDER = """\
  variables: # how buildah works in a container without privileges
    STORAGE_DRIVER: vfs
    BUILDAH_ISOLATION: chroot
"""
"""There is no cache: GitLab keeps only files of the checkout, and a Dockerfile would copy them."""


def _kept(project: Project) -> Sequence[str]:
    """Return the patterns of what a CI service keeps: the artifact and the documents beside it."""
    return (project.artifact, f"{project.artifact}.*")


def _indented(lines: Sequence[str], indent: str) -> str:
    return "\n".join(indent + line for line in lines)
