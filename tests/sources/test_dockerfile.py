"""Artifacts from a Dockerfile: by every builder, from the lock, without a builder."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fledge as library
from fledge.project import lock, provenance
from fledge.sources import build_context
from fledge.tree import File
from fledge.tree.content import read_content
from tests.support import builders, daemons, project, registry
from tests.support.httpd import Server
from tests.support.project import Fledge
from tests.support.releases import KESTREL, publish

AMD64 = ("--platform", "linux/amd64")

DIGESTS = ("dockerfile", "context", "arguments")


@pytest.fixture(scope="module", params=builders.NAMES)
def started(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    with builders.environment(request.param) as variables:
        yield request.param, variables


@pytest.fixture
def builder(
    started: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """A builder that works, by its name, and a project that names it in ``tmp_path / "p"``."""
    name, variables = started
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    builders.make(tmp_path / "p", name)
    return name


@pytest.fixture
def buildah(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """buildah, which starts fastest, and a project as for `builder`."""
    with builders.environment("buildah") as variables:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        builders.make(tmp_path / "p", "buildah")
        yield


def files(artifact: Path) -> dict[str, bytes]:
    with library.open_artifact(artifact) as opened:
        return {
            path.decode(): b"".join(read_content(node.content))
            for path, node in opened.tree.walk()
            if isinstance(node, File)
        }


def pin_in(config: Path) -> dict[str, object]:
    """Return the only pin of the Dockerfile in a lock."""
    found = lock.load(lock.path_beside(config))
    assert found
    [pin] = found.sections["dockerfile"].pins.values()
    return {name: getattr(pin, name) for name in pin.__struct_fields__}


@pytest.mark.real
@pytest.mark.slow
def test_the_lock_pins_what_was_built(builder: str, fledge: Fledge, tmp_path: Path) -> None:
    config, artifact = tmp_path / "p" / "fledge.toml", tmp_path / "p" / "x.img"
    arguments = ("-c", config, "-o", artifact, *AMD64)
    done = fledge("lock", "-c", config, *AMD64)
    assert done.code == 0, done.err
    assert "RUN --mount" in done.err, "the builder shows what it does"
    pin = pin_in(config)
    assert str(pin["builder"]).startswith(f"{builder} ")
    # The artifact is in the context, and neither it nor the lock changes that.
    for _ in range(2):
        done = fledge("build", "--locked", "--offline", *arguments)
        assert done.code == 0, done.err
        assert "RUN" not in done.err
    found = files(artifact)
    assert found["srv/greeting"] == b"hello\n"
    assert found["srv/site/index.html"] == b"<h1>hello</h1>\n"
    sizes = len(builders.HIDDEN), len(builders.KEY)
    assert list(map(int, found["srv/sizes"].split())) == list(sizes), "the secrets were there"
    assert fledge("lock", "--check", "-c", config, *AMD64).code == 0
    assert "equal" in fledge("verify", artifact, "-c", config).out
    # Provenance says what it was built from, and by what.
    [item] = [each for each in provenance.load(artifact).inputs if each.role == "dockerfile"]
    assert (item.uri, item.digest) == ("Dockerfile", pin["config"])
    assert item.facts["builder"] == pin["builder"]
    assert [item.facts[name] for name in DIGESTS] == [str(pin[name]) for name in DIGESTS]
    # Nothing about the value of a secret is anywhere, not even its digest.
    written = [artifact, provenance.path_beside(artifact), lock.path_beside(config)]
    for secret in (builders.HIDDEN, builders.KEY):
        for text in (secret, hashlib.sha256(secret.encode()).hexdigest()):
            assert not any(text.encode() in path.read_bytes() for path in written)
    # Without a lock, the builder runs.
    lock.path_beside(config).unlink()
    done = fledge("build", *arguments)
    assert done.code == 0, done.err
    assert files(artifact)["srv/greeting"] == b"hello\n"


@pytest.mark.real
@pytest.mark.slow
def test_a_failing_instruction_is_named(builder: str, fledge: Fledge, tmp_path: Path) -> None:
    failing = (
        "FROM scratch\nCOPY busybox /bin/busybox\n# next\nARG WHAT=nothing\n"
        'RUN --mount=type=secret,id=token ["/bin/busybox", "sh", "-c", \\\n'
        '  "cat=/bin/busybox; /bin/busybox cat /run/secrets/token /$WHAT; exit 3"]\n'
    )
    builders.make(tmp_path / "p", builder, failing)
    done = fledge("build", "-q", "-c", tmp_path / "p" / "fledge.toml", *AMD64)
    assert done.code == 1
    assert " failed at " in done.err
    assert "Dockerfile:5: RUN --mount=type=secret,id=token" in done.err
    assert "/nothing': No such file" in done.err
    assert "***" in done.err
    assert builders.HIDDEN not in done.err
    assert list(tmp_path.glob("**/*.img*")) == []


@pytest.mark.real
@pytest.mark.slow
def test_an_interrupt_ends_the_builder(builder: str, tmp_path: Path) -> None:
    seconds = str(990_000 + os.getpid())
    builders.make(
        tmp_path / "p",
        builder,
        "FROM scratch AS base\nCOPY busybox /bin/busybox\n"
        'RUN ["/bin/busybox", "true"]\nFROM base\n'
        f'RUN ["/bin/busybox", "sh", "-c", "echo begun; exec /bin/busybox sleep {seconds}"]\n',
    )
    # A program of its own: a shell may have the signal ignored in this one.
    begin = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = f"{begin}; from fledge.__main__ import main; sys.argv[0] = 'fledge'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "build", "-c", tmp_path / "p" / "fledge.toml", *AMD64],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr
    said = next(line for line in process.stderr if line.rstrip().endswith("begun"))
    assert said
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT
    assert "interrupted; nothing was written" in rest
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(seconds.encode() in each for each in running)
    assert list(tmp_path.glob("**/*.img*")) + list(tmp_path.glob("**/.fledge-*")) == []
    if builder != "docker":  # buildah lists the containers of podman's builds, too
        daemons.need("buildah")
        left = subprocess.run(["buildah", "containers", "--quiet"], capture_output=True, check=True)
        assert left.stdout == b""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("buildah")
def test_what_a_lock_refuses(
    fledge: Fledge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, artifact = tmp_path / "p" / "fledge.toml", tmp_path / "x.img"
    locked = ("build", "--locked", "-c", config, "-o", artifact, *AMD64)
    assert fledge("lock", "-c", config, *AMD64).code == 0
    monkeypatch.setenv("PATH", "/nothing")
    assert fledge(*locked).code == 0, "no builder is needed"
    for name, old, new, words in (
        (
            *("site/index.html", "hello", "bye"),
            "a change of a file of its context (5 files, of which site/index.html was changed last;"
            " .dockerignore leaves files out)\n",
        ),
        ("Dockerfile", "# the shell", "# a shell", "a change of the Dockerfile\n"),
        (
            *("fledge.toml", '"hello"', '"bye"'),
            "of its context (5 files, of which fledge.toml was changed last; .dockerignore leaves"
            " files out) and of target, build_args or secrets\n",
        ),
    ):
        path = config.parent / name
        before = path.read_text()
        path.write_text(before.replace(old, new))
        done = fledge(*locked)
        assert done.code == 2
        assert (
            "fledge.lock pins the image of Dockerfile, but since it was built there was" in done.err
        )
        assert words in done.err
        assert "fledge lock" in done.err
        path.write_text(before)
    assert fledge(*locked).code == 0
    # Another machine has the lock, and not the image.
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / "other"))
    done = fledge(*locked)
    assert done.code == 2
    assert "which is not in the cache" in done.err
    done = fledge("verify", artifact, "-c", config)
    assert done.code == 1
    assert "gives another one: RUN instructions are not reproducible" in done.err
    assert "Bring the cache" in done.err
    assert "fledge lock" not in done.err, "a new image does not verify this artifact"
    done = fledge("check", "-v", "-c", config)
    assert done.code == 0, done.err
    assert "must be built, so it is not checked" in done.err
    # Nor does verify build what a provenance leaves out.
    record = provenance.path_beside(artifact)
    record.write_text(record.read_text().replace('"name": "dockerfile"', '"name": "other"'))
    done = fledge("verify", artifact, "-c", config)
    assert done.code == 1
    assert "Dockerfile would have to be built anew" in done.err


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("buildah")
def test_without_the_image_an_unlocked_build_runs_the_builder(
    fledge: Fledge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "p" / "fledge.toml"
    assert fledge("lock", "-c", config, *AMD64).code == 0
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / "other"))
    done = fledge("build", "-c", config, "-o", tmp_path / "x.img", *AMD64)
    assert done.code == 0, done.err
    assert "which is not in the cache" in done.err
    assert "STEP" in done.err
    # The lock takes what is in the cache, or builds.
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / "third"))
    assert "STEP" in fledge("lock", "-c", config, *AMD64).err
    assert "STEP" not in fledge("lock", "-c", config, *AMD64).err
    [record] = [
        each for each in provenance.load(tmp_path / "x.img").inputs if "diff_ids" in each.facts
    ]
    layer = tmp_path / "third" / "blobs" / "sha256" / record.facts["diff_ids"][0].partition(":")[2]
    layer.chmod(0o600)
    layer.write_bytes(b"damaged")
    assert "STEP" in fledge("lock", "-c", config, *AMD64).err
    assert fledge("build", "--locked", "-c", config, "-o", tmp_path / "x.img", *AMD64).code == 0


@pytest.mark.real
@pytest.mark.slow
def test_the_same_image_by_every_way_is_the_same_artifact(
    buildah: None, fledge: Fledge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "p" / "fledge.toml"
    artifact = tmp_path / "x.img"
    assert fledge("build", "-c", config, "-o", artifact, *AMD64).code == 0
    image = provenance.load(artifact).inputs[0].digest.hex
    archives = {
        "buildah": ("oci-archive", ["buildah", "push", image, "oci-archive:{}"]),
        "podman": ("docker-archive", ["podman", "save", "-o", "{}", image]),
    }
    for name, (_, command) in archives.items():
        daemons.run(*(each.format(tmp_path / name) for each in command))
    with daemons.dockerd() as socket:
        docker = ["docker", "--host", f"unix://{socket}"]
        daemons.run(*docker, "load", "--input", str(tmp_path / "podman"))
        daemons.run(*docker, "save", "--output", str(tmp_path / "docker"), image)
    archives["docker"] = ("docker-archive", [])
    for name, (transport, _) in archives.items():
        text = config.read_text()
        start, end = text.index("[source]"), text.index("[agent]")
        source = f'[source]\nimage = "{transport}:{tmp_path / name}"\n'
        other = project.write(
            config.parent, f"{name}.toml", (text[:start] + source + text[end:]).encode()
        )
        monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / f"cache-{name}"))
        done = fledge("build", "-c", other, "-o", tmp_path / f"{name}.img", *AMD64)
        assert done.code == 0, done.err
        assert (tmp_path / f"{name}.img").read_bytes() == artifact.read_bytes()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("buildah")
def test_a_build_from_the_shared_cache(
    fledge: Fledge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, artifact = tmp_path / "p" / "fledge.toml", tmp_path / "x.img"
    locked = ("build", "--locked", "-c", config, "-o", artifact, *AMD64)
    with registry.serve(tmp_path / "storage") as host:
        with config.open("a") as file:
            file.write(f'[cache]\nregistry = "{host}/cache"\ntrusted = true\n')
        assert fledge("lock", "-c", config, *AMD64).code == 0
        done = fledge(*locked, "--cache-to", f"{host}/cache")
        assert done.code == 0, done.err
        before = artifact.read_bytes()
        artifact.unlink()
        # Another machine, without the image and without a builder.
        monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / "other"))
        monkeypatch.setenv("PATH", "/nothing")
        done = fledge(*locked)
        assert done.code == 0, done.err
        assert "built before" in done.err
        assert artifact.read_bytes() == before
        project.write(config.parent, "site/index.html", b"changed")
        done = fledge(*locked)
        assert done.code == 2, "the artifact there is of another context"
        assert "a change of a file of its context" in done.err


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("buildah")
def test_a_dockerfile_alone(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    publish(github, {"kestrel": KESTREL})
    plain = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY . /all/\n"
    builders.make(folder, "buildah", plain)
    (folder / "fledge.toml").unlink()
    done = fledge("build", folder / "Dockerfile", *AMD64)
    assert done.code == 0, done.err
    artifact = folder / "web.img"
    assert "COPY . /all/" in done.err
    assert done.out == f"{artifact}\n"
    assert "names:" not in done.err
    assert "  sha256 " in done.err, "the summary of a single build"
    assert "all/site/index.html" in files(artifact)
    assert provenance.load(artifact).config == {
        "version": "1",
        "strategy": "oci_rootfs",
        "source": {"dockerfile": "Dockerfile"},
    }
    assert fledge("lock", "-c", folder / "Dockerfile", *AMD64).code == 0
    assert (folder / "Dockerfile.lock").exists()
    done = fledge("build", "--locked", folder / "Dockerfile", *AMD64)
    assert done.code == 0, done.err
    again = files(artifact)
    assert not any("web.img" in name or "Dockerfile.lock" in name for name in again)
    done = fledge("verify", artifact, "-c", folder / "Dockerfile")
    assert done.code == 0, done.out + done.err


# Without a builder.


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project with a Dockerfile, on a machine without programs. Returns its fledge.toml."""
    monkeypatch.setattr("fledge.host.programs.SYSTEM_FOLDERS", "/nothing")
    monkeypatch.setenv("PATH", "/nothing")
    monkeypatch.setenv("BUILD_TOKEN", builders.HIDDEN)
    return builders.make(tmp_path / "p", "auto")


def test_no_builder(bare: Path, fledge: Fledge) -> None:
    done = fledge("build", "-c", bare)
    assert done.code == 5
    assert "buildctl is not installed" in done.err
    assert "buildah is not installed" in done.err
    assert "apt install podman" in done.err


def test_offline(bare: Path, fledge: Fledge) -> None:
    done = fledge("build", "--offline", "-c", bare)
    assert done.code == 3
    assert "Dockerfile must be built, and a builder may use the network" in done.err


def test_check_needs_no_builder(
    bare: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fledge("check", "-c", bare)
    assert done.code == 0, done.err
    monkeypatch.delenv("BUILD_TOKEN")
    done = fledge("check", "-c", bare)
    assert done.code == 2
    assert "the variable BUILD_TOKEN, which has the secret token, is not set" in done.err
    (bare.parent / "Dockerfile").unlink()
    (bare.parent.parent / "key").unlink()
    done = fledge("check", "-c", bare)
    assert done.code == 2
    assert 'fledge.toml:7: [source] dockerfile = "Dockerfile": ' in done.err
    assert 'fledge.toml:10: [source] secrets = { token = { env = "BUILD_TOKEN" }' in done.err


def test_a_target_that_is_no_stage(bare: Path, fledge: Fledge) -> None:
    for target, hint in (("mak", "Did you mean make?"), ("xyz", "It has base, make, other.")):
        text = bare.read_text()
        bare.write_text(text.replace("[source]", f'[source]\ntarget = "{target}"'))
        for command in ("check", "build", "lock"):
            done = fledge(command, "-c", bare)
            assert done.code == 2, "and not 5, for a machine without a builder"
            assert f'[source] target = "{target}": Dockerfile has no stage' in done.err
            assert hint in done.err
        bare.write_text(text)


def test_what_the_dockerfile_does_not_use(bare: Path, fledge: Fledge) -> None:
    text = bare.read_text().replace("GREETING", 'GREETNG = "", HTTP_PROXY = "x", TARGETARCH')
    bare.write_text(text.replace("token = {", 'tokn = { env = "BUILD_TOKEN" }, token = {'))
    done = fledge("check", "-c", bare)
    assert done.code == 0, done.err
    assert "no ARG instruction of Dockerfile declares GREETNG" in done.err
    assert "no RUN instruction of Dockerfile mounts tokn" in done.err
    assert done.err.count("no ARG") == done.err.count("no RUN") == 1


def test_an_empty_dockerfile(bare: Path, fledge: Fledge) -> None:
    (bare.parent / "Dockerfile").write_text("# nothing\n")
    done = fledge("build", "-c", bare)
    assert done.code == 2
    assert f"{bare.parent}/Dockerfile is empty" in done.err


def test_a_dockerfile_that_is_named_alone(bare: Path, fledge: Fledge) -> None:
    """A failure is told as that of a single build."""
    done = fledge("build", bare.parent / "Dockerfile")
    assert done.code == 5
    assert "error: no builder for the Dockerfile can be used:" in done.err
    assert "1 of 1" not in done.err
    other = bare.parent / "Df"
    (bare.parent / "Dockerfile").rename(other)
    done = fledge("build", other)
    assert done.code == 2
    assert 'write [source] dockerfile = "Df" in a fledge.toml' in done.err
    assert "Df.Dockerfile" in done.err


def test_a_folder_with_nothing_but_a_dockerfile(
    bare: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare.unlink()
    monkeypatch.chdir(bare.parent)
    for arguments in ((), (".",)):
        done = fledge("build", *arguments)
        assert done.code == 2
        assert "build from the Dockerfile alone: fledge build ./Dockerfile\n" in done.err


def test_the_dockerfile_counts_once(bare: Path) -> None:
    """Its content has a digest of its own; its mode can be copied."""
    folder = bare.parent
    dockerfile = folder / "Dockerfile"
    before = build_context.read(dockerfile, folder)
    as_file = build_context.read(folder / "other", folder)
    dockerfile.write_text("FROM scratch\n")
    assert build_context.read(dockerfile, folder).digest == before.digest
    assert build_context.read(folder / "other", folder).digest != as_file.digest
    dockerfile.chmod(0o755)
    assert build_context.read(dockerfile, folder).digest != before.digest


def test_an_output_that_is_an_input(bare: Path, fledge: Fledge) -> None:
    done = fledge("build", "-c", bare, "-o", bare.parent / "Dockerfile")
    assert done.code == 2
    assert "Dockerfile is an input of this build" in done.err


def test_a_secret_is_no_part_of_the_context(bare: Path) -> None:
    folder = bare.parent
    before = build_context.read(folder / "Dockerfile", folder)
    key = project.write(folder, "secret/key", b"one")
    with_key = build_context.read(folder / "Dockerfile", folder)
    hidden = build_context.read(folder / "Dockerfile", folder, [folder / "secret" / "key"])
    assert "secret/*" in hidden.ignore.splitlines(), "nothing else is there"
    key.write_bytes(b"two")
    again = build_context.read(folder / "Dockerfile", folder, [folder / "secret" / "key"])
    assert again.digest == hidden.digest
    assert len({before.digest, with_key.digest, hidden.digest}) == 3
