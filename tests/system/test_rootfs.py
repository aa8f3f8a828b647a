"""An image becomes the same disk from every location, by every user, and it boots."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fledge.errors import ConfigError, HostError
from fledge.host.settings import DEFAULT_EPOCH
from fledge.oci import layers, reference, transports
from fledge.oci.manifest import Platform
from fledge.operations import build
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree import Directory, File, Tree
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from tests.support import daemons, project, registry, vm
from tests.support.layouts import make_layout
from tests.support.mounted import list_image, list_tree
from tests.support.pythons import nobody

AMD64 = Platform("linux", "amd64")
AGENT = project.LOCAL_AGENT


def rootfs(folder: Path, image: str, *tables: str) -> Path:
    """Write a project with the image ``image``."""
    project.write(folder, "kestrel", project.FILES["kestrel"])
    text = 'version = "1"\nstrategy = "oci_rootfs"\n' + AGENT + "".join(tables)
    return project.write(folder, "fledge.toml", f'{text}\n[source]\nimage = "{image}"\n'.encode())


def build_image(toml: Path, output: Path) -> build.Artifact:
    return build.build(toml, output, platform=AMD64)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_layout(tmp_path / "layout")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["header", "content", "size"])
def test_a_layer_that_is_damaged_in_the_cache_is_replaced(
    damage: str, layout: Path, tmp_path: Path, fledge: project.Fledge
) -> None:
    toml, output = rootfs(tmp_path, f"oci:{layout}:hello"), tmp_path / "x.img"
    good = build_image(toml, output)
    root = Session.default().cache.root
    diff_ids = good.inputs[0].facts["diff_ids"]
    assert isinstance(diff_ids, list)
    digest = Digest.parse(diff_ids[0])
    blob = Cache(root).path(digest)
    data = bytearray(blob.read_bytes())
    with tarfile.open(blob) as tar:
        [first, *_] = [entry for entry in tar if entry.isreg() and entry.size]
    data[{"header": first.offset, "content": first.offset_data, "size": 0}[damage]] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data[:700] if damage == "size" else data)
    output.unlink()
    done = fledge("build", "-c", str(toml), "-o", str(output), "--platform", "linux/amd64")
    assert done.code == 0
    assert "a layer in the cache is damaged: building again without it" in done.err
    assert hash_file(output).digest.hex == good.digest.hex
    assert Cache(root).find(digest)


def test_a_mistake_is_told_though_the_cache_is_intact(
    layout: Path, tmp_path: Path, fledge: project.Fledge
) -> None:
    build_image(rootfs(tmp_path, f"oci:{layout}:hello"), tmp_path / "x.img")
    extra = '[mappings]\n"app.conf" = "/bin/kestrel/x"\n'
    project.write(tmp_path, "app.conf", b"x")
    toml = rootfs(tmp_path, f"oci:{layout}:hello", extra)
    done = fledge("build", "-c", str(toml), "-o", "y.img", "--platform", "linux/amd64")
    assert done.code == 2
    assert "damaged" not in done.err


@pytest.mark.real
def test_what_the_kernel_finds(layout: Path, tmp_path: Path) -> None:
    daemons.need("e2fsck", "mount")
    extra = '[filesystem]\nsize_buffer_mb = 8\n[mappings]\n"app.conf" = "/etc/app.conf"\n'
    project.write(tmp_path, "app.conf", b"x")
    artifact = build_image(rootfs(tmp_path, f"oci:{layout}:hello", extra), tmp_path / "x.img")
    tree = Tree(mtime_ns=DEFAULT_EPOCH * 10**9)
    session = Session.default()
    image = transports.open_image(reference.OciLayout(layout, "hello"), AMD64, session)
    layers.unpack(image, tree, session)
    for path, mode, content in (
        (b"bin/kestrel", 0o755, project.FILES["kestrel"]),
        (b"etc/app.conf", 0o644, b"x"),
        (b"etc/fsify-entrypoint", 0o644, image.config),
    ):
        tree.add(path, File(mode=mode, mtime_ns=tree.mtime_ns, content=content))
    tree.add(b"lost+found", Directory(mode=0o700, mtime_ns=tree.mtime_ns))
    assert list_image(artifact.path) == list_tree(tree)
    subprocess.run(["e2fsck", "-fn", artifact.path], check=True, capture_output=True)


@pytest.mark.real
def test_one_image_one_artifact(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"oci:{layout}:hello"
    built: dict[str, str] = {}

    def add(way: str, image: str) -> None:
        monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / f"cache of {way}"))
        folder = tmp_path / way
        built[way] = build_image(rootfs(folder, image), folder / "x.img").digest.hex

    add("layout", source)
    for way in ("oci-archive", "docker-archive"):
        daemons.skopeo_copy(source, f"{way}:{tmp_path}/{way}.tar:hello:v1")
        add(way, f"{way}:{tmp_path}/{way}.tar")
    with registry.serve(tmp_path / "storage") as host:
        for compression in ("gzip", "zstd"):
            name = f"{host}/{compression}:v1"
            options = "--dest-tls-verify=false", "--dest-compress-format", compression
            daemons.skopeo_copy(source, f"docker://{name}", *options, "--dest-compress")
            add(compression, f"docker://{name}")
    for service in (daemons.dockerd, daemons.podman):
        with service() as socket:
            monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
            put = "docker-daemon:example.com/hello:v1", "--dest-daemon-host", f"unix://{socket}"
            daemons.skopeo_copy(source, *put)
            add(service.__name__, "docker-daemon:example.com/hello:v1")
    with nobody() as user:
        shutil.copytree(layout, user.home / "layout")
        rootfs(user.home, "oci:layout:hello")
        command: list[str | Path] = [user.python, "-m", "fledge", "build", "-q", "--json"]
        done = user.run([*command, "--platform", "linux/amd64"])
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["path"] == "layout.img"
        built["as nobody"] = answer["sha256"]
    assert len(built) == 8
    assert set(built.values()) == {built["layout"]}, built


@pytest.mark.real
def test_it_boots(layout: Path, tmp_path: Path) -> None:
    daemons.need("busybox")
    (tmp_path / "root/dev").mkdir(parents=True)
    (tmp_path / "root/proc").mkdir()
    shutil.copy(shutil.which("busybox") or "", tmp_path / "busybox")
    mappings = '[mappings]\n"root" = "/"\n"busybox" = "/bin/busybox"\n'
    toml = rootfs(tmp_path, f"oci:{layout}:hello", mappings)
    agent = (
        b"#!/bin/busybox sh\n"
        b"busybox mount -t proc proc /proc\n"
        b'echo "reached $0 as process $$ on $(busybox grep " / " /proc/mounts)"\n'
        b"busybox stat -c 'found %n %a %u:%g' /etc/fsify-entrypoint /bin/kestrel\n"
        b"busybox touch /written && echo writable\n"
        b"busybox poweroff -f\n"
    )
    project.write(tmp_path, "kestrel", agent)
    artifact = build_image(toml, tmp_path / "x.img")
    nothing = tmp_path / "nothing.cpio"
    done = subprocess.run(["cpio", "-o", "-H", "newc"], input=b"", capture_output=True, check=True)
    nothing.write_bytes(done.stdout)
    line = "root=/dev/nvme0n1 rootwait rw init=/bin/kestrel"
    console = vm.boot(nothing, cmdline=line, disk=artifact.path)
    assert "reached /bin/kestrel as process 1 on /dev/root / ext4 rw" in console
    assert "found /etc/fsify-entrypoint 644 0:0\n" in console
    assert "found /bin/kestrel 755 0:0\n" in console
    assert "writable\n" in console


def test_second_build_needs_only_the_cache(layout: Path, tmp_path: Path) -> None:
    toml = rootfs(tmp_path, f"oci:{layout}:hello")
    build_image(toml, tmp_path / "x.img")
    for blob in (layout / "blobs/sha256").iterdir():
        if not blob.read_bytes().startswith(b"{"):
            blob.unlink()
    build_image(toml, tmp_path / "x.img")


def test_initramfs_from_an_image(layout: Path, tmp_path: Path) -> None:
    binary = project.busybox()
    table = project.source((tmp_path / "busybox").as_uri(), binary)
    image = f'{table}image = "oci:{layout}:hello"\n'
    toml = project.make(tmp_path, AGENT, project.MAPPINGS, image, busybox_binary=binary)
    artifact = build_image(toml, tmp_path / "x.gz")
    roles = [item.role for item in artifact.inputs]
    assert roles[:3] == ["image", "busybox", "agent"]
    names = {item.uri.partition("@")[0]: item for item in artifact.inputs}
    assert "oci:layout:hello" in names


def test_busybox_for_another_architecture_than_the_image(layout: Path, tmp_path: Path) -> None:
    binary = project.busybox(machine=183)
    table = project.source((tmp_path / "busybox").as_uri(), binary)
    image = f'{table}image = "oci:{layout}:hello"\n'
    toml = project.make(tmp_path, AGENT, image, busybox_binary=binary)
    with pytest.raises(ConfigError, match="busybox is for arm64, the image for amd64"):
        build_image(toml, tmp_path / "x.gz")


def test_missing_e2fsprogs_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.host.programs.SYSTEM_FOLDERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    builder = '[filesystem]\nbuilder = "mkfs"\n'
    toml = rootfs(tmp_path, "docker://registry.invalid/never-asked", builder)
    with pytest.raises(HostError) as caught:
        build_image(toml, tmp_path / "x.img")
    assert "e2fsprogs" in caught.value.hint
    assert caught.value.exit_code == 5
