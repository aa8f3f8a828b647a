"""Images that stand in for those of examples/, made of Debian's packages.

Docker Hub cannot be reached in the tests, so nginx, PostgreSQL, Node and Python are Debian's, and
Alpine is busybox with Debian's OpenRC behind a script that plays apk. The entrypoints are short
scripts that do what those of the real images do.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from fledge.tree import elf
from fledge.tree.content import Span
from tests.support import images, project, registry, tars
from tests.support.images import Manifest

_REPO = Path(__file__).parents[2]

MIRRORED = ("docker.io", "gcr.io")
"""The registries whose names `fill` plays."""

_USERS = """\
root:x:0:0:root:/root:/bin/sh
postgres:x:26:26::/var/lib/postgresql:/bin/sh
www-data:x:33:33::/var/www:/bin/false
nobody:x:65534:65534::/:/bin/false
"""
_GROUPS = "root:x:0:\npostgres:x:26:\nwww-data:x:33:\nnogroup:x:65534:\n"

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_POSTGRES = "usr/lib/postgresql/15"

_APK = """\
#!/bin/sh
# Plays apk: unpacks what this image has in store.
[ "$*" = "add --no-cache openrc" ] && exec tar -x -f /var/store/openrc.tar -C /
exit 1
"""

_RUN = '#!/bin/sh\nexec "$@"\n'

_SITE = "server { listen 80; root /usr/share/nginx/html; }\n"

_START_POSTGRES = """\
#!/bin/sh
# Does at the first start what the entrypoint of the real image does, but initdb has run before.
set -e
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chown -R postgres "$PGDATA" /run/postgresql
    exec su -s /bin/sh postgres -c "exec $0 $*"
fi
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    tar -x -f /var/lib/postgresql/template.tar -C "$PGDATA"
    chmod 0700 "$PGDATA"
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    postgres --single -D "$PGDATA" postgres <<EOF
ALTER USER postgres PASSWORD '$POSTGRES_PASSWORD'
CREATE DATABASE $POSTGRES_DB
EOF
    cat /docker-entrypoint-initdb.d/*.sql | postgres --single -j -D "$PGDATA" "$POSTGRES_DB"
fi
exec "$@"
"""


@cache
def packages() -> Path:
    """Return the folder with Debian's packages, unpacked."""
    folder = _REPO / ".cache" / "examples"
    subprocess.run([_REPO / "scripts" / "example-packages", folder], check=True)
    return folder.resolve()


def program(name: str) -> list[str | Path]:
    """Return the beginning of a command that runs a program of the packages on this machine."""
    path = packages() / name
    loader = os.fsdecode(elf.read(_span(path)).loader)
    folders = ":".join(map(str, _library_folders()))
    return [packages() / loader[1:], "--library-path", folders, path]


def fill(host: str) -> None:
    """Push the images into a registry that plays Docker Hub and gcr.io."""
    for name, manifest in _images():
        repository, _, tag = name.partition(":")
        registry.push(host, repository, manifest, tag or "latest")


def _images() -> Iterator[tuple[str, Manifest]]:
    """Yield the names and images."""
    base = tars.pack(*_base())
    yield "library/alpine:3.20", images.index(_image(base, _apk()), _other_alpine())
    yield (
        "library/nginx:1.27-alpine",
        _image(
            *(base, tars.pack(*_nginx())),
            Entrypoint=["/docker-entrypoint.sh"],
            Cmd=["nginx", "-g", "daemon off;"],
            ExposedPorts={"80/tcp": {}},
        ),
    )
    yield (
        "library/postgres:17",
        _image(
            *(base, tars.pack(*_postgres())),
            Entrypoint=["docker-entrypoint.sh"],
            Cmd=["postgres"],
            ExposedPorts={"5432/tcp": {}},
            Env=[f"{_PATH}:/{_POSTGRES}/bin", "PGDATA=/var/lib/postgresql/data"],
        ),
    )
    yield (
        "library/node:22-slim",
        _image(base, tars.pack(*_files("usr/bin/node", "usr/share/nodejs"))),
    )
    yield "library/python:3.12-slim", _image(base, tars.pack(*_python()))
    yield "distroless/static-debian12", _image(tars.pack(*_distroless()))


def _other_alpine() -> Manifest:
    """Make the image for the other architecture, which no test runs."""
    other, machine = ("amd64", 62) if _architecture() == "arm64" else ("arm64", 183)
    busybox = tars.file("bin/busybox", project.program(machine), mode=0o755)
    return images.image(tars.pack(tars.folder("srv"), busybox), architecture=other)


def _nginx() -> Iterator[tars.Entry]:
    yield from _files("etc/nginx", "usr/share/nginx", "usr/sbin/nginx")
    yield tars.folder("var/log/nginx")
    yield tars.folder("var/lib/nginx")
    yield tars.file("etc/nginx/conf.d/default.conf", _SITE.encode())
    yield _script("docker-entrypoint.sh", _RUN)


def _postgres() -> Iterator[tars.Entry]:
    yield from _files(f"{_POSTGRES}/bin/postgres", f"{_POSTGRES}/lib/plpgsql.so")
    yield from _files("usr/share/postgresql", "usr/share/zoneinfo", "var/lib/postgresql")
    yield _script("usr/local/bin/docker-entrypoint.sh", _START_POSTGRES)


def _python() -> Iterator[tars.Entry]:
    [library] = (packages() / "usr/lib").glob("python3.*")
    yield from _files(f"usr/bin/{library.name}", f"usr/lib/{library.name}")
    yield tars.symlink("usr/bin/python3", library.name)


def _distroless() -> Iterator[tars.Entry]:
    yield tars.folder("tmp", 0o1777)
    yield tars.file("etc/passwd", _USERS.encode())
    yield from _files("usr/share/zoneinfo/UTC")


def _image(*layers: bytes, **config: object) -> Manifest:
    """Make an image for this machine. ``config`` says how to run it."""
    return images.image(
        *layers,
        compressed=False,
        architecture=_architecture(),
        config={"Env": [_PATH], **config},
        history=True,
    )


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def _base() -> Iterator[tars.Entry]:
    """Yield the folders, users and shell of all images."""
    for name in ("bin", "sbin", "lib", "lib64"):
        yield tars.folder(f"usr/{name}")
        yield tars.symlink(name, f"usr/{name}")
    for name in ("dev", "etc", "proc", "root", "run", "srv", "sys", "usr/local/bin", "var/lib"):
        yield tars.folder(name)
    yield tars.folder("tmp", 0o1777)
    yield tars.symlink("var/run", "/run")
    yield tars.file("etc/passwd", _USERS.encode())
    yield tars.file("etc/group", _GROUPS.encode())
    busybox = packages() / "usr/bin/busybox"
    yield tars.file("usr/bin/busybox", busybox.read_bytes(), mode=0o755)
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    for applet in set(listed.stdout.split()) - {"busybox"}:
        yield tars.symlink(f"usr/bin/{applet}", "busybox")
    yield tars.symlink("usr/sbin/init", "../bin/busybox")


def _apk() -> bytes:
    """Return a layer with the script that plays apk, and what it installs."""
    names = (
        "openrc",
        "openrc-run",
        "openrc-shutdown",
        "rc-service",
        "rc-update",
        "start-stop-daemon",
    )
    files = _files("usr/lib/rc", *(f"usr/sbin/{name}" for name in names), "etc/rc.conf")
    folders = [tars.folder(f"etc/runlevels/{name}") for name in ("sysinit", "boot", "default")]
    openrc = tars.pack(*files, *folders, tars.folder("etc/init.d"), tars.folder("etc/conf.d"))
    return tars.pack(_script("usr/bin/apk", _APK), tars.file("var/store/openrc.tar", openrc))


def _script(name: str, text: str) -> tars.Entry:
    return tars.file(name, text.encode(), mode=0o755)


def _files(*names: str) -> Iterator[tars.Entry]:
    """Yield files, folders and links of the packages, with the libraries that they need."""
    root = packages()
    pending: list[Path] = []
    for name in names:
        found = sorted((root / name).rglob("*")) if (root / name).is_dir() else [root / name]
        pending += [each for each in found if each.is_symlink() or not each.is_dir()]
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        name = str(path.relative_to(root))
        if path.is_symlink() and ".so" not in path.name:
            yield tars.symlink(name, os.readlink(path))
            continue
        data = path.read_bytes()
        yield tars.file(name, data, mode=0o755 if os.access(path, os.X_OK) else 0o644)
        if data.startswith(elf.ELF_MAGIC):
            pending += _needed(path)


def _needed(path: Path) -> Iterator[Path]:
    """Yield the loader and the libraries of an ELF file, those that the packages have."""
    binary = elf.read(_span(path))
    if binary.loader:
        # /lib64 is a link.
        loader = packages() / os.fsdecode(binary.loader)[1:]
        yield loader.parent.resolve() / loader.name
    for library in map(os.fsdecode, binary.libraries):
        yield from [
            folder / library for folder in _library_folders() if (folder / library).exists()
        ][:1]


@cache
def _library_folders() -> Sequence[Path]:
    library = packages() / "usr/lib"
    return (*library.glob("*-linux-gnu"), library)


def _span(path: Path) -> Span:
    return Span(path, 0, path.stat().st_size)
