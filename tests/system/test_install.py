"""Installs fledge as users do: from wheel, sdist, single file, Debian package and image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import fledge
from fledge.formats import open_artifact
from fledge.project import provenance
from tests.support import images, pythons, registry, tars
from tests.support.agents import AGENT
from tests.support.guests import host_busybox
from tests.support.httpd import Server
from tests.support.project import busybox, source
from tests.support.releases import publish

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".cache"

# They download libraries and parts of Debian, and make a release.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "UV_CACHE_DIR": str(CACHE / "uv"), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dist/ of a release of this working copy, signed by fledge.key beside it."""
    copy = tmp_path_factory.mktemp("release") / "fledge"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (CHECKOUT / ".git").exists():
        names = subprocess.check_output(listed, cwd=CHECKOUT).decode().strip("\0").split("\0")
    else:  # an sdist
        names = [str(path.relative_to(CHECKOUT)) for path in CHECKOUT.rglob("*") if path.is_file()]
    for name in names:
        if (CHECKOUT / name).exists() and not name.startswith((".cache", ".venv")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, copy / name)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    run("git", "init", "--quiet", cwd=copy)
    run("git", "add", "--all", cwd=copy)
    run(*git, "commit", "--quiet", "--message=test", cwd=copy)
    fledge.keygen(copy.parent / "fledge")
    script = (sys.executable, "scripts/release", "--key", copy.parent / "fledge.key")
    run(*script, cwd=copy, env={"SOURCE_DATE_EPOCH": "1700000000", "PYTHONPATH": str(copy)})
    return copy / "dist"


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of fixtures/hello that needs no download."""
    folder = tmp_path_factory.mktemp("hello") / "hello"
    shutil.copytree(CHECKOUT / "fixtures/hello", folder)
    data = busybox()
    (folder / "busybox").write_bytes(data)
    with (folder / "fledge.toml").open("a") as file:
        file.write(source((folder / "busybox").as_uri(), data))
    return folder


@pytest.fixture(scope="module")
def expected(hello: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What this working copy builds."""
    output = tmp_path_factory.mktemp("expected") / "plugin.cpio.gz"
    fledge.build(hello / "fledge.toml", output=output)
    return output.read_bytes()


def assert_builds(command: Path, hello: Path, expected: bytes, output: Path) -> None:
    assert run(command, "version") == f"fledge {fledge.__version__}\n"
    run(command, "build", "-c", hello / "fledge.toml", "-o", output)
    assert output.read_bytes() == expected


def test_release_is_recorded_and_signed(released: Path) -> None:
    machine = os.uname().machine
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    stem = f"fledge_volant-{fledge.__version__}"
    names = [f"{stem}-py3-none-any.whl", f"{stem}.tar.gz", f"fledge-{machine}.pyz"]
    names.append(f"fledge_{fledge.__version__}_{architecture}.deb")
    suffixes = ("", ".provenance.json", ".provenance.dsse.json")
    files = [name + suffix for name in names for suffix in suffixes]
    assert sorted(os.listdir(released)) == sorted([*files, "SHA256SUMS"])
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=released)
    for name in names:
        assert provenance.load(released / name).epoch == 1700000000
        key = released.parent.parent / "fledge.pub"
        command = ("verify", "--no-rebuild", "--key", key, released / name)
        run(sys.executable, "-m", "fledge", *command)


def test_a_changed_working_copy_is_not_released(released: Path) -> None:
    copy = released.parent
    (copy / "forgotten").touch()
    try:
        done = subprocess.run(
            [sys.executable, "scripts/release"],
            cwd=copy,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        (copy / "forgotten").unlink()
    assert done.returncode == 1
    assert done.stderr == "release: commit these first, or remove them:\n?? forgotten\n"
    assert (released / "SHA256SUMS").exists()


def test_sdist_holds_what_builds_and_tests(released: Path, tmp_path: Path) -> None:
    [sdist] = released.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    tops = {name.split("/")[0] for name in names}
    assert {"fledge", "tests", "fixtures", "scripts", "release", "Makefile", "LICENSE"} <= tops
    hidden = {name for name in names if any(part.startswith(".") for part in name.split("/"))}
    assert {name.rpartition("/")[2] for name in hidden} <= {".gitignore", ".dockerignore"}
    assert not [name for name in names if "__pycache__" in name]
    run(sys.executable, "-m", "uv", "build", "--wheel", "--out-dir", tmp_path, sdist)
    [wheel] = tmp_path.glob("*.whl")
    [original] = released.glob("*.whl")
    assert wheel.name == original.name


def test_pins_fit_what_fledge_needs(tmp_path: Path) -> None:
    # uv keeps the versions of the file that it writes, as far as pyproject.toml allows.
    pins = shutil.copy(CHECKOUT / "release/requirements.txt", tmp_path / "requirements.txt")
    uv = (sys.executable, "-m", "uv", "-q", "pip", "compile", CHECKOUT / "pyproject.toml")
    options = ("--universal", "--fork-strategy", "fewest", "--python-version", "3.10")
    run(*uv, *options, "--no-header", "--no-annotate", "--generate-hashes", "--output-file", pins)
    before = [
        line
        for line in (CHECKOUT / "release/requirements.txt").read_text().splitlines()
        if "==" in line
    ]
    assert [line for line in Path(pins).read_text().splitlines() if "==" in line] == before


@pytest.mark.parametrize("number", pythons.pythons())
def test_every_python_installs_the_wheel(
    number: str, released: Path, hello: Path, expected: bytes, tmp_path: Path
) -> None:
    python = pythons.pythons()[number]
    [wheel] = released.glob("*.whl")
    # Compiling all libraries is left out: only those that a command loads are compiled then.
    quick = {"PIP_NO_COMPILE": "1", "PIP_QUIET": "1"}
    pipx = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    run(python, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python", "install")
    run(*pip, "--ignore-installed", "--only-binary", ":all:", wheel, env=quick)
    run(sys.executable, "-m", "pipx", "install", "--python", python, wheel, env={**quick, **pipx})
    uv = {"UV_TOOL_DIR": str(tmp_path / "uv"), "UV_TOOL_BIN_DIR": str(tmp_path / "uvbin")}
    run(sys.executable, "-m", "uv", "tool", "install", "--python", python, wheel, env=uv)
    for place in ("venv/bin", "bin", "uvbin"):
        assert_builds(tmp_path / place / "fledge", hello, expected, tmp_path / "out.cpio.gz")


@pytest.mark.parametrize("number", pythons.pythons())
def test_every_python_runs_the_single_file(
    number: str, released: Path, hello: Path, expected: bytes, tmp_path: Path
) -> None:
    [zipapp] = released.glob("*.pyz")
    command = tmp_path / "fledge"
    python = pythons.pythons()[number]
    command.write_text(f'#!/bin/sh\nHOME={tmp_path} exec {python} {zipapp} "$@"\n')
    command.chmod(0o755)
    assert_builds(command, hello, expected, tmp_path / "out.cpio.gz")


class Root:
    """A new Debian in a folder, with the release in /release and the project in /hello."""

    def __init__(self, path: Path):
        self.path = path

    def run(self, *command: str, variables: Mapping[str, str] | None = None) -> str:
        """Run a command inside, with /proc, which vanishes with the command."""
        env = {
            **(variables or {}),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
        }
        env |= {"DEBIAN_FRONTEND": "noninteractive", "PIP_NO_COMPILE": "1"}
        inside = ["chroot", str(self.path), "env", "-i", *(f"{k}={v}" for k, v in env.items())]
        script = f'mount -t proc proc "{self.path}/proc" && exec "$@"'
        return run("unshare", "--mount", "sh", "-c", script, "sh", *inside, *command)

    def files(self) -> set[str]:
        """The paths outside of what apt and dpkg keep for themselves."""
        own = ("var/lib/dpkg", "var/cache", "var/log", "var/lib/apt", "out", "proc")
        paths = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return {path for path in paths if not path.startswith(own)}


@pytest.fixture
def root(released: Path, hello: Path, tmp_path: Path) -> Iterator[Root]:
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        pytest.skip("takes root and debootstrap: run scripts/test-tools")
    archive = CACHE / "debian-root.tar"
    run(CHECKOUT / "scripts/debian-root", archive)
    folder = tmp_path / "root"
    folder.mkdir()
    run("tar", "-xf", archive, "-C", folder, "--numeric-owner")
    shutil.copytree(released, folder / "release")
    shutil.copytree(hello, folder / "hello")
    config = folder / "hello/fledge.toml"
    config.write_text(config.read_text().replace(str(hello), "/hello"))
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    # The authorities of this machine, if PyPI is behind a proxy of its own.
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    shutil.copy(authorities, folder / str(authorities).lstrip("/"))
    yield Root(folder)
    shutil.rmtree(folder)


@pytest.fixture
def hub(github: Server, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables for servers that play Docker Hub, with an nginx, and the releases of the agent."""
    publish(github, {"kestrel": AGENT, "kestrel-linux-arm64": AGENT})
    files = tars.file("bin/busybox", host_busybox(), mode=0o755), tars.symlink("bin/sh", "busybox")
    serve = tars.file("usr/sbin/nginx", b"#!/bin/sh\n", mode=0o755)
    image = images.image(tars.pack(*files, serve), config={"Entrypoint": ["/usr/sbin/nginx"]})
    with registry.serve(tmp_path / "storage") as host:
        registry.push(host, "library/nginx", image, "latest")
        mirrors = {"FLEDGE_REGISTRY_MIRRORS": f"docker.io={host}"}
        yield mirrors | {"FLEDGE_GITHUB_API": os.environ["FLEDGE_GITHUB_API"]}


def starts_a_project(root: Root, command: str, hub: Mapping[str, str]) -> bool:
    """Whether what ``fledge init nginx`` writes is built."""
    root.run(command, "init", "/out-web", "nginx", variables=hub)
    root.run(command, "build", "-c", "/out-web/fledge.toml", "-o", "/out.img", variables=hub)
    with open_artifact(root.path / "out.img") as opened:
        return opened.tree.get(b"bin/kestrel") is not None


def test_pipx_installs_on_a_new_debian(root: Root, expected: bytes, hub: dict[str, str]) -> None:
    assert not list(root.path.glob("usr/include/python3*"))
    assert not (root.path / "usr/bin/gcc").exists()
    wheel = next((root.path / "release").glob("*.whl")).name
    root.run("pipx", "install", f"/release/{wheel}")
    command = "/root/.local/bin/fledge"
    assert root.run(command, "version") == f"fledge {fledge.__version__}\n"
    root.run(command, "build", "-c", "/hello/fledge.toml", "-o", "/out.cpio.gz")
    assert (root.path / "out.cpio.gz").read_bytes() == expected
    assert starts_a_project(root, command, hub)


def test_debian_package_installs_and_leaves_nothing(
    root: Root, expected: bytes, hub: dict[str, str]
) -> None:
    package = next((root.path / "release").glob("*.deb")).name
    before = root.files()
    root.run("dpkg", "--install", f"/release/{package}")
    assert root.run("fledge", "version") == f"fledge {fledge.__version__}\n"
    root.run("fledge", "build", "-c", "/hello/fledge.toml", "-o", "/out.cpio.gz")
    assert (root.path / "out.cpio.gz").read_bytes() == expected
    assert starts_a_project(root, "fledge", hub)
    shutil.rmtree(root.path / "root/.cache")
    root.run("dpkg", "--verify", "fledge")
    # Other Pythons leave compiled modules too.
    (root.path / "usr/lib/fledge/rich/__pycache__/late.cpython-314.pyc").touch()
    root.run("dpkg", "--purge", "fledge")
    assert root.files() - before == set()


def test_lintian_finds_no_error(released: Path) -> None:
    if not shutil.which("lintian"):
        pytest.skip("no lintian: run scripts/test-tools")
    [package] = released.glob("*.deb")
    run("lintian", "--allow-root", "--fail-on", "error", package)


def test_image_builds_as_a_user(
    released: Path,
    hello: Path,
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if os.geteuid() != 0 or not shutil.which("buildah"):
        pytest.skip("takes root and buildah: run scripts/test-tools")
    archive = CACHE / "debian-root.tar"
    run(CHECKOUT / "scripts/debian-root", archive)
    monkeypatch.delenv("DOCKER_CONFIG")  # buildah wants the file to be there
    storage = ("--root", tmp_path / "storage", "--runroot", tmp_path / "run")
    buildah = ("buildah", *storage, "--storage-driver", "vfs")
    work = hello.parent / "work"
    work.mkdir(mode=0o777)
    work.chmod(0o777)
    hello.parent.chmod(0o755)
    try:
        base = run(*buildah, "from", "scratch").strip()
        run(*buildah, "add", "--quiet", base, archive, "/")
        run(*buildah, "commit", "--quiet", "--rm", base, "base")
        build = ("build", "--quiet", "--isolation", "chroot", "--build-arg", "BASE=localhost/base")
        run(*buildah, *build, "--tag", "fledge", released.parent)
        box = run(*buildah, "from", "--pull-never", "fledge").strip()
        volumes = ("--volume", f"{hello}:{hello}:ro", "--volume", f"{work}:/work")
        inside = ("run", "--isolation", "chroot", *volumes, box, "--")
        assert run(*buildah, *inside, "id", "-u") == "65532\n"
        run(*buildah, *inside, "fledge", "build", "-c", hello / "fledge.toml", "-o", "/work/out")
        config = run(*buildah, "inspect", "--format", "{{.OCIv1.Config.Entrypoint}}", box)
        assert config.strip() == "[fledge]"
        assert (work / "out").read_bytes() == expected
    finally:
        run(*buildah, "rm", "--all")
        shutil.rmtree(tmp_path / "storage")
