"""Other programs that unpack images, to compare trees with: containerd and umoci, as root."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fledge.host.settings import DEFAULT_EPOCH
from tests.support.daemons import need
from tests.support.mounted import Entry, Listing, list_folder

START_TIMEOUT = 30

CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/containerd.sock"
"""


UNDESCRIBED = DEFAULT_EPOCH * 10**9
"""The time of our folders that no layer has an entry for. Theirs have that of their making, or what
a folder had that once was there."""
METADATA = frozenset({"mode", "uid", "gid", "mtime_ns", "xattrs"})


class Refusal(Exception):
    """The program does not take the image."""


@dataclass(frozen=True)
class Containerd:
    """A containerd whose snapshots are whole folders (its snapshotter "native")."""

    folder: Path

    def unpack(self, archive: Path, diff_ids: Sequence[str]) -> Listing:
        """Return the tree of the only image for amd64 in a tar of an OCI layout or of Docker's.

        ``diff_ids`` are those that its config should have. Raises `Refusal`.
        """
        key = f"key-{time.monotonic_ns()}"
        platform = "--platform", "linux/amd64", "--snapshotter", "native"
        names = "--base-name", "oracle", "--digests", "--skip-digest-for-named"
        try:
            self._ctr("images", "import", *platform, *names, archive)
            parent = [chain_id(diff_ids)] if diff_ids else []
            snapshots = "snapshots", "--snapshotter", "native"
            [mount] = json.loads(self._ctr(*snapshots, "view", "--mounts", key, *parent))
            return list_folder(Path(mount["Source"]))
        finally:
            for name in self._ctr("images", "list", "--quiet").split():
                self._ctr("images", "remove", name)

    def _ctr(self, *arguments: str | Path) -> str:
        command = ["ctr", "--address", self.folder / "containerd.sock", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refusal(done.stderr)
        return done.stdout


@contextmanager
def containerd() -> Iterator[Containerd]:
    """Run containerd, without images."""
    need("containerd", "ctr")
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    with tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))
        with (folder / "log").open("wb") as log:
            command: list[str | Path] = [
                "containerd",
                "--config",
                folder / "config.toml",
                "--log-level",
                "error",
            ]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not (folder / "containerd.sock").exists():
                assert process.poll() is None and time.monotonic() < deadline, (
                    folder / "log"
                ).read_text()
                time.sleep(0.05)
            yield Containerd(folder)
        finally:
            process.terminate()
            process.wait()


def chain_id(diff_ids: Sequence[str]) -> str:
    """The name of the snapshot of these layers (OCI image-spec, config.md, "Layer ChainID")."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
    return chain


def umoci(layout: Path, tag: str, folder: Path) -> Listing:
    """Return the tree of an image in a layout, unpacked into ``folder``. Raises `Refusal`."""
    need("umoci")
    if os.geteuid() != 0:
        pytest.skip("umoci needs root to set owners and make devices")
    image = f"{layout}:{tag}"
    done = subprocess.run(
        ["umoci", "raw", "unpack", "--image", image, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if done.returncode:
            raise Refusal(done.stderr)
        return list_folder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_umoci_shows(entry: Entry) -> Entry:
    """It leaves out extended attributes without a value, as Go's old ``Header.Xattrs`` did."""
    return entry._replace(xattrs={name: value for name, value in entry.xattrs.items() if value})


def as_containerd_shows(entry: Entry) -> Entry:
    """It takes 1970 for any time before, which Linux and umoci do not.

    Its snapshots that are whole folders lose hard links of symlinks and devices in the next layer.
    """
    entry = entry._replace(mtime_ns=max(0, entry.mtime_ns))
    return entry if stat.S_ISREG(entry.mode) else entry._replace(links=None, same_as=b"")


def differences(
    ours: Listing,
    theirs: Listing,
    since: int,
    ignored: Set[str] = frozenset(),
    ignored_but_of_folders: Set[str] = frozenset(),
) -> list[str]:
    """Compare two trees, but for what they may differ in; none if the list is empty.

    ``since`` is the time before theirs was unpacked, in nanoseconds. Folders that changed since,
    in a layer that has no entry for them, have the time of that change in theirs. containerd also
    makes the parents that a whiteout lacks; in its snapshots that are no overlays a folder over a
    folder keeps extended attributes that only the lower one has.
    """
    found = []
    for path in sorted({*ours, *theirs} - {b""}):
        own, other = ours.get(path), theirs.get(path)
        is_new = other and stat.S_ISDIR(other.mode) and other.mtime_ns >= since
        if own is None or other is None:
            if not is_new:
                found.append(f"{path!r} is only in {'theirs' if other else 'ours'}")
            continue
        undescribed = own.mtime_ns == UNDESCRIBED and stat.S_ISDIR(own.mode)
        but = {*ignored, "mtime_ns"} if is_new or undescribed else {*ignored}
        if not stat.S_ISDIR(other.mode):
            but |= ignored_but_of_folders
        elif own.xattrs.items() < other.xattrs.items():
            but |= {"xattrs"}
        found += [
            f"{path!r}: {field} is {one!r}, and in theirs {two!r}"
            for field, one, two in zip(own._fields, own, other, strict=True)
            if one != two and field not in but
        ]
    return found
