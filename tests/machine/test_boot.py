"""What a kernel's configuration says is what the kernel shows when it boots."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fledge.cpio import newc
from fledge.ext4.format import Ext4
from fledge.formats import FORMATS
from fledge.machine import kernels
from fledge.machine.check import check
from fledge.machine.kconfig import State
from fledge.operations import build
from fledge.sources.init import install
from fledge.tree import Directory, File, Tree
from fledge.tree.kernel import Requirement
from tests.support import project, vm

pytestmark = pytest.mark.real

INIT = b"""#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
echo 1 >/proc/sys/kernel/printk
see() {
    busybox awk -v when=$1 '{ print "sees", when, $NF }' /proc/filesystems
    for driver in /sys/bus/virtio/drivers/* /sys/bus/pci/drivers/* /sys/bus/platform/drivers/*; do
        echo "sees $1 ${driver##*/}"
    done
    busybox awk -v when=$1 '{ print "sees", when, substr($1, 1, 4) }' /proc/consoles
}
for marker in /unpacked-*; do echo "sees before ${marker#/unpacked-}"; done
echo "sees before programs"
/script && echo "sees before scripts"
see before
for module in /modules/*; do busybox insmod $module || echo "cannot load $module"; done
see after
busybox mount -t ext4 /dev/vda /tmp && echo "mounted $(busybox cat /tmp/etc/webserver/config.yaml)"
busybox poweroff -f
"""

SIGNS = {
    "BLK_DEV_INITRD": "programs",
    "BINFMT_ELF": "programs",
    "BINFMT_SCRIPT": "scripts",
    **{f"RD_{name.upper()}": name for name in ("gzip", "xz", "zstd", "lz4", "bzip2", "lzma")},
    "EXT4_FS": "ext4",
    "EROFS_FS": "erofs",
    "SQUASHFS": "squashfs",
    "XFS_FS": "xfs",
    "BTRFS_FS": "btrfs",
    "OVERLAY_FS": "overlay",
    "PROC_FS": "proc",
    "SYSFS": "sysfs",
    "DEVTMPFS": "devtmpfs",
    "TMPFS": "tmpfs",
    "UNIX98_PTYS": "devpts",
    "VIRTIO_BLK": "virtio_blk",
    "VIRTIO_PCI": "virtio-pci",
    "VIRTIO_MMIO": "virtio-mmio",
    "VIRTIO_CONSOLE": "virtio_console",
    "SERIAL_8250_CONSOLE": "ttyS",
    "SERIAL_AMBA_PL011_CONSOLE": "ttyA",
}
"""By option, what the guest sees if its kernel has it."""

UNSEEN = {
    *("EXT4_FS_POSIX_ACL", "EXT4_FS_SECURITY", "SQUASHFS_XATTR", "SQUASHFS_ZLIB", "SQUASHFS_ZSTD"),
    *("EROFS_FS_XATTR", "EROFS_FS_POSIX_ACL", "EROFS_FS_SECURITY", "EROFS_FS_ZIP"),
}
"""Options that cannot be seen without extended attributes, or an image that uses them."""

MODULES = (
    "crc32c_generic",  # named by no dependency: the filesystems look for its algorithm
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "ext4", "xfs", "btrfs"),
    *("overlay", "erofs", "squashfs"),
)

COMPRESSORS = (
    ("gzip", ("gzip", "-9")),
    ("xz", ("xz", "--check=crc32")),
    ("zstd", ("zstd", "-19")),
    ("bzip2", ("bzip2", "-9")),
    ("lzma", ("xz", "--format=lzma")),
    ("lz4", ("lz4", "-l", "-12")),  # last: a legacy frame has no end but that of the file
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    toml = project.make_rootfs(folder)
    return build.build(toml, folder / "x.img", platform="linux/amd64").path


@pytest.mark.parametrize("flavour", ["cloud", "generic", "rt", "other"])
def test_a_kernel_shows_what_its_config_says(flavour: str, disk: Path, tmp_path: Path) -> None:
    image = vm.kernel_of(flavour)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(archives(image, busybox_for(flavour)))
    console = vm.boot(initrd, image=image, disk=disk, virtio=True, timeout=240)
    assert "mounted port: 80\n" in console
    assert "cannot load" not in console
    before = set(re.findall(r"^sees before (\S+)$", console, re.MULTILINE))
    after = set(re.findall(r"^sees after (\S+)$", console, re.MULTILINE))
    config = kernels.find(str(image), Path())
    requirements = [
        *(each for kind in FORMATS for each in kind().requirements()),
        *(Requirement(name, (f"RD_{name.upper()}",)) for name, _ in COMPRESSORS),
        # Each by itself, and not only the best of several.
        *(Requirement(option, (option,)) for option in SIGNS if not option.startswith("SERIAL")),
    ]
    for finding in check(requirements, config).findings:
        options = set(finding.requirement.options) - UNSEEN
        signs = {SIGNS[option] for option in options}
        if not signs:
            continue
        seen = State.BUILT_IN if signs & before else State.MODULE if signs & after else None
        assert finding.state is (seen or State.MISSING), (finding, console)


def test_a_disk_whose_driver_is_a_module_does_not_boot_by_itself(disk: Path) -> None:
    """The test above mounts it, once the modules are loaded."""
    image = vm.kernel()
    found = check(Ext4().requirements(), kernels.find(str(image), Path()))
    assert not found.boots
    console = vm.boot(None, image=image, disk=disk, virtio=True, cmdline="root=/dev/vda")
    assert "Unable to mount root fs" in console


def busybox_for(flavour: str) -> Path:
    if flavour == "other":
        return vm.other_busybox()
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox: run scripts/test-tools")
    return Path(busybox)


def archives(image: Path, busybox: Path) -> bytes:
    """Return an archive with init and modules, and one of each compression with a marker."""
    tree = Tree(mtime_ns=0)
    install(tree, None)
    tree.add(b"/bin/busybox", File(mode=0o755, content=busybox.read_bytes()))
    tree.add(b"/init", File(mode=0o755, content=INIT))
    tree.add(b"/script", File(mode=0o755, content=b"#!/bin/busybox true\n"))
    tree.add(b"/modules", Directory(mode=0o755))
    for number, module in enumerate(load_order(image)):
        path = f"/modules/{number:03}-{module.name}".encode()
        tree.add(path, File(mode=0o644, content=module.read_bytes()))
    data = b"".join(newc.write(tree))
    for name, command in COMPRESSORS:
        marker = Tree(mtime_ns=0)
        marker.add(f"/unpacked-{name}".encode(), File(mode=0o644, content=b""))
        archive = b"".join(newc.write(marker))
        data += bytes(-len(data) % 4)
        data += subprocess.run([*command, "-c"], input=archive, stdout=-1, check=True).stdout
    return data


def load_order(image: Path) -> list[Path]:
    """Return the modules to load, each behind those that it depends on."""
    folder = image.parent.parent / "lib" / "modules"
    files = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order or name not in files:
            return
        data = files[name].read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for each in depends[1].decode().split(",") if depends else ():
            add(each.replace("-", "_"))
        order[name] = files[name]

    for name in MODULES:
        add(name)
    return list(order.values())
