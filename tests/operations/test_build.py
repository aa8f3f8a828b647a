"""The content of artifacts, and that their bytes are reproducible."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from fledge.cpio import reader
from fledge.errors import ConfigError, CorruptError, HostError
from fledge.operations import build
from fledge.report import Reporter, Step
from fledge.session import Session
from fledge.tree import CharDevice, Directory, File, Symlink, Tree
from fledge.tree.content import read_content
from tests.support import golden, project
from tests.support import tars as tars_support
from tests.support.images import image as image_of
from tests.support.images import write_layout
from tests.support.layouts import make_layout
from tests.support.mounted import list_image
from tests.support.pythons import nobody, pythons, venv_with_fledge
from tests.support.rights import without_rights


class Kind(NamedTuple):
    """A project, and the artifact that every machine builds from it."""

    make: Callable[[Path], Path]
    golden: str


def make_erofs(folder: Path) -> Path:
    return project.make_rootfs(folder, 'type = "erofs"\ncompression = "zstd"')


def make_squashfs(folder: Path) -> Path:
    return project.make_rootfs(folder, 'type = "squashfs"')


KINDS = {
    "initramfs": Kind(project.make, golden.INITRAMFS),
    "ext4": Kind(project.make_rootfs, golden.ROOTFS),
    "erofs": Kind(make_erofs, golden.EROFS_ROOTFS),
    "squashfs": Kind(make_squashfs, golden.SQUASHFS_ROOTFS),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def build_project(toml: Path, output: Path) -> build.Artifact:
    return build.build(toml, output)


def unpack(artifact: Path) -> Tree:
    folder = artifact.with_suffix(".unpacked")
    folder.mkdir(exist_ok=True)
    return reader.read(artifact, folder).tree


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_in_it(tmp_path: Path) -> None:
    artifact = build_project(project.make(tmp_path), tmp_path / "out.gz")
    tree = unpack(artifact.path)
    nodes = dict(tree.walk())
    folders = {path for path, node in nodes.items() if isinstance(node, Directory)}
    assert folders == {
        *(b"", b"bin", b"dev", b"etc", b"etc/webserver", b"proc", b"run", b"sys", b"tmp"),
        *(b"usr", b"usr/bin", b"var", b"var/www", b"var/www/img"),
    }
    files = {path: node.mode for path, node in nodes.items() if isinstance(node, File)}
    assert files == {
        b"bin/busybox": 0o755,
        b"bin/kestrel": 0o755,
        b"etc/webserver/config.yaml": 0o644,
        b"init": 0o755,
        b"usr/bin/webserver": 0o755,
        b"var/www/img/logo.svg": 0o644,
        b"var/www/index.html": 0o644,
    }
    links = {path: node.target for path, node in nodes.items() if isinstance(node, Symlink)}
    assert links == {b"bin/" + name: b"busybox" for name in project.APPLETS if name != b"busybox"}
    devices = {
        path: (node.mode, node.major, node.minor)
        for path, node in nodes.items()
        if isinstance(node, CharDevice)
    }
    assert devices == {b"dev/console": (0o600, 5, 1), b"dev/null": (0o666, 1, 3)}
    assert nodes[b"tmp"].mode == 0o1777
    assert {(node.uid, node.gid) for node in nodes.values()} == {(0, 0)}
    assert {node.mtime_ns for node in nodes.values()} == {1704067200 * 10**9}


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    artifact = build_project(project.make(tmp_path), tmp_path / "out.gz")
    assert artifact.digest.hex == sha256(artifact.path)
    assert artifact.size == artifact.path.stat().st_size
    assert [(item.role, item.uri) for item in artifact.inputs] == [
        ("busybox", (tmp_path / "busybox").as_uri()),
        ("agent", "kestrel"),
        ("mapping", "payload/webserver.yaml"),
        ("mapping", "payload/webserver"),
        ("mapping", "payload/site/img/logo.svg"),
        ("mapping", "payload/site/index.html"),
        ("mappings", "#mappings"),
    ]
    assert artifact.inputs[1].digest.hex == sha256(tmp_path / "kestrel")
    assert artifact.inputs[2].digest.hex == sha256(tmp_path / "payload/webserver.yaml")


def test_golden(tmp_path: Path) -> None:
    artifact = build_project(project.make(tmp_path), tmp_path / "out.gz")
    assert artifact.digest.hex == golden.INITRAMFS


def test_source_date_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = project.make(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    artifact = build_project(toml, tmp_path / "out.gz")
    assert {node.mtime_ns for _, node in unpack(artifact.path).walk()} == {86400 * 10**9}
    assert artifact.digest.hex != golden.INITRAMFS


@pytest.mark.parametrize("value", ["yesterday", "-1", "1.5", "4294967296", "٣"])
def test_bad_source_date_epoch(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = project.make(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
        build_project(toml, tmp_path / "out.gz")


def test_init_of_the_user(tmp_path: Path) -> None:
    project.write(tmp_path, "my-init", b"#!/bin/sh\n")
    toml = project.make(tmp_path, '[init]\npath = "my-init"\n', project.MAPPINGS)
    artifact = build_project(toml, tmp_path / "out.gz")
    tree = unpack(artifact.path)
    node = tree.get(b"/init")
    assert isinstance(node, File) and node.mode == 0o755
    assert b"".join(read_content(node.content)) == b"#!/bin/sh\n"
    assert tree.get(b"/bin/kestrel") is None
    assert ("init", "my-init") in [(item.role, item.uri) for item in artifact.inputs]


def test_mapping_wins_over_the_built_in_init(tmp_path: Path) -> None:
    project.write(tmp_path, "my-init", b"#!/bin/sh\n", executable=True)
    toml = project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\n"my-init" = "/init"\n')
    tree = unpack(build_project(toml, tmp_path / "out.gz").path)
    node = tree.get(b"/init")
    assert isinstance(node, File) and b"".join(read_content(node.content)) == b"#!/bin/sh\n"
    assert tree.get(b"/bin/kestrel")


@pytest.mark.parametrize("target", ["/bin/nothing", "/etc", "/etc/plain"])
def test_no_executable_init(tmp_path: Path, target: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "init").symlink_to(target)
    project.write(tmp_path, "root/etc/plain", b"")
    toml = project.make(tmp_path, '[init]\nnone = true\n[mappings]\n"root" = "/"\n')
    with pytest.raises(ConfigError, match="no executable /init"):
        build_project(toml, tmp_path / "out.gz")


def test_source_that_changes_during_the_build(tmp_path: Path) -> None:
    output = project.write(tmp_path, "out.gz", b"old")

    class Meddler(Reporter):
        def note(self, message: str) -> None:
            raise AssertionError(message)

        def work(self, label: str):  # type: ignore[no-untyped-def]
            if label.startswith("writing"):
                project.write(tmp_path, "payload/webserver.yaml", b"port: 81\n")
            return super().work(label)

    toml = project.make(tmp_path)
    with pytest.raises(CorruptError, match=r"webserver\.yaml changed while it was read"):
        build.build(toml, output, session=Session.default(reporter=Meddler()))
    assert output.read_bytes() == b"old"


@pytest.mark.parametrize("output", ["payload/site/out.gz", "payload/webserver", "kestrel"])
def test_output_among_the_sources(tmp_path: Path, output: str) -> None:
    with pytest.raises(ConfigError, match=r"would contain the one before|is an input"):
        build_project(project.make(tmp_path), tmp_path / output)
    assert (tmp_path / "kestrel").read_bytes() == project.FILES["kestrel"]


OUTPUT = ("-o", "artifact")
OPTIONS = ("--platform", "linux/amd64")


def run(
    python: Path, arguments: list[str], environment: dict[str, str], folder: Path, umask: int = 0o22
) -> str:
    """Build in another process, and return the sha256 of the artifact."""
    done = subprocess.run(
        [python, "-m", "fledge", "build", "-q", "--json", *OPTIONS, *(arguments or OUTPUT)],
        env=os.environ | environment,
        cwd=folder,
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["sha256"])


THIS = Path(sys.executable)


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002, 0o077])
@every_kind
def test_same_whatever_the_umask(kind: Kind, tmp_path: Path, umask: int) -> None:
    kind.make(tmp_path)
    assert run(THIS, [], {}, tmp_path, umask) == kind.golden
    mode = (tmp_path / "artifact").stat().st_mode
    assert stat.S_IMODE(mode) == 0o666 & ~umask


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "C"},
        {"TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        {"PYTHONHASHSEED": "1", "PYTHONUTF8": "0", "LC_ALL": "POSIX"},
        {"PYTHONHASHSEED": "2", "PYTHONOPTIMIZE": "2"},
    ],
    ids=["east", "west", "posix", "optimised"],
)
@every_kind
def test_same_whatever_the_environment(
    kind: Kind, tmp_path: Path, environment: dict[str, str]
) -> None:
    kind.make(tmp_path)
    assert run(THIS, [], environment, tmp_path) == kind.golden


@pytest.mark.slow
@every_kind
def test_same_from_another_working_directory(kind: Kind, tmp_path: Path) -> None:
    kind.make(tmp_path / "some" / "where")
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    arguments = ["-c", "../../some/where/fledge.toml", "-o", "x.gz"]
    assert run(THIS, arguments, {}, elsewhere) == kind.golden


@pytest.mark.slow
@every_kind
def test_same_whatever_the_order_of_creation(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "FILES", dict(reversed(project.FILES.items())))
    kind.make(tmp_path)
    for path in (tmp_path / "payload").rglob("*"):
        os.utime(path, (1, 1))
    assert run(THIS, [], {}, tmp_path) == kind.golden


@pytest.fixture
def other_filesystem() -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no writable /dev/shm")
    with tempfile.TemporaryDirectory(prefix="fledge-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.slow
@every_kind
def test_same_from_another_filesystem(kind: Kind, other_filesystem: Path, tmp_path: Path) -> None:
    assert other_filesystem.stat().st_dev != tmp_path.stat().st_dev
    kind.make(other_filesystem)
    environment = {"TMPDIR": str(other_filesystem), "FLEDGE_CACHE_DIR": str(other_filesystem / "c")}
    assert run(THIS, ["-o", "x.gz"], environment, other_filesystem) == kind.golden


@pytest.mark.real
@pytest.mark.timeout(900)  # the first run makes a venv for each
@every_kind
def test_same_with_every_python(kind: Kind, tmp_path: Path) -> None:
    """Test all Pythons of this machine; CI runs all tests with each of them."""
    kind.make(tmp_path)
    for version, python in pythons().items():
        assert run(venv_with_fledge(python), [], {}, tmp_path) == kind.golden, version


@pytest.mark.real
@every_kind
def test_same_as_an_unprivileged_user(kind: Kind) -> None:
    with nobody() as user:
        kind.make(user.home / "project")
        command: list[str | Path] = [
            user.python,
            "-m",
            "fledge",
            "build",
            "-c",
            "project/fledge.toml",
            "--json",
            *OPTIONS,
            *OUTPUT,
        ]
        done = user.run(command)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["sha256"] == kind.golden
        if os.geteuid() == 0:
            assert (user.home / "artifact").stat().st_uid != 0


DISK_TABLES = {
    "ext4": "",
    "mkfs": 'builder = "mkfs"',
    "xfs": 'type = "xfs"',
    "btrfs": 'type = "btrfs"',
}


def make_with_image(folder: Path, format_name: str) -> Path:
    """Write a project with an image, for an initramfs or a disk."""
    if format_name == "initramfs":
        make_layout(folder / "layout")
        toml, before, after = (
            project.make(folder),
            "[source]",
            '[source]\nimage = "oci:layout:hello"',
        )
    elif format_name == "squashfs":
        return make_squashfs(folder)
    else:
        toml, before = project.make_rootfs(folder), "[filesystem]"
        after = f"[filesystem]\n{DISK_TABLES[format_name]}"
    text = toml.read_text()
    assert before in text
    toml.write_text(text.replace(before, after))
    return toml


class Swapping(Reporter):
    """Puts other bytes in the place of every blob of the cache, just before the tree is written."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        if title == "write":
            for entry in Session.default().cache.entries():
                other = entry.path.with_name("other")
                other.write_bytes(bytes(b ^ 0xFF for b in entry.path.read_bytes()))
                other.replace(entry.path)
        with super().step(title) as step:
            yield step

    def note(self, message: str) -> None:
        self.notes.append(message)


real = pytest.mark.real


@pytest.mark.parametrize(
    "format_name",
    [
        "initramfs",
        "ext4",
        "squashfs",
        *(pytest.param(each, marks=real) for each in ("mkfs", "xfs", "btrfs")),
    ],
)
@pytest.mark.slow
def test_a_blob_that_is_swapped_after_its_check_changes_nothing(
    tmp_path: Path, format_name: str
) -> None:
    toml = make_with_image(tmp_path, format_name)
    sound = build.build(toml, tmp_path / "sound")
    for blob in ("cached", "new"):
        if blob == "new":
            shutil.rmtree(Session.default().cache.root)
        reporter = Swapping()
        swapped = build.build(toml, tmp_path / "out", session=Session.default(reporter=reporter))
        assert not [note for note in reporter.notes if "damaged" in note]
        if format_name in ("xfs", "btrfs"):
            assert list_image(swapped.path) == list_image(sound.path)
        else:
            assert swapped.digest == sound.digest
        shutil.rmtree(Session.default().cache.root)
        build.build(toml, tmp_path / "out")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as nobody may not enter the parents of ``tmp_path``."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_cache_that_may_only_be_read_is_enough(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = make_with_image(public_folder, "ext4")
    cache = public_folder / "cache"
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(cache))
    sound = build.build(toml, public_folder / "sound.img")
    (cache / "in-use").unlink()
    for folder in (cache, *(path for path in cache.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    with without_rights():
        assert build.build(toml, public_folder / "out.img").digest == sound.digest
    for folder in (cache, *(path for path in cache.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("has_locks", [False, True])
def test_a_cache_on_a_read_only_filesystem_is_enough(tmp_path: Path, has_locks: bool) -> None:
    toml = make_with_image(tmp_path, "ext4")
    sound = build.build(toml, tmp_path / "sound.img")
    cache = Session.default().cache.root
    if not has_locks:
        (cache / "in-use").unlink()
    subprocess.run(["mount", "--bind", cache, cache], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
        assert build.build(toml, tmp_path / "out.img").digest == sound.digest
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_cache_that_may_only_be_read_serves_downloads_of_unknown_digest(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is downloaded may turn out to be in the cache, as the manifest of a tag does."""
    cache = public_folder / "cache"
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(cache))
    toml = make_with_image(public_folder, "ext4")
    agent = project.write(public_folder, "served", b"#!/bin/sh\n")
    toml.write_text(
        toml.read_text().replace(
            project.LOCAL_AGENT, f'[agent]\nsource_strategy = "http"\nurl = "{agent.as_uri()}"'
        )
    )
    sound = build.build(toml, public_folder / "sound.img")
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with without_rights():
            assert build.build(toml, public_folder / "out.img").digest == sound.digest
        agent.write_bytes(b"#!/bin/sh\n# new")
        with (
            without_rights(),
            pytest.raises(HostError, match=r"the cache .* permission denied"),
        ):
            build.build(toml, public_folder / "out.img")
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("hard", [128, 2048])
def test_an_image_of_more_layers_than_files_may_be_open(tmp_path: Path, hard: int) -> None:
    toml = make_with_image(tmp_path, "ext4")
    tars = [tars_support.pack(tars_support.file(f"file-{n}", b"%d" % n)) for n in range(300)]
    write_layout(tmp_path / "layout", image_of(*tars), "hello")
    limits = f'ulimit -Sn 128 && ulimit -Hn {hard} && exec "$@"'
    command = ["sh", "-c", limits, "sh", sys.executable, "-m", "fledge", "build"]
    done = subprocess.run(command, cwd=toml.parent, capture_output=True, text=True, check=False)
    if hard == 128:
        assert done.returncode == 1
        assert "too many open files" in done.stderr
        assert "ulimit -n" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
