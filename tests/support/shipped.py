"""Artifacts to push, built by fledge from small projects."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import fledge as library
from fledge.host.settings import Settings
from fledge.oci.artifact import MIN_CHUNK
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support import images, project, tars

MACHINES = {"amd64": 62, "arm64": 183}
"""The machines of ELF programs."""

CHUNK = MIN_CHUNK
"""The size of the chunks of a small artifact."""


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same at every run."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - no secret


PAYLOAD = 5 * CHUNK
"""Bytes of the file in the disks of `build_all`, which are `noise`."""


def build_all(folder: Path) -> Path:
    """Build a disk and an initramfs for each architecture: ``ARCHITECTURE/NAME``."""
    for architecture in MACHINES:
        disk(folder, architecture=architecture, payload=noise(PAYLOAD))
        initramfs(folder, architecture=architecture)
    return folder


def copy(artifact: Path, folder: Path) -> Path:
    """Copy an artifact and its documents into a new folder. Returns the copy."""
    folder.mkdir()
    names = (artifact.name, f"{artifact.name}.provenance.json", f"{artifact.name}.manifest.json")
    for name in names:
        if (source := artifact.with_name(name)).exists():
            subprocess.run(["cp", "--sparse=always", source, folder], check=True)
    return folder / artifact.name


def disk(
    folder: Path,
    name: str = "web.img",
    *,
    architecture: str = "amd64",
    payload: bytes = b"",
    table: str = "",
    filesystem: str = "size_buffer_mb = 16",
) -> Path:
    """Build a disk with a plugin manifest, in a project of its own. Returns the artifact.

    ``table`` extends the table of the manifest, ``filesystem`` is that of the filesystem.
    """
    program = project.program(MACHINES[architecture])
    layer = tars.pack(
        tars.folder("usr/sbin"),
        tars.file("usr/sbin/nginx", program, mode=0o755),
        tars.file("usr/sbin/payload", payload),
    )
    run = {"Entrypoint": ["nginx"], "ExposedPorts": {"80/tcp": {}}}
    image = images.image(layer, architecture=architecture, config=run)
    source = folder / f"project-{name}-{architecture}"
    images.write_layout(source / "layout", image, "1.27")
    project.write(source, "kestrel", program)
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:1.27"
        [filesystem]
        {filesystem}
        {project.LOCAL_AGENT}
        [manifest]
        {table}
    """
    toml = project.write(source, "fledge.toml", text.encode())
    return _build(folder, toml, architecture, name)


def initramfs(folder: Path, name: str = "plugin.cpio.gz", *, architecture: str = "amd64") -> Path:
    """Build an initramfs without a plugin manifest. Returns the artifact."""
    source = folder / f"project-{name}-{architecture}"
    machine = MACHINES[architecture]
    files = {**project.FILES, "payload/webserver": noise(700_000)}
    toml = project.make(source, files=files, busybox_binary=project.busybox(machine=machine))
    return _build(folder, toml, architecture, name)


def session(folder: Path, reporter: Reporter | None = None, *, offline: bool = False) -> Session:
    """A session with a cache of its own in a folder, and no pause between retries."""
    return Session(Settings(), Cache(folder / "cache"), reporter or Reporter(), offline, backoff=0)


def _build(folder: Path, toml: Path, architecture: str, name: str) -> Path:
    target = folder / architecture / name
    target.parent.mkdir(exist_ok=True)
    built = library.build(toml, target, platform=f"linux/{architecture}", session=session(folder))
    return built.path


def config_of(folder: Path, name: str, architecture: str = "amd64") -> Path:
    """Return the fledge.toml that an artifact was built from."""
    return folder / f"project-{name}-{architecture}" / "fledge.toml"
