"""Builders of images, each with storage of its own, and a project with a Dockerfile."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import daemons, project

NAMES = ("docker", "podman", "buildah")

BUSYBOX = Path("/bin/busybox")
"""A static one, so that RUN instructions work in an image from scratch."""

DOCKER = """#!/bin/sh
# The daemon of the tests has no bridge, and a RUN instruction needs none.
case $1 in
    build) shift; exec {docker} build --network none "$@" ;;
    *) exec {docker} "$@" ;;
esac
"""

STORAGE = """
[storage]
driver = "vfs"
graphroot = "{folder}/data"
runroot = "{folder}/run"
"""

DOCKERFILE = """
FROM scratch AS base
COPY busybox /bin/busybox

FROM base AS make
ARG GREETING=none
# the shell needs no links
RUN --mount=type=secret,id=token --mount=type=secret,id=key \\
    ["/bin/busybox", "sh", "-c", "cd /; /bin/busybox mkdir out; echo $GREETING > out/greeting; \\
    /bin/busybox wc -c < run/secrets/token > out/sizes; \\
    /bin/busybox wc -c < run/secrets/key >> out/sizes"]

FROM base AS other
COPY site/index.html /other

FROM base
COPY --from=make /out /srv
COPY site /srv/site
CMD ["/bin/busybox", "sh"]
"""

HIDDEN = "nobody-may-see-this"
KEY = "a key\nof two lines\n"

SOURCE = """
[source]
dockerfile = "Dockerfile"
builder = "{}"
build_args = {{ GREETING = "hello" }}
secrets = {{ token = {{ env = "BUILD_TOKEN" }}, key = {{ file = "../key" }} }}
"""


@contextmanager
def environment(name: str) -> Iterator[dict[str, str]]:
    """Make a builder usable, and return the variables that fledge needs for it."""
    daemons.need(name, "busybox")
    with tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True) as folder:
        # podman and buildah refuse a DOCKER_CONFIG without a file.
        project.write(Path(folder), "config.json", b"{}")
        variables = {"BUILD_TOKEN": HIDDEN, "DOCKER_CONFIG": folder}
        if name != "docker":
            text = STORAGE.format(folder=folder)
            conf = project.write(Path(folder), "storage.conf", text.encode())
            yield {**variables, "CONTAINERS_STORAGE_CONF": str(conf)}
            return
        own = Path("/usr/bin/docker")  # not a newer client without the plugin buildx
        text = DOCKER.format(docker=own if own.exists() else shutil.which("docker"))
        project.write(Path(folder), "docker", text.encode(), executable=True)
        path = f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"
        with daemons.dockerd() as socket:
            yield {**variables, "DOCKER_HOST": f"unix://{socket}", "PATH": path}


def make(folder: Path, builder: str, dockerfile: str = DOCKERFILE, source: str = SOURCE) -> Path:
    """Write a project with a Dockerfile of several stages. Returns its fledge.toml."""
    project.write(folder, "Dockerfile", dockerfile.encode())
    project.write(folder, "busybox", BUSYBOX.read_bytes(), executable=True)
    project.write(folder, "site/index.html", b"<h1>hello</h1>\n")
    project.write(folder.parent, "key", KEY.encode())
    project.write(folder, "kestrel", project.program())
    text = (
        'version = "1"\nstrategy = "oci_rootfs"\n[filesystem]\nsize_buffer_mb = 8\n'
        + source.format(builder)
        + project.LOCAL_AGENT
    )
    return project.write(folder, "fledge.toml", text.encode())
