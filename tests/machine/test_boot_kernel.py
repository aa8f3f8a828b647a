"""Which kernel is booted, and where its modules are."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from fledge.errors import ConfigError, HostError
from fledge.machine import boot_kernel, image
from tests.support import project, vm
from tests.support.kernel_images import arm64_image, bzimage, riscv_image, zboot


def arm64_zboot() -> bytes:
    data = bytearray(zboot(b"payload"))
    data[0x3C:0x40] = (0x100).to_bytes(4, "little")
    data[0x100:0x106] = b"PE\0\0\x64\xaa"
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "architecture"),
    [
        (bzimage(b"x"), "amd64"),
        (bzimage(b"x", loads_64_bit=False), "386"),
        (arm64_image(b"x"), "arm64"),
        (gzip.compress(arm64_image(b"x"), mtime=0), "arm64"),
        (arm64_zboot(), "arm64"),
        (project.program(62, body=bytes(1000)), "amd64"),
    ],
    ids=["bzImage", "bzImage-32", "Image", "Image.gz", "zboot", "vmlinux"],
)
def test_the_architecture(data: bytes, architecture: str, tmp_path: Path) -> None:
    assert image.identify(project.write(tmp_path, "k", data)).architecture == architecture


@pytest.mark.parametrize(
    "data",
    [b"", b"CONFIG_X86_64=y\n" * 100, gzip.compress(b"text" * 1000, mtime=0), riscv_image(b"x")],
    ids=["empty", "config", "text", "riscv"],
)
def test_what_is_no_kernel(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a kernel image"):
        image.identify(project.write(tmp_path, "k", data))


def install(root: Path, release: str, *, kernel: str, modules: str) -> Path:
    project.write(root, f"{modules}/modules.order", b"")
    project.write(root, f"{modules}/kernel/x.ko", b"")
    return project.write(root, kernel, bzimage(b"", release=release))


@pytest.mark.parametrize(
    ("kernel", "modules"),
    [
        ("boot/vmlinuz-6.9.0-x", "lib/modules/6.9.0-x"),
        ("boot/vmlinuz-6.9.0-x", "usr/lib/modules/6.9.0-x"),
        ("vmlinuz", "lib/modules/6.9.0-x"),  # by the release that is in the file
        ("lib/modules/6.9.0-x/vmlinuz", "lib/modules/6.9.0-x"),
    ],
)
def test_its_modules(kernel: str, modules: str, tmp_path: Path) -> None:
    path = install(tmp_path, "6.9.0-x", kernel=kernel, modules=modules)
    assert boot_kernel.open_kernel(path).modules == tmp_path / modules
    (tmp_path / modules / "modules.order").unlink()
    assert boot_kernel.open_kernel(path).modules is None


def test_the_kernel_of_this_machine(tmp_path: Path) -> None:
    for release in ("6.9.0-1", "6.10.0-1", "6.10.0-rc"):
        project.write(tmp_path, f"vmlinuz-{release}", bzimage(b"", release=release))
    project.write(tmp_path, "vmlinuz-7.0.0-1", b"not a kernel")
    newest = boot_kernel.host_kernel(tmp_path).path.name
    assert newest == "vmlinuz-6.10.0-1"
    running = project.write(tmp_path, f"vmlinuz-{os.uname().release}", bzimage(b""))
    assert boot_kernel.host_kernel(tmp_path).path == running


def test_a_machine_without_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="has no kernel in") as missing:
        boot_kernel.host_kernel(tmp_path)
    assert "--kernel" in missing.value.hint


@pytest.mark.real
def test_debians() -> None:
    found = boot_kernel.open_kernel(vm.kernel())
    assert found.modules
    assert found.modules.name in vm.kernel().name
