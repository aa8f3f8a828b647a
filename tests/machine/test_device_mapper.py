"""Tests of the program that sets up a sealed disk in a guest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fledge.machine import device_mapper
from fledge.machine.device_mapper import CODE, IOCTL_SIZE, REQUEST, TARGET_SPEC
from fledge.tree import elf

SOURCES = Path(device_mapper.__file__).parent / "ioctls"
TABLE = "0 16 verity 1 /dev/vda /dev/vda 4096 4096 2 3 sha256 00 -"
TRIPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


@pytest.mark.real
@pytest.mark.parametrize("architecture", CODE)
def test_its_code_is_what_the_assembler_makes(architecture: str, tmp_path: Path) -> None:
    tools = TRIPLES[architecture]
    made, code = tmp_path / "code.o", tmp_path / "code"
    subprocess.run([f"{tools}-as", "-o", made, SOURCES / f"{architecture}.s"], check=True)
    subprocess.run([f"{tools}-objcopy", "-O", "binary", made, code], check=True)
    assert code.read_bytes() == CODE[architecture]


@pytest.mark.parametrize("architecture", CODE)
def test_it_is_a_static_program(architecture: str) -> None:
    program = device_mapper.program(architecture, TABLE)
    found = elf.read(program)
    assert found.architecture == architecture
    assert not found.loader
    assert b"1 /dev/vda /dev/vda 4096 4096 2 3 sha256 00 -\0" in program


@pytest.mark.real
def test_the_structures_are_those_of_the_kernel(tmp_path: Path) -> None:
    """The numbers of the requests, and where the fields are, by the kernel's own header."""
    names = ["version", "data_size", "data_start", "target_count", "flags", "name"]
    specs = ["sector_start", "length", "next", "target_type"]
    values = [f"offsetof(struct dm_ioctl, {name}) + 8" for name in names]
    values += [f"offsetof(struct dm_target_spec, {name})" for name in specs]
    values += ["sizeof(struct dm_ioctl)", "sizeof(struct dm_target_spec)"]
    values += ["DM_DEV_CREATE", "DM_TABLE_LOAD", "DM_DEV_SUSPEND", "DM_READONLY_FLAG"]
    calls = "".join(f'printf("%lu\\n", (unsigned long)({value}));' for value in values)
    headers = ("stddef.h", "stdio.h", "sys/ioctl.h", "linux/dm-ioctl.h")
    source = "".join(f"#include <{header}>\n" for header in headers)
    (tmp_path / "x.c").write_text(f"{source}int main(void) {{ {calls} }}\n")
    subprocess.run(["gcc", "-o", tmp_path / "x", tmp_path / "x.c"], check=True)
    done = subprocess.run([tmp_path / "x"], check=True, capture_output=True, text=True)
    found = [int(line) for line in done.stdout.split()]
    own = [REQUEST.slots[name][0].offset for name in names]
    own += [TARGET_SPEC.slots[name][0].offset for name in specs]
    program = device_mapper.program("amd64", TABLE)
    position = device_mapper.ELF_HEADER.size + len(CODE["amd64"])
    requests = []
    while program[position : position + 4] != bytes(4):
        requests.append(REQUEST.unpack_from(program, position))
        position += requests[-1].size
    assert position + 8 == len(program)
    numbers = [each.number for each in requests]
    assert found == [*own, IOCTL_SIZE, TARGET_SPEC.size, *numbers, requests[0].flags]


@pytest.mark.real
@pytest.mark.skipif(
    os.geteuid() != 0 or os.uname().machine != "x86_64",
    reason="only root can change the root, and the program is for amd64",
)
def test_the_exit_status_is_the_error(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(device_mapper.program("amd64", TABLE))
    program.chmod(0o755)
    done = subprocess.run(["chroot", tmp_path, "/program"], check=False)
    assert done.returncode == 2  # ENOENT: there is no device mapper
