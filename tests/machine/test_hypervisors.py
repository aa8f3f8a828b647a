"""What is printed for hypervisors, whatever the names of files."""

from __future__ import annotations

import json
import os
import shlex

import pytest
from msgspec.structs import replace

from fledge.errors import ConfigError
from fledge.machine.hypervisors import VirtualMachine, describe

MACHINE = VirtualMachine(
    architecture="amd64",
    kernel="/vmlinux",
    initrd="/initrd",
    command_line="console=ttyS0",
    disk="/disk.img",
    memory=512,
    cpus=1,
)


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("/a b'=$.img", "/a b'=$.img"),  # special to the shell only
        ("/a,image_type=qcow2", '"/a,image_type=qcow2"'),
        ("/a]b[.img", '"/a]b[.img"'),
        ('/"a"', '"/""a"""'),
        ("/a ", '"/a "'),
    ],
)
def test_a_disk_of_any_name_for_cloud_hypervisor(path: str, quoted: str) -> None:
    """Its crate option_parser splits at commas outside quotes and brackets, trims, removes quotes
    and takes two quotes in quotes for one.
    """
    words = shlex.split(describe(replace(MACHINE, disk=path), "cloud-hypervisor"))
    assert words[words.index("--disk") + 1] == f"path={quoted},image_type=raw"


def test_a_disk_with_commas_for_qemu() -> None:
    words = shlex.split(describe(replace(MACHINE, disk="/a,,b,c"), "qemu"))
    assert words[words.index("-drive") + 1].endswith(",file=/a,,,,b,,c")


@pytest.mark.parametrize("hypervisor", ["cloud-hypervisor", "firecracker"])
@pytest.mark.parametrize("field", ["kernel", "initrd", "disk"])
def test_a_path_that_is_not_utf_8(hypervisor: str, field: str) -> None:
    path = os.fsdecode(b"/\xff/file")
    machine = replace(MACHINE, **{field: path})
    with pytest.raises(
        ConfigError, match=r"only paths in UTF-8, which /\\udcff/file is"
    ) as refused:
        describe(machine, hypervisor)
    assert "Rename the file" in refused.value.hint
    assert path in describe(machine, "qemu")


@pytest.mark.parametrize("hypervisor", ["cloud-hypervisor", "firecracker"])
@pytest.mark.parametrize("parameter", ["motd=\u00e9", "motd=\udce9", "motd=a\tb"])
def test_a_command_line_that_is_not_ascii(hypervisor: str, parameter: str) -> None:
    machine = replace(MACHINE, command_line=f"console=ttyS0 {parameter}")
    with pytest.raises(ConfigError, match="only printable ASCII"):
        describe(machine, hypervisor)
    assert parameter in describe(machine, "qemu")


def test_a_disk_that_is_never_written() -> None:
    machine = replace(MACHINE, is_read_only=True, hash_disk="/disk.img.verity")
    words = shlex.split(describe(machine, "cloud-hypervisor"))
    position = words.index("--disk")
    assert words[position + 1 : position + 3] == [
        "path=/disk.img,image_type=raw,readonly=on",
        "path=/disk.img.verity,image_type=raw,readonly=on",
    ]
    drives = json.loads(describe(machine, "firecracker"))["drives"]
    assert [each["is_read_only"] for each in drives] == [True, True]
    [drive] = json.loads(describe(MACHINE, "firecracker"))["drives"]
    assert drive["is_read_only"] is False
