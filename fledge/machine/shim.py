"""Writes the archive that the kernel unpacks before an artifact, to stand in for Volant's kernel.

Volant's kernel has its drivers built in, and an archive baked in: busybox, an agent, an init. A
kernel of a distribution has neither. What stands in for them is below /dev, where the first mount
of an init hides it:

    /dev/.fledge/init        the script below, which the kernel starts (rdinit=)
    /dev/.fledge/busybox     its shell
    /dev/.fledge/modules/    the drivers, in the order in which it loads them

and, for a disk or with the baked archive, what that has in /bin (build/bake.sh of volantvm/volant).
For a sealed disk, /sbin/seal sets up the device that checks it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from fledge.cpio import newc
from fledge.host.settings import DEFAULT_EPOCH
from fledge.machine.modules import Module
from fledge.machine.network import ADDRESS, GATEWAY, NETMASK
from fledge.sources import paths
from fledge.sources.init import install
from fledge.tree import NANOSECONDS, Directory, File, Node, Symlink, Tree
from fledge.tree.applets import applets

FOLDER = "/dev/.fledge"
INIT = f"{FOLDER}/init"
"""The program for the kernel to start."""

DRIVERS = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"),
    "crc32c_generic",  # ext4 looks for it by the name of its algorithm
    *("ext4", "overlay", "af_packet"),
)
"""The modules of what is built into Volant's kernel."""

AGENT_OF_DISK = "the disk has no agent /bin/kestrel"
"""What the archive says when a disk lacks the agent."""

NOT_SEALED = "the sealed disk cannot be set up by dm-verity"
"""What the archive says when the kernel refuses a request of the device mapper."""

VERITY_DRIVERS = ("dm_mod", "dm_verity", "sha256_generic")
"""The modules of a sealed disk."""

_BAKED_FOLDERS = ("bin", "sbin", "etc", "proc", "sys", "usr/bin", "usr/sbin", "lib/modules")
_BAKED_BUSYBOX = b"/tmp/initramfs/bin/busybox"
"""Where the links of the baked archive lead: the place where Volant's makers installed busybox."""

_KEPT_FOLDERS = sorted({"bin", *filter(None, map(posixpath.dirname, _BAKED_FOLDERS))})
"""Folders of the baked archive that have something in them."""

_LOAD = f"""\
#!{FOLDER}/busybox sh
# Does what Volant's kernel does without a program, then starts that of the artifact.
b={FOLDER}/busybox
for module in {FOLDER}/modules/*.ko; do
    [ -e "$module" ] && $b insmod "$module"
done
$b rm -rf {FOLDER}/modules
"""

_RAISE_NETWORK = f"""\
# What ip= on the command line does where the kernel has CONFIG_IP_PNP.
$b ifconfig lo 127.0.0.1 up
$b ifconfig eth0 {ADDRESS} netmask {NETMASK} up && $b route add default gw {GATEWAY} 2>/dev/null
"""

_START = """\
# A shell would run a file without #!, and so would the C library. The kernel does not.
if [ -e "$1" ]; then
    case $($b head -c 4 "$1") in
        '#!'* | ?ELF) ;;
        *) echo "fledge: can't execute '$1': Exec format error"; exit 126 ;;
    esac
fi
exec $b env -u PWD -u OLDPWD -u SHLVL "$1"
"""

_CHOOSE_INIT = "set -- /init\n"

_SEAL = "sbin/seal"

_SET_UP_SEAL = f"""\
/{_SEAL} || {{ echo "fledge: {NOT_SEALED}: error $?"; exit 1; }}
"""

_AGENT_OF_DISK = f"""\
b=/bin/busybox
$b mkdir -p /mnt/disk
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
%(seal)s# The agent is as in the baked archive, and starts before the disk is mounted.
if $b mount -t %(filesystem)s -o ro,loud %(device)s /mnt/disk; then
    for agent in /mnt/disk/bin/kestrel /mnt/disk/usr/bin/kestrel; do
        [ -f "$agent" ] && $b cp "$agent" /bin/kestrel && break
    done
    [ -e /bin/kestrel ] || echo "fledge: {AGENT_OF_DISK}"
%(then)sfi
set -- /bin/kestrel
"""

_LEAVE_DISK = "    $b umount /mnt/disk\n"

_ENTER_OVERLAY = """\
    # As stage 1 of the agent does for a disk that it cannot write.
    root=/mnt/volant-root memory=/mnt/memory
    $b mkdir -p $root $memory
    size=$($b sed -n 's/.*overlay_size=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
    $b mount -t tmpfs -o size=${size:-1G} tmpfs $memory
    $b mkdir $memory/upper $memory/work
    layers=lowerdir=/mnt/disk,upperdir=$memory/upper,workdir=$memory/work
    if [ -e /bin/kestrel ] && $b mount -t overlay -o "$layers" overlay $root; then
        $b mkdir -p $root/usr/local/bin
        $b cp /bin/kestrel $root/usr/local/bin/kestrel
        exec $b switch_root $root /usr/local/bin/kestrel stage2
    fi
"""


class Disk(msgspec.Struct, frozen=True):
    """A disk that has the root of the guest."""

    filesystem: str
    """Its type, as in mount(8)."""
    needs_overlay: bool
    """Whether the kernel cannot write to it."""
    seal: bytes | None = None
    """A program that makes /dev/dm-0 of it (`device_mapper`). None: it is not sealed."""

    @property
    def drivers(self) -> tuple[str, ...]:
        """The modules that it needs beside `DRIVERS`, if they are not built in."""
        return (self.filesystem, *(VERITY_DRIVERS if self.seal else ()))

    @property
    def script(self) -> str:
        """What starts its agent."""
        return _AGENT_OF_DISK % {
            "seal": _SET_UP_SEAL if self.seal else "",
            "filesystem": self.filesystem,
            "device": "/dev/dm-0" if self.seal else "/dev/vda",
            "then": _ENTER_OVERLAY if self.needs_overlay else _LEAVE_DISK,
        }


def over_baked(tree: Tree) -> tuple[Tree, list[tuple[bytes, Symlink]]]:
    """Return what a guest sees of a tree that is unpacked over the baked archive, as far as its
    links go, and the links that are lost.

    The kernel cannot replace a folder by a link if there is something in it (clean_path in
    init/initramfs.c).
    """
    busybox = tree.get(paths.BUSYBOX, follow=True)
    seen = Tree(tree.mtime_ns)
    seen.root = replace(tree.root, children=dict(tree.root.children))
    lost = []
    for name in (each.encode() for each in _KEPT_FOLDERS):
        link = tree.root.children.get(name)
        if isinstance(link, Symlink):
            seen.root.children[name] = Directory(mode=0o755)
            lost.append((b"/" + name, link))
    if isinstance(busybox, File) and isinstance(tree.root.children.get(b"bin"), Symlink):
        seen.add(paths.BUSYBOX, busybox)
    return seen, lost


def write(
    busybox: bytes, drivers: Sequence[Module], disk: Disk | None, *, network: bool, baked: bool
) -> Iterator[bytes]:
    """Write the archive, and yield it in pieces.

    ``network`` sets up eth0 as the command line says; ``baked`` adds what Volant's own archive
    has; a ``disk`` has the agent to start instead of /init.
    """
    tree = Tree(DEFAULT_EPOCH * NANOSECONDS)

    def add(path: str, node: Node) -> None:
        node.mtime_ns = tree.mtime_ns
        tree.add(path.encode(), node)

    program = File(mode=0o755, content=busybox)
    if baked or disk:
        for folder in _BAKED_FOLDERS:
            add(folder, Directory(mode=0o755))
        for applet in applets(busybox):
            add(f"bin/{applet.decode()}", Symlink(target=_BAKED_BUSYBOX))
        add("bin/busybox", program)
        add("init", File(mode=0o755, content=b""))  # switch_root wants one, whatever it is
    if disk and disk.seal:
        add(_SEAL, File(mode=0o755, content=disk.seal))
    choose = disk.script if disk else _CHOOSE_INIT
    script = _LOAD + _RAISE_NETWORK * network + choose + _START
    install(tree, None)  # the kernel opens /dev/console
    add(f"{FOLDER}/busybox", program)
    add(INIT, File(mode=0o755, content=script.encode()))
    for number, driver in enumerate(drivers):
        name = f"{FOLDER}/modules/{number:02}-{driver.name}.ko"
        add(name, File(mode=0o644, content=driver.data))
    return newc.write(tree)
