"""What would keep an artifact from booting is an error before it is written, or a note."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fledge.disks.loopfs.format import Btrfs, Xfs
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
        (b"#!/bin/busybox bash\n", "/init needs /bin/busybox, but /bin/busybox is busybox, which"),
        (b"#!/bin/env sh\n", "/init needs /bin/env, but /bin/env does not exist"),
        (
            project.program(3),
            "/init is for 386, not for amd64: the kernel volant has no CONFIG_IA3",
        ),
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


@pytest.mark.parametrize(
    ("destination", "hidden"),
    [
        ("/var/run/app.conf", True),
        ("/lock/app.conf", True),
        ("/run/app.conf", True),
        ("/dev/shm/app.conf", True),
        ("/tmp/app.conf", True),
        ("/var/tmp/app.conf", False),
        ("/runner/app.conf", False),
    ],
)
def test_a_mapping_that_a_mount_hides(
    tmp_path: Path, fledge: Fledge, destination: str, hidden: bool
) -> None:
    """Booted in test_refused_artifacts.py."""
    links = [("var/run", "../run"), ("lock", "/var/run/lock"), ("var/tmp", "/srv")]
    folders = [tars.folder(name) for name in ("var", "run/lock", "srv")]
    layer = tars.pack(*folders, *(tars.symlink(*link) for link in links))
    images.write_layout(tmp_path / "layout", images.image(layer), "latest")
    project.write(tmp_path, "app.conf", b"x")
    mappings = f'[mappings]\n"app.conf" = "{destination}"\n'
    words = f"would be hidden at {destination}"

    binary = project.busybox()
    url = project.write(tmp_path, "busybox", binary).as_uri()
    source = project.source(url, binary) + 'image = "oci:layout:latest"\n'
    project.make(tmp_path, source, mappings, project.LOCAL_AGENT)
    for command in ("check", "build"):
        done = fledge(command, "--platform", "linux/amd64")
        assert done.code == (2 if hidden else 0), done.err
        assert (words in " ".join(done.err.split())) == hidden

    disk = f"""version = "1"
strategy = "oci_rootfs"
[source]
image = "oci:layout:latest"
{project.LOCAL_AGENT}{mappings}"""
    project.write(tmp_path, "fledge.toml", disk.encode())
    done = fledge("build", "--platform", "linux/amd64")
    assert done.code == 0, done.err
    assert (f"app.conf {words}" in " ".join(done.err.split())) == hidden


def test_an_init_that_env_does_not_find(tmp_path: Path, fledge: Fledge) -> None:
    binary = project.busybox(b"env", b"sh")
    project.make(tmp_path, OWN_INIT, files={}, busybox_binary=binary)
    project.write(tmp_path, "my-init", b"#!/bin/env bash\n", executable=True)
    done = fledge("build")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "/init needs /bin/env, but env does not find bash in PATH=/usr/local/bin:/bin:" in said
    assert "or use an interpreter that is there, such as #!/bin/sh." in said
    project.write(tmp_path, "my-init", b"#!/bin/env sh\n", executable=True)
    assert fledge("build").code == 0


def test_an_init_of_32_bits_on_another_kernel(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path, OWN_INIT, '[target]\nkernel = "debian"\n', files={})
    project.write(tmp_path, "my-init", project.program(3), executable=True)
    done = fledge("build")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({"usr/local": "/opt/local"}, "/usr/local is a symlink to /opt/local, which the agent"),
        ({"usr/local/bin": "/usr/bin"}, "/usr/local/bin is a symlink to /usr/bin, which the agent"),
        ({"usr/local": "../../opt/local"}, "/usr/local is a symlink to ../../opt/local"),
        ({"usr/local": "../gone"}, "/usr/local is a symlink to ../gone"),
        ({"usr/local": "../opt/local"}, None),
        ({"usr/local/bin": "../bin"}, None),
        ({}, None),
    ],
)
@pytest.mark.slow
def test_a_disk_whose_links_lead_out_of_it(
    tmp_path: Path, fledge: Fledge, links: dict[str, str], words: str | None
) -> None:
    """The agent copies itself to /usr/local/bin while the disk is at /mnt/volant-root."""
    folders = [tars.folder(each) for each in ("usr/bin", "opt/local/bin")]
    entries = [tars.symlink(path, target) for path, target in links.items()]
    project.make_rootfs(tmp_path)
    layer = tars.pack(*folders, *entries)
    images.write_layout(tmp_path / "linked", images.image(layer), "latest")
    toml = tmp_path / "fledge.toml"
    toml.write_text(toml.read_text().replace("oci:layout:hello", "oci:linked:latest"))
    done = fledge("build", "--platform", "linux/amd64", "-o", "out.img")
    assert done.code == (2 if words else 0), done.err
    assert (words or "") in " ".join(done.err.split())
    assert words is None or "or a relative symlink to a folder of the disk." in done.err


def test_another_program_that_cannot_run_is_a_note(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    project.write(tmp_path, "payload/webserver", b"#!/usr/bin/python3\n")
    done = fledge("build")
    assert done.code == 0, done.err
    assert (
        "the mappings cannot run: /usr/bin/webserver needs /usr/bin/python3, but /usr/bin/python3"
        " does not exist"
    ) in " ".join(done.err.split())


@pytest.mark.slow
def test_a_disk_without_room_for_the_agent(tmp_path: Path, fledge: Fledge) -> None:
    toml = project.make_rootfs(tmp_path)
    for size, given, needed in ((100, 1, 8), (7 << 20, 7, 8), (9 << 20, 8, 10)):
        project.write(tmp_path, "kestrel", b"#!/bin/sh\n".ljust(size, b"#"))
        toml.write_text(re.sub(r"(size_buffer_mb =) \d+", rf"\1 {given}", toml.read_text()))
        done = fledge("build", "-o", "out.img")
        assert done.code == 2
        said = " ".join(done.err.split())
        assert f"size_buffer_mb leaves {given} MiB free, but the agent copies itself" in said
        assert f"Set size_buffer_mb to {needed} or more, or leave it out." in said
        toml.write_text(re.sub(r"(size_buffer_mb =) \d+", rf"\1 {needed}", toml.read_text()))
        assert fledge("build", "-o", "out.img").code == 0


@pytest.mark.parametrize("format_", [Xfs(), Btrfs()])
def test_volant_has_no_driver_for_some_disks(format_: Xfs | Btrfs) -> None:
    found = check.check(format_.requirements(), kernels.find("volant", Path()))
    [advice] = [each.advice for each in found.findings if each.advice]
    assert advice.endswith("or choose another type in [filesystem]")
    assert not found.boots
