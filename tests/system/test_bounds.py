"""Hostile images and artifacts: the command refuses them, or takes them, in little memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.errors import CorruptError, explained_memory
from tests.support import project
from tests.support.images import descriptor, image, manifest, sha256, write_layout
from tests.support.tars import END, block

pytestmark = pytest.mark.slow

MAX_PEAK = 256 << 10
"""KiB of memory for one run of the command."""

# VmHWM, because ru_maxrss may be that of the parent process.
COMMAND = """
import atexit, sys
from pathlib import Path
from fledge.cli import app

def peak():
    status = Path("/proc/self/status").read_text()
    Path("peak").write_text(status.partition("VmHWM:")[2].split()[0])

atexit.register(peak)
app.main()
"""

LONG_PATH = b"/".join([b"d" * 250] * 15)


def pax(name: bytes, *records: tuple[bytes, bytes], typeflag: bytes = b"0") -> bytes:
    """An entry with an extended header."""
    lines = []
    for key, value in records:
        rest = b" %s=%s\n" % (key, value)
        size = len(rest) + next(n for n in range(1, 9) if len(str(len(rest) + n)) == n)
        lines.append(b"%d" % size + rest)
    return block(b"pax", b"".join(lines), b"x") + block(name, typeflag=typeflag)


def chains(start: int) -> bytes:
    """40 KiB as gzip, and 2 million folders."""
    entries = (
        pax(b"x", (b"path", b"%d%s/f" % (n, b"/d" * 1800))) for n in range(start, start + 1150)
    )
    return b"".join(entries) + END


def below_a_long_symlink() -> bytes:
    link = pax(b"l", (b"linkpath", LONG_PATH), typeflag=b"2")
    return link + b"".join(block(b"l/%d" % n) for n in range(100_000)) + END


def many_xattrs() -> bytes:
    records = [(b"SCHILY.xattr.user.%x" % n, b"") for n in range(16_000)]
    return b"".join(pax(b"%d" % n, *records) for n in range(100)) + END


def many_records() -> bytes:
    return (
        b"".join(block(b"pax", b"5 a=\n" * 16384, b"x") + block(b"%d" % n) for n in range(900))
        + END
    )


def many_holes() -> bytes:
    """300,000 runs of data."""
    count = 10_000
    lines = (b"%d\n" % count, *(b"%d\n1\n" % (n * 8192) for n in range(count)))
    sparse_map = b"".join(lines)
    data = sparse_map + bytes(-len(sparse_map) % 512) + b"x" * count
    version = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    version += b"32 GNU.sparse.realsize=%08d\n" % (count * 8192)
    return b"".join(block(b"pax", version, b"x") + block(b"%d" % n, data) for n in range(30)) + END


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs the command in a process of its own, and checks how much memory it took."""

    def run(*arguments: str) -> tuple[int, str]:
        process = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert int((tmp_path / "peak").read_text()) < MAX_PEAK
        return process.returncode, process.stderr

    return run


def write_project(folder: Path, image_name: str = "oci:layout") -> None:
    project.write(folder, "kestrel", b"#!/bin/sh\n")
    (folder / "fledge.toml").write_text(
        f'version = "1"\nstrategy = "oci_rootfs"\n{project.LOCAL_AGENT}\n'
        f'[source]\nimage = "{image_name}"\n'
    )


@pytest.mark.parametrize(
    ("tars", "words"),
    [
        pytest.param(lambda: [chains(0)], "layer 1 of 1", id="chains"),
        pytest.param(lambda: [chains(n) for n in (0, 1150, 2300)], "layer 1 of 3", id="layers"),
        pytest.param(lambda: [below_a_long_symlink()], "names and metadata", id="symlink"),
        pytest.param(lambda: [many_xattrs()], "names and metadata", id="xattrs"),
        pytest.param(lambda: [many_records()], "names and metadata", id="records"),
        pytest.param(lambda: [many_holes()], "names and metadata", id="holes"),
    ],
)
def test_hostile_images(
    tars: Callable[[], list[bytes]], words: str, tmp_path: Path, command: Command
) -> None:
    write_layout(tmp_path / "layout", image(*tars()))
    write_project(tmp_path)
    code, errors = command("build", "-o", "image")
    assert code == 4
    assert words in errors
    assert "of memory, the limit for an input of this size" in errors
    assert not (tmp_path / "image").exists()


def test_a_layer_that_is_listed_again_and_again(tmp_path: Path, command: Command) -> None:
    """33 million steps, once for the image and not for each of 5,000 layers."""
    far = (b"linkpath", b"d/../" * 790)
    entries = [
        block(b"d", typeflag=b"5"),
        pax(b"l", far, typeflag=b"2"),
        pax(b"m", far, typeflag=b"2"),
    ]
    tar = (
        b"".join(entries) + b"".join(block(b"%s/x" % b"lm"[n % 2 :][:1]) for n in range(8000)) + END
    )
    blob = image(tar).blobs[1]
    layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob)
    write_layout(tmp_path / "layout", manifest([layer] * 5000, [sha256(tar)] * 5000, [blob]))
    write_project(tmp_path)
    code, errors = command("build", "-o", "image")
    assert code == 4
    assert "of 5000" in errors


def test_memory_that_cannot_be_had(tmp_path: Path) -> None:
    """A failure of malloc is told in a person's words."""
    names = b"".join(block(b"%d" % n) for n in range(100_000)) + END
    write_layout(tmp_path / "layout", image(names))
    write_project(tmp_path)
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, "build", "-o", "image"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (90 << 20, 90 << 20)),
    )
    assert process.returncode == 4
    assert "the artifact of fledge.toml needs more memory than fledge can get" in process.stderr


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_each_failure_to_get_memory_is_explained(error: Exception) -> None:
    with pytest.raises(CorruptError, match=r"^x needs more memory"), explained_memory("x"):
        raise error
    with pytest.raises(OSError, match="No space"), explained_memory("x"):
        raise OSError(28, "No space left on device")
