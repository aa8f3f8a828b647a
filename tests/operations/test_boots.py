"""What would keep an artifact from booting is an error before it is written, or a note."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.loopfs.format import Btrfs, Xfs
from fledge.machine import check, kernels
from tests.support import images, project, tars
from tests.support.project import Fledge, Outcome

OWN_INIT = '[init]\npath = "my-init"\n'


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (b"#!/bin/bash\n", "/init needs /bin/bash, but /bin/bash does not exist"),
        (b"#!/bin/sh\r\n", "the first line of /init ends with a carriage return"),
        (b"echo\n", "/init is neither an ELF program nor a script that begins with #!"),
        (project.program(183), "/init is for arm64, not for amd64"),
        (project.program()[:30], "/init is a damaged program: it is cut short"),
    ],
)
def test_an_init_that_cannot_run(tmp_path: Path, fledge: Fledge, init: bytes, words: str) -> None:
    project.make(tmp_path, OWN_INIT, files={})
    project.write(tmp_path, "my-init", init, executable=True)
    for command in ("check", "build"):
        done = fledge(command)
        assert done.code == 2, done.err
        assert f"the artifact would not boot: {words}" in done.err
    assert not (tmp_path / "plugin.cpio.gz").exists()


def test_an_init_that_volant_does_not_find(tmp_path: Path, fledge: Fledge) -> None:
    """Booted in test_refused_artifacts.py."""
    layer = tars.pack(tars.folder("usr/bin"), tars.symlink("bin", "usr/bin"))
    images.write_layout(tmp_path / "layout", images.image(layer), "latest")
    binary = project.busybox()
    url = project.write(tmp_path, "busybox", binary).as_uri()
    source = project.source(url, binary) + 'image = "oci:layout:latest"\n'
    link = "where the artifact has /bin -> usr/bin, Volant's kernel has a folder of its own"

    def build(first_line: str, target: str = "") -> Outcome:
        project.write(tmp_path, "my-init", f"#!{first_line}\n".encode())
        project.make(tmp_path, source, OWN_INIT, target, files={})
        return fledge("build", "--platform", "linux/amd64")

    refused = build("/bin/sh")
    assert refused.code == 2
    assert f"/init needs /bin/sh, but /bin/sh does not exist: {link}" in refused.err
    for first_line in ("/usr/bin/sh", "/bin/busybox sh"):
        built = build(first_line)
        assert built.code == 0, built.err
        assert f"{link}: the init has to put the link back" in " ".join(built.err.split())
    other = build("/bin/sh", '[target]\nkernel = "firecracker"\n')
    assert other.code == 0, other.err
    assert link not in " ".join(other.err.split())
    assert fledge("check").code == 0
    for arguments, code in (((), 2), (("plugin.cpio.gz",), 1)):
        checked = fledge("check", *arguments, "--kernel", "volant")
        assert checked.code == code
        said = checked.out + checked.err
        assert f"/init needs /bin/sh, but /bin/sh does not exist: {link}" in said
        assert "uch as #!/usr/bin/sh" in said
        assert fledge("check", *arguments, "--kernel", "firecracker").code == 0
    build("/usr/bin/sh")
    assert fledge("check", "plugin.cpio.gz", "--kernel", "volant").code == 0


def test_another_program_that_cannot_run_is_a_note(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    project.write(tmp_path, "payload/webserver", b"#!/usr/bin/python3\n")
    done = fledge("build")
    assert done.code == 0, done.err
    assert (
        "the mappings cannot run: /usr/bin/webserver needs /usr/bin/python3, but /usr/bin/python3"
        " does not exist"
    ) in " ".join(done.err.split())


def test_a_disk_without_room_for_the_agent(tmp_path: Path, fledge: Fledge) -> None:
    toml = project.make_rootfs(tmp_path)
    agent = b"#!/bin/sh\n".ljust(6 << 20, b"#")
    project.write(tmp_path, "kestrel", agent)
    done = fledge("build", "-o", "out.img")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "size_buffer_mb leaves 1 MiB free, but the agent copies itself to the disk" in said
    assert "Set size_buffer_mb to 7 or more, or leave it out." in said
    toml.write_text(toml.read_text().replace("size_buffer_mb = 1", "size_buffer_mb = 7"))
    assert fledge("build", "-o", "out.img").code == 0


@pytest.mark.parametrize("format_", [Xfs(), Btrfs()])
def test_volant_has_no_driver_for_some_disks(format_: Xfs | Btrfs) -> None:
    found = check.check(format_.requirements(), kernels.find("volant", Path()))
    [advice] = [each.advice for each in found.findings if each.advice]
    assert advice.endswith("or choose another type in [filesystem]")
    assert not found.boots
