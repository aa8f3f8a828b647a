"""A difficult Debian image: a disk shows the same entries as `umoci unpack`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fledge.disks.squashfs.reader import read
from fledge.formats import open_artifact
from fledge.host.settings import DEFAULT_EPOCH
from tests.support import daemons, project
from tests.support.mounted import Entry, Listing, list_folder, list_image, list_tree
from tests.support.pythons import nobody
from tests.support.squashed import fit_listing

pytestmark = pytest.mark.real

CHECKOUT = Path(__file__).parents[2]
LAYOUT = CHECKOUT / ".cache" / "debian"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listing]:
    """The content of the image, unpacked by umoci."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap and umoci need root for the image and its owners")
    daemons.need("debootstrap", "buildah", "umoci", "setcap", "setfattr")
    subprocess.run([CHECKOUT / "scripts" / "debian-image", LAYOUT], check=True)
    bundle = tmp_path_factory.mktemp("umoci") / "bundle"
    image = f"{LAYOUT}:debian"
    subprocess.run(["umoci", "unpack", "--image", image, bundle], check=True, capture_output=True)
    try:
        yield list_folder(bundle / "rootfs")
    finally:
        shutil.rmtree(bundle)


def expected(unpacked: Listing) -> Listing:
    """The content of a disk: the image, changed by hard links, and two files that fledge adds."""
    unpacked = unpacked | dict(changed_by_links(unpacked))
    # No layer has an entry for the root, so its time is undefined: umoci uses 1970.
    root = unpacked[b""]._replace(mtime_ns=DEFAULT_EPOCH * 10**9)
    return unpacked | {
        b"": root,
        b"usr/bin/kestrel": added_file(b"usr/bin/kestrel", 0o755, project.FILES["kestrel"]),
        b"etc/fsify-entrypoint": added_file(b"etc/fsify-entrypoint", 0o644, image_config()),
    }


def changed_by_links(unpacked: Listing) -> Iterator[tuple[bytes, Entry]]:
    """The files that hard links of the last layer name, with the metadata of these entries.

    containerd gives it to the file, while umoci ignores it.
    """
    with tarfile.open(fileobj=io.BytesIO(blob(image_manifest()["layers"][-1]["digest"]))) as layer:
        for link in filter(tarfile.TarInfo.islnk, layer):
            inode = unpacked[os.fsencode(link.name)].same_as
            mtime_ns = int(Decimal(link.pax_headers["mtime"]) * 10**9)
            for path, entry in unpacked.items():
                if entry.same_as == inode:
                    mode = stat.S_IFMT(entry.mode) | link.mode
                    changed = entry._replace(mode=mode, mtime_ns=mtime_ns)
                    yield path, changed._replace(uid=link.uid, gid=link.gid)


def added_file(path: bytes, mode: int, content: bytes) -> Entry:
    return Entry(
        mode=stat.S_IFREG | mode,
        uid=0,
        gid=0,
        mtime_ns=DEFAULT_EPOCH * 10**9,
        links=1,
        size=len(content),
        data=hashlib.sha256(content).hexdigest(),
        xattrs={},
        same_as=path,
    )


def image_config() -> bytes:
    return blob(image_manifest()["config"]["digest"])


def image_manifest() -> Any:
    [manifest] = json.loads((LAYOUT / "index.json").read_bytes())["manifests"]
    return json.loads(blob(manifest["digest"]))


def blob(digest: str) -> bytes:
    return (LAYOUT / "blobs" / digest.replace(":", "/")).read_bytes()


def test_umoci_shows_the_traps(unpacked: Listing) -> None:
    """Otherwise the comparisons would prove less than they seem to."""
    below = {path.rpartition(b"/")[0]: path for path in unpacked}
    assert below[b"etc/apt/apt.conf.d"] == b"etc/apt/apt.conf.d/only"
    assert b"usr/share/doc/bash" in unpacked
    assert b"usr/share/doc/bash" not in below
    assert not {b"etc/issue.net", b"usr/bin/git", b"traps/empty", b"usr/share/doc/apt"} & {
        *unpacked
    }
    assert unpacked[b"traps/linked-to-layer-1"].same_as != unpacked[b"traps/linked"].same_as
    assert unpacked[b"usr/bin/gzip"].same_as == b"traps/linked-to-layer-1"
    assert unpacked[b"traps/linked"].links == 4
    assert unpacked[b"bin"].data == b"usr/bin"
    assert unpacked[b"traps/block"].data == (259, 70000)
    assert unpacked[b"traps/owned-far"].uid == 4000000000
    assert unpacked[b"traps/nanoseconds"].mtime_ns == 1680674828_123456789
    assert unpacked[b"traps/before-1970"].mtime_ns == -149622771_500000000
    assert unpacked[b"traps/attributes"].xattrs[b"user.binary"] == b"\x00\xff\n="
    assert unpacked[b"traps/both"].xattrs.keys() == {b"security.capability", b"user.name"}
    modes = {path: stat.S_IMODE(entry.mode) for path, entry in unpacked.items()}
    assert modes[b"traps/setuid"] == 0o4755
    assert modes[b"traps/sticky"] == 0o1777
    assert modes[b"traps/mode-0000"] == modes[b"traps/closed"] == 0
    assert {b"traps/caf\xe9", b"traps/" + b"n" * 255, b"traps/line\nbreak"} <= {*unpacked}


def write_project(folder: Path, filesystem: str, image: str) -> Path:
    project.write(folder, "kestrel", project.FILES["kestrel"])
    return project.write(
        folder,
        "fledge.toml",
        f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "{image}"
        [filesystem]
        type = "{filesystem}"
        {project.LOCAL_AGENT}
        """.encode(),
    )


@pytest.mark.parametrize(
    ("filesystem", "judge"),
    [
        pytest.param("ext4", ["e2fsck", "-fn"], id="ext4"),
        pytest.param("erofs", ["fsck.erofs"], id="erofs"),
    ],
)
def test_built_without_rights(filesystem: str, judge: list[str], unpacked: Listing) -> None:
    daemons.need(judge[0])
    with nobody() as user:
        shutil.copytree(LAYOUT, user.home / "layout")
        write_project(user.home, filesystem, "oci:layout:debian")
        done = user.run([user.python, "-m", "fledge", "build", "-q", "-o", "x.img"])
        assert done.returncode == 0, done.stderr
        image = user.home / "x.img"
        subprocess.run([*judge, image], check=True, capture_output=True)
        found = list_image(image)
        with open_artifact(image) as opened:
            assert list_tree(opened.tree) == found
            added = opened.format.own_paths
        assert [stat.S_IMODE(found.pop(path).mode) for path in added] == [0o700] * len(added)
        assert found == expected(unpacked)


def test_squashfs_to_the_second(unpacked: Listing, tmp_path: Path, fledge: project.Fledge) -> None:
    """What the kernel and the reader see is the image, but for parts of a second."""
    toml = write_project(tmp_path, "squashfs", f"oci:{LAYOUT}:debian")
    toml.write_text(toml.read_text().replace("[filesystem]", "[filesystem]\ncompression_level = 1"))
    done = fledge("build", "-o", "x.squashfs")
    assert done.code == 0, done.err
    image, told = tmp_path / "x.squashfs", fit_listing(expected(unpacked))
    assert list_image(image) == told
    assert list_tree(read(image).tree) == told
    assert "1 time set to the nearest that squashfs can hold" in done.err
    assert "/traps/before-1970" in done.err


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_by_a_loop_mount(
    filesystem: str, unpacked: Listing, tmp_path: Path, fledge: project.Fledge
) -> None:
    daemons.need(f"mkfs.{filesystem}")
    write_project(tmp_path, filesystem, f"oci:{LAYOUT}:debian")
    done = fledge("build", "-q", "-o", "x.img")
    assert done.code == 0, done.err
    assert list_image(tmp_path / "x.img") == expected(unpacked)
