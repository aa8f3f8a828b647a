"""Configurations inside and beside kernel images, and files that are none."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.machine import image, kconfig, kernels
from fledge.machine.kconfig import State
from fledge.tree.compression import LZ4_MAGIC
from tests.support import kernel_images, vm
from tests.support.kernel_images import COMPRESSORS, RELEASE, bzimage, ikconfig, vmlinux

CONFIG = kernels.PROFILES["debian"].read_bytes()
KERNEL = vmlinux(ikconfig(CONFIG))

KERNELS = {
    "config": CONFIG,
    "vmlinux": KERNEL,
    "arm64": kernel_images.arm64_image(ikconfig(CONFIG)),
    "riscv64": kernel_images.riscv_image(ikconfig(CONFIG)),
    **{
        f"{kind}-{name}": data
        for name, compress in COMPRESSORS.items()
        for kind, data in (
            ("config", compress(CONFIG)),
            ("vmlinux", compress(KERNEL)),
            ("bzimage", bzimage(compress(KERNEL))),
            ("bzimage-size", bzimage(kernel_images.with_size(compress(KERNEL), len(KERNEL)))),
            ("zboot", kernel_images.zboot(compress(kernel_images.arm64_image(ikconfig(CONFIG))))),
        )
    },
}


def find(data: bytes, folder: Path, name: str = "kernel") -> kconfig.KernelConfig:
    (folder / name).write_bytes(data)
    return kernels.find(name, folder)


@pytest.mark.parametrize("kind", KERNELS)
def test_the_configuration_is_found(kind: str, tmp_path: Path) -> None:
    found = find(KERNELS[kind], tmp_path)
    assert found.options == kconfig.parse(CONFIG, "").options
    assert found.version == (6, 1)
    assert found.architecture == "amd64"
    assert found.source == str(tmp_path / "kernel")


@pytest.mark.parametrize("shift", range(-12, 3))
def test_nothing_hides_between_two_pieces(shift: int, tmp_path: Path) -> None:
    start = len(vmlinux(b"", before=0)) - 1000
    kernel = vmlinux(ikconfig(CONFIG), before=(64 << 10) - start + shift)
    assert find(kernel, tmp_path).state("EXT4_FS") is State.BUILT_IN


def test_the_words_of_a_configuration() -> None:
    text = (
        b"# Linux/x86_64 3.10.0 Kernel Configuration\r\n"
        b'CONFIG_CC_VERSION_TEXT="CONFIG_XFS_FS=y"\r\nCONFIG_X86=n\r\nCONFIG_X86_64=y\r\n'
        b"# CONFIG_BINFMT_ELF is not set\r\nCONFIG_EXT4_FS=m\r\nCONFIG_BTRFS_FS=n\r\n"
        b"CONFIG_HZ=250\r\n"
    )
    found = kconfig.parse(text, "somewhere")
    assert found.options == {"X86_64": State.BUILT_IN, "EXT4_FS": State.MODULE}
    assert found.state("XFS_FS") is State.MISSING
    assert (found.version, found.architecture) == ((3, 10), "amd64")


def test_a_defconfig_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a part") as raised:
        find(b"CONFIG_EXT4_FS=y\n", tmp_path)
    assert "olddefconfig" in raised.value.hint


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "neither a kernel nor the configuration"),
        (b"#!/bin/sh\n", "neither a kernel nor the configuration"),
        (bytes(1000), "neither a kernel nor the configuration"),
        (bzimage(b"x"), "no known compression"),
        (bzimage(b"\x89LZO" + bytes(100)), "LZO"),
        (bzimage(gzip.compress(KERNEL), version=0x207), "2.6.26"),
        (vmlinux(ikconfig(bytes(8 << 20))), "more than 4 MiB"),
    ],
    ids=["empty", "script", "zeros", "unknown", "lzo", "old", "bomb"],
)
def test_what_is_no_kernel_is_told(data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        find(data, tmp_path)
    assert str(tmp_path / "kernel") in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_truncated_kernel_is_damaged(name: str, tmp_path: Path) -> None:
    payload = COMPRESSORS[name](vmlinux(os.urandom(10000) + ikconfig(CONFIG)))
    with pytest.raises(CorruptError, match="kernel: it is truncated"):
        find(bzimage(payload[: len(payload) // 2])[:-500], tmp_path)


def test_an_lz4_block_of_any_size_is_refused(tmp_path: Path) -> None:
    for size in (0x7FFFFFFF, 5):
        with pytest.raises(CorruptError):
            find(bzimage(b"\x02!L\x18" + struct.pack("<I", size) + bytes(10)), tmp_path)


def test_a_kernel_is_not_searched_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "MAX_KERNEL_SIZE", 1 << 20)
    with pytest.raises(ConfigError, match="does not hold its configuration"):
        find(bzimage(gzip.compress(vmlinux(ikconfig(CONFIG), before=2 << 20))), tmp_path)


@pytest.mark.slow
@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(KERNELS)), st.integers(0, 2000))
def test_any_bytes_end_in_an_answer(tmp_path_factory, data: bytes, kind: str, at: int) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.getbasetemp()
    kernel = KERNELS[kind]
    for each in (data, kernel[:at] + data + kernel[at + len(data) :]):
        try:
            find(each, folder)
        except FledgeError as error:
            assert error.message and error.hint


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for what, problem in (
        ("nothing", "neither a known kernel .* nor a file"),
        ("./nothing", "no such file"),
        (".", "not a file"),
        ("k" * 300, "neither a known kernel .* nor a file"),
        ("./" + "k" * 300, "file name too long"),
        ("fifo", "not a file"),
    ):
        with pytest.raises(ConfigError, match=problem):
            kernels.find(what, tmp_path)


@pytest.mark.parametrize(
    ("kernel", "config"),
    [
        ("boot/vmlinuz-6.1.0-9", "boot/config-6.1.0-9"),
        ("boot/bzImage", f"boot/config-{RELEASE}"),
        (f"lib/modules/{RELEASE}/vmlinuz", f"lib/modules/{RELEASE}/config"),
        ("boot/vmlinuz-6.1.0-9", "lib/modules/6.1.0-9/config"),
    ],
    ids=["boot", "release", "modules", "package"],
)
@pytest.mark.parametrize("kind", ["bzimage", "vmlinux"])
def test_a_configuration_beside_the_kernel(
    kernel: str, config: str, kind: str, tmp_path: Path
) -> None:
    data = vmlinux(b"")
    for name in (kernel, config):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kernel).write_bytes(bzimage(gzip.compress(data)) if kind == "bzimage" else data)
    with pytest.raises(ConfigError, match="does not hold its configuration") as raised:
        kernels.find(kernel, tmp_path)
    assert str(tmp_path / config) in raised.value.message
    (tmp_path / config).write_bytes(CONFIG)
    (tmp_path / "link").symlink_to(kernel)
    for each in (kernel, "link"):
        assert kernels.find(each, tmp_path).source == str(tmp_path / config)


def test_a_release_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").write_bytes(CONFIG)
    with pytest.raises(ConfigError, match="does not hold"):
        find(bzimage(gzip.compress(b"\x7fELF" + bytes(100)), release="6/../../secret"), tmp_path)


def test_a_name_too_long_for_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not hold its configuration"):
        find(vmlinux(b""), tmp_path, f"k-{'9' * 250}")


@pytest.mark.real
@pytest.mark.parametrize("flavour", ["cloud", "generic", "rt", "other"])
def test_the_release_of_a_kernel(flavour: str) -> None:
    """On amd64, the cloud kernel is compressed with lz4 and the others with xz."""
    path = vm.kernel_of(flavour)
    found = image.read(path)
    assert found.config is None
    assert f"vmlinuz-{found.release}" == path.name


@pytest.mark.real
@pytest.mark.parametrize(
    "command",
    [
        "gzip -9",
        "xz --check=crc32 --x86 --lzma2=dict=32MiB",
        "xz --format=lzma -9",
        "bzip2 -9",
        "lz4 -l -12",
        "zstd -22 --ultra",
    ],
)
def test_debians_kernel_with_a_configuration_in_it(command: str, tmp_path: Path) -> None:
    """Its own payload, unpacked, with the configuration put into it and packed again."""
    path = next(each for each in map(vm.kernel_of, ("cloud", "other")) if "amd64" in each.name)
    data = bytearray(path.read_bytes())
    offset, size = struct.unpack_from("<II", data, 0x248)
    begin = (data[0x1F1] + 1) * 512 + offset
    payload = bytes(data[begin : begin + size])
    unpack = ["lz4", "-dc"] if payload.startswith(LZ4_MAGIC) else ["xz", "-dc", "--single-stream"]
    # They fail at the size that follows the payload.
    kernel = subprocess.run(unpack, input=payload, capture_output=True, check=False).stdout
    kernel = kernel[: 1 << 20]
    assert kernel.startswith(b"\x7fELF")
    config = path.with_name(path.name.replace("vmlinuz", "config")).read_bytes()
    kernel += ikconfig(config)
    payload = subprocess.run(
        [*command.split(), "-c"], input=kernel, capture_output=True, check=True
    ).stdout
    payload = kernel_images.with_size(payload, len(kernel))
    struct.pack_into("<I", data, 0x24C, len(payload))
    found = find(bytes(data[:begin]) + payload + bytes(1000), tmp_path, "bzImage")
    beside = kernels.find(str(path), Path())
    assert found.source == str(tmp_path / "bzImage")
    assert beside.source != str(path)
    assert found.options == beside.options
