"""Writes the archive that the kernel unpacks before an artifact, to stand in for Volant's kernel.

Volant's kernel has its drivers built in, and an archive baked in: busybox, an agent, an init. A
kernel of a distribution has neither. What stands in for them is below /dev, where the first mount
of an init hides it:

    /dev/.fledge/init        the script below, which the kernel starts (rdinit=)
    /dev/.fledge/busybox     its shell
    /dev/.fledge/modules/    the drivers, in the order in which it loads them

and, for a disk or with the baked archive, what that has in /bin (build/bake.sh of volantvm/volant).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace

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

_CHOOSE_AGENT_OF_DISK = f"""\
b=/bin/busybox
$b mkdir -p /mnt/disk
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
# The agent is as in the baked archive, and starts before the disk is mounted.
if $b mount -t ext4 -o ro,loud /dev/vda /mnt/disk; then
    for agent in /mnt/disk/bin/kestrel /mnt/disk/usr/bin/kestrel; do
        [ -f "$agent" ] && $b cp "$agent" /bin/kestrel && break
    done
    $b umount /mnt/disk
    [ -e /bin/kestrel ] || echo "fledge: {AGENT_OF_DISK}"
fi
set -- /bin/kestrel
"""


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
    busybox: bytes, drivers: Sequence[Module], *, network: bool, baked: bool, disk: bool
) -> Iterator[bytes]:
    """Write the archive, and yield it in pieces.

    ``network`` sets up eth0 as the command line says; ``baked`` adds what Volant's own archive
    has; ``disk`` starts the agent of the disk instead of /init.
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
    choose = _CHOOSE_AGENT_OF_DISK if disk else _CHOOSE_INIT
    script = _LOAD + _RAISE_NETWORK * network + choose + _START
    install(tree, None)  # the kernel opens /dev/console
    add(f"{FOLDER}/busybox", program)
    add(INIT, File(mode=0o755, content=script.encode()))
    for number, driver in enumerate(drivers):
        name = f"{FOLDER}/modules/{number:02}-{driver.name}.ko"
        add(name, File(mode=0o644, content=driver.data))
    return newc.write(tree)
