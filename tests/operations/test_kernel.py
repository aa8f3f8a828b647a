"""fledge check with a kernel, and the notes of a build."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import pyzstd

import fledge as library
from fledge.errors import ConfigError
from fledge.machine import kernels
from fledge.project import provenance
from tests.support import project
from tests.support.kernel_images import vmlinux
from tests.support.project import Fledge

AMD64 = "linux/amd64"


def disk_project(folder: Path, filesystem: str = "ext4", target: str = "") -> Path:
    toml = project.make_rootfs(folder)
    text = toml.read_text().replace("[filesystem]", f'[filesystem]\ntype = "{filesystem}"')
    toml.write_text(f"{text}\n{target}")
    return toml


def test_a_disk_that_the_kernel_has_a_driver_for(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path)
    done = fledge("check", "--kernel", "volant")
    assert done.code == 0
    assert done.out.startswith("fledge.toml is valid\nvolant: ch_defconfig of ")
    assert "(Linux 6.16, amd64)\n" in done.out
    assert "  built in  ext4 filesystem          CONFIG_EXT4_FS\n" in done.out
    assert done.out.endswith("this kernel boots the artifact\n")


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_a_disk_that_volant_cannot_mount(filesystem: str, fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path, filesystem)
    done = fledge("check", "--kernel", "volant")
    assert done.code == 1
    option = f"CONFIG_{filesystem.upper()}_FS"
    assert f"  missing   {filesystem} filesystem" in done.out
    assert (
        f"  {filesystem} filesystem: build the kernel with {option}=y, or choose another type in"
        " [filesystem]\n"
    ) in done.out


def test_modules_of_the_disk_need_an_initramfs(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path)
    done = fledge("check", "--kernel", "debian")
    assert done.code == 1
    assert "this kernel does not boot the artifact by itself\n" in done.out
    assert "  virtio disk: load the module from an initramfs, or build" in done.out
    assert "  overlayfs: load the module in the guest, or build" in done.out


def test_an_initramfs(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    assert fledge("check", "--kernel", "debian").code == 0
    done = fledge("check", "--kernel", "libkrun")
    assert done.code == 1
    assert 'build a disk: strategy = "oci_rootfs"' in done.out


def test_an_artifact(fledge: Fledge, tmp_path: Path) -> None:
    disk = library.build(disk_project(tmp_path / "disk"), tmp_path / "x.img", platform=AMD64).path
    archive = library.build(project.make(tmp_path / "ram"), tmp_path / "x.cpio.gz").path
    assert fledge("check", disk, "--kernel", "volant").code == 0
    assert fledge("check", disk, "--kernel", "debian").code == 1
    assert fledge("check", archive, "--kernel", "volant").code == 0
    done = fledge("check", archive, "--kernel", "libkrun")
    assert done.code == 1
    assert "  missing   gzip initramfs" in done.out
    (tmp_path / "x.xfs").write_bytes(b"XFSB" + bytes(100000))
    done = fledge("check", "x.xfs", "--kernel", "volant")
    assert done.code == 1
    assert "xfs filesystem: build the kernel with CONFIG_XFS_FS=y" in done.out


def test_an_artifact_with_several_compressions(fledge: Fledge, tmp_path: Path) -> None:
    archive = library.build(project.make(tmp_path / "ram"), tmp_path / "x.cpio.gz").path

    data = archive.read_bytes()

    (tmp_path / "both").write_bytes(data + pyzstd.compress(gzip.decompress(data)))
    done = fledge("check", "both", "--kernel", "kata")
    assert done.code == 1
    assert "  built in  gzip initramfs" in done.out
    assert "  missing   zstd initramfs" in done.out


def test_a_kernel_of_ones_own(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path)
    (tmp_path / "my.config").write_bytes(kernels.PROFILES["volant"].read_bytes())
    done = fledge("check", "--kernel", "my.config")
    assert done.code == 0
    assert "my.config (Linux 6.16, amd64)\n" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.img",), "an artifact needs a kernel to check; name it with --kernel"),
        (("--kernel", "vollant"), "vollant is neither a known kernel (debian, firecracker, kata"),
        (("--kernel", "./none"), "none could not be read: no such file or folder"),
        (("none.img", "--kernel", "volant"), "none.img could not be read"),
        (("--kernel", "kestrel"), "kestrel: it is neither a kernel nor the configuration of one"),
        (("--kernel", "vmlinux-6"), "vmlinux-6 is a kernel that does not hold its configuration"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: tuple[str, ...], words: str, fledge: Fledge, tmp_path: Path
) -> None:
    disk_project(tmp_path)
    (tmp_path / "vmlinux-6").write_bytes(vmlinux(b""))
    done = fledge("check", *arguments)
    assert done.code == 2
    assert words in done.err


def test_the_target_is_checked(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path, "xfs", '[target]\nkernel = "volant"\n')
    assert fledge("check").code == 1
    assert fledge("check", "--kernel", "firecracker").code == 0
    disk_project(tmp_path, "ext4", '[target]\nkernel = "boot/config"\n')
    done = fledge("check")
    assert done.code == 2
    assert "fledge.toml: target.kernel: boot/config could not be read" in done.err
    assert library.check_target(disk_project(tmp_path)) is None


def test_a_build_notes_what_the_target_lacks(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path, target='[target]\nkernel = "debian"\n')
    done = fledge("build", "--platform", AMD64, "-o", "x.img")
    assert done.code == 0
    assert "kernel debian: virtio disk: load the module from an initramfs" in done.err
    plain = disk_project(tmp_path / "plain")
    artifact = library.build(plain, tmp_path / "plain.img", platform=AMD64)
    assert artifact.digest == provenance.load(tmp_path / "x.img").digest


def test_a_kernel_that_is_missing_stops_a_build_at_once(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path, target='[target]\nkernel = "boot/vmlinuz"\n')
    done = fledge("build", "--platform", AMD64, "-o", "x.img")
    assert done.code == 2
    assert "target.kernel: " in done.err
    assert not (tmp_path / "x.img").exists()


def test_verify_reads_no_kernel_that_a_record_names(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(kernels.PROFILES["volant"].read_bytes())
    toml = disk_project(tmp_path, target='[target]\nkernel = "config"\n')
    artifact = library.build(toml, tmp_path / "x.img", platform=AMD64)
    (tmp_path / "config").unlink()
    assert library.verify(artifact.path, toml).equal


def test_the_library_answers_in_types(tmp_path: Path) -> None:
    disk = library.build(disk_project(tmp_path), tmp_path / "x.img", platform=AMD64).path
    found = library.check_kernel("debian", disk)
    assert isinstance(found, library.KernelCheck)
    by_purpose = {each.requirement.purpose: each.state for each in found.findings}
    assert by_purpose["virtio bus"] is library.State.MODULE
    assert not found.boots
    with pytest.raises(ConfigError):
        library.check_kernel("nothing", disk)
