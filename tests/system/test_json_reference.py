"""docs/reference/json.md names every member that the commands print with --json, and no other."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images, project, tars
from tests.support.disks import READ_ONLY
from tests.support.oci_registry import OciRegistry
from tests.support.project import Fledge

PAGE = Path(__file__).parents[2] / "docs/reference/json.md"

FREE = {"container", "details", "changes[].fields"}
"""Objects with members of any name, which the page calls NAME."""

VALUES = {"before", "after", "verity.damaged", "entries[].xattrs"}
"""What a row of the page describes as a whole."""


def documented(command: str) -> set[str]:
    """The members in the table below the heading of a command."""
    part = PAGE.read_text().partition(f"\n## `fledge {command} --json`\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE))


def members(value: object, name: str = "") -> Iterator[str]:
    """The names of all members of a document: those of an object in a list after []."""
    if name in VALUES or name.rpartition(".")[2] in VALUES:
        return
    if isinstance(value, dict):
        for key, each in value.items():
            inner = f"{name}.{'NAME' if name in FREE else key}".lstrip(".")
            if name not in FREE:
                yield inner
            yield from members(each, inner)
    elif isinstance(value, list):
        for each in value:
            yield from members(each, f"{name}[]" if name else "")


def check(command: str, *outputs: str) -> None:
    """All members of these outputs of a command are on the page, and only they."""
    assert {each for output in outputs for each in members(json.loads(output))} == documented(
        command
    )


@pytest.mark.slow
def test_build_inspect_and_diff(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path / "broken", files={})
    layer = tars.pack(
        tars.folder("dev"),
        tars.Entry("dev/null", tarfile.CHRTYPE, device=(1, 3)),
        tars.symlink("link", "dev"),
    )
    for name, options in READ_ONLY.items():
        project.write(tmp_path / name, "kestrel", b"#!/bin/sh\n")
        images.write_layout(tmp_path / name / "layout", images.image(layer), "x")
        text = 'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "oci:layout:x"\n'
        text += f'\n{project.LOCAL_AGENT}[filesystem]\ntype = "{name}"\n{options}\n[verity]\n'
        project.write(tmp_path / name, "fledge.toml", text.encode())
    project.make(tmp_path / "plain")
    check("build", fledge("build", "plain", *READ_ONLY, "broken", "--json").out)
    built = [
        "plain/plugin.cpio.gz",
        *("ext4/layout.img", "erofs/layout.erofs", "squashfs/layout.squashfs"),
    ]
    check("inspect", *(fledge("inspect", each, "--json").out for each in built))
    project.write(tmp_path / "ext4", "kestrel", b"#!/bin/sh\n# more\n" * 1000)
    fledge("build", "-c", "ext4/fledge.toml", "-o", "changed.img")
    pairs = (("ext4/layout.img", "changed.img"), built[:2])
    check("diff", *(fledge("diff", *pair, "--json").out for pair in pairs))


def test_push_and_pull(artifacts: Path, served: OciRegistry, fledge: Fledge) -> None:
    name = f"{served.host}/team/web:1.0"
    check("push", fledge("push", artifacts / "amd64/web.img", name, "--json").out)
    check("pull", fledge("pull", name, "--platform", "linux/amd64", "--json").out)
