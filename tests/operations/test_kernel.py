"""fledge check with a kernel, and the notes of a build."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import pyzstd
from msgspec.structs import replace

import fledge as library
from fledge.errors import ConfigError
from fledge.ext4.format import Ext4
from fledge.machine import kernels
from fledge.project import provenance
from fledge.tree import File, Tree
from fledge.tree.content import hash_file
from tests.support import disks, images, project, tars
from tests.support.guests import initramfs
from tests.support.kernel_images import vmlinux
from tests.support.project import Fledge

AMD64 = "linux/amd64"


def disk_project(folder: Path, filesystem: str = "ext4", target: str = "") -> Path:
    toml = project.make_rootfs(folder)
    project.write(folder, "kestrel", project.program())
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


@pytest.mark.parametrize("filesystem", ["erofs", "squashfs"])
@pytest.mark.parametrize(
    ("xattrs", "words"),
    [
        ({}, []),
        ({"user.a": b"b"}, ["extended attributes"]),
        ({"security.capability": bytes(20)}, ["extended attributes", "file capabilities"]),
    ],
    ids=["none", "user", "capability"],
)
def test_what_only_some_trees_need(
    filesystem: str,
    xattrs: dict[str, bytes],
    words: list[str],
    fledge: Fledge,
    tmp_path: Path,
) -> None:
    """What the kernel lacks for attributes is told if the tree has some, and not else."""
    headers = {f"SCHILY.xattr.{name}": data.decode() for name, data in xattrs.items()}
    layer = tars.pack(tars.file("f", b"x", pax=headers))
    images.write_layout(tmp_path / "layout", images.image(layer), "latest")
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:latest"
        [filesystem]
        type = "{filesystem}"
        {project.LOCAL_AGENT}"""
    project.write(tmp_path, "kestrel", project.program())
    project.write(tmp_path, "fledge.toml", text.encode())
    done = fledge("build", "-o", "x.img", "--platform", AMD64)
    assert done.code == 0, done.err
    checked = fledge("check", "x.img", "--kernel", "volant").out
    known = ["extended attributes", *(["file capabilities"] if filesystem == "erofs" else [])]
    for each in known:
        assert (f"kernel volant: {each}" in done.err) == (each in words)
        assert (f"missing   {each}" in checked) == (each in words)


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
    assert "its files were not checked: x.xfs is an image of type xfs, which fledge can" in done.out


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


ARM64 = "  missing   arm64 programs         CONFIG_ARM64\n"
INSTEAD = "arm64 programs: use a kernel for arm64, or build the artifact for amd64"


@pytest.mark.parametrize("has_provenance", [True, False])
@pytest.mark.slow
def test_an_architecture_that_is_not_the_kernels(
    has_provenance: bool, fledge: Fledge, tmp_path: Path
) -> None:
    """That of the platform, or of programs in the artifact."""
    for_arm64 = ("--platform", "linux/arm64")
    text = kernels.PROFILES["volant"].read_text().replace("CONFIG_X86_64", "CONFIG_ARM64")
    (tmp_path / "arm64.config").write_text(text)
    toml = disk_project(tmp_path)
    project.write(tmp_path, "kestrel", project.program(183))
    built = fledge("build", *for_arm64, "-o", "x.img")
    assert built.code == 0, built.err
    assert "kernel volant" not in built.err  # which nobody has named
    toml.write_text(toml.read_text() + '\n[target]\nkernel = "volant"\n')
    built = fledge("build", *for_arm64, "-o", "x.img")
    assert f"kernel volant: {INSTEAD}" in " ".join(built.err.split())
    library.build(
        project.make(tmp_path / "ram", busybox_binary=project.busybox(machine=183)),
        tmp_path / "x.cpio.gz",
    )
    if not has_provenance:
        provenance.path_beside(tmp_path / "x.img").unlink()
        provenance.path_beside(tmp_path / "x.cpio.gz").unlink()
    for arguments in (("x.img",), ("x.cpio.gz",), for_arm64, ("-c", "ram/fledge.toml")):
        done = fledge("check", *arguments, "--kernel", "volant")
        assert done.code == 1, arguments
        assert ARM64.split() in [line.split() for line in done.out.splitlines()]
        assert f"  {INSTEAD}\n" in done.out
        done = fledge("check", *arguments, "--kernel", "arm64.config")
        assert done.code == 0, done.out
        assert "  built in  arm64 programs" in done.out
    assert fledge("check", "--platform", AMD64, "-c", "ram/fledge.toml").code == 2


def test_the_architecture_of_a_disk_that_cannot_be_read(fledge: Fledge, tmp_path: Path) -> None:
    toml = disk_project(tmp_path)
    project.write(tmp_path, "kestrel", project.program(183))
    library.build(toml, tmp_path / "x.img", platform="linux/arm64")
    (tmp_path / "y.img").write_bytes(b"XFSB" + bytes(100000))
    record = replace(
        provenance.load(tmp_path / "x.img"),
        name="y.img",
        digest=hash_file(tmp_path / "y.img").digest,
    )
    provenance.path_beside(tmp_path / "y.img").write_bytes(provenance.serialize(record))
    done = fledge("check", "y.img", "--kernel", "firecracker")
    assert done.code == 1
    assert f"  {INSTEAD}\n" in done.out


@pytest.mark.slow
def test_what_no_kernel_can_start(fledge: Fledge, tmp_path: Path) -> None:
    initramfs(tmp_path / "x.cpio.gz", None, busybox=project.busybox())
    tree = Tree(mtime_ns=0)
    tree.add(b"etc/hosts", File(mode=0o644, content=b""))
    disks.write(tree, tmp_path / "empty.img", Ext4())
    tree.add(b"sbin/init", File(mode=0o755, content=project.program()))
    disks.write(tree, tmp_path / "init.img", Ext4())
    for name, kernel, words in (
        ("x.cpio.gz", "volant", "init              it has no executable /init"),
        ("x.cpio.gz", "debian", "init: map an executable to /init, or leave out [init]"),
        ("empty.img", "volant", "agent                   it has no agent /bin/kestrel"),
        ("empty.img", "firecracker", "agent: add [agent] to fledge.toml, and build it again\n"),
        ("init.img", "volant", "agent                   it has no agent /bin/kestrel"),
    ):
        done = fledge("check", name, "--kernel", kernel)
        assert done.code == 1
        assert " ".join(words.split()) in " ".join(done.out.split())
    assert fledge("check", "init.img", "--kernel", "firecracker").code == 0


def test_quietly(fledge: Fledge, tmp_path: Path) -> None:
    disk_project(tmp_path)
    done = fledge("check", "-q", "--kernel", "volant")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = fledge("check", "-q", ".", "--kernel", "debian")
    assert done.code == 1
    assert done.out.startswith("debian: ")
    assert fledge("check", "-q", "-v").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.img",), "an artifact needs a kernel to check; name it with --kernel"),
        (("--kernel", "vollant"), "vollant is neither a known kernel (debian, firecracker, kata"),
        (("--kernel", "./none"), "none could not be read: no such file or folder"),
        (("none.img", "--kernel", "volant"), "none.img could not be read"),
        (("--kernel", "./bird.txt"), "bird.txt: it is neither a kernel nor the config"),
        (("--kernel", "vmlinux-6"), "vmlinux-6 is a kernel that does not hold its configuration"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: tuple[str, ...], words: str, fledge: Fledge, tmp_path: Path
) -> None:
    disk_project(tmp_path)
    (tmp_path / "vmlinux-6").write_bytes(vmlinux(b""))
    (tmp_path / "bird.txt").write_text("a bird\n")
    done = fledge("check", *arguments)
    assert done.code == 2
    assert words in done.err


@pytest.mark.slow
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
