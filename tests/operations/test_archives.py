"""``[archive]``: an initramfs with each compression, from fledge.toml to what reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.formats import artifact_requirements
from fledge.operations.build import Artifact, build
from fledge.project import provenance
from tests.support import project
from tests.support.project import Fledge

SUFFIXES = {"gzip": ".gz", "zstd": ".zst", "lz4": ".lz4", "none": ""}

every_compression = pytest.mark.parametrize("name", SUFFIXES)


def archive(name: str, more: str = "") -> str:
    return f'[archive]\ncompression = "{name}"\n{more}\n'


def made(folder: Path, *tables: str) -> Artifact:
    toml = project.make(folder, project.LOCAL_AGENT, project.MAPPINGS, *tables)
    return build(toml, folder / "plugin.cpio")


@every_compression
def test_every_command_takes_it(
    name: str, tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gzip = made(tmp_path / "gzip")
    project.make(tmp_path, project.LOCAL_AGENT, project.MAPPINGS, archive(name))
    done = fledge("build", "-q")
    file = f"plugin.cpio{SUFFIXES[name]}"
    assert (done.code, done.out) == (0, f"{file}\n")
    assert (tmp_path / file).read_bytes()[:4] == {
        "gzip": b"\x1f\x8b\x08\0",
        "zstd": b"\x28\xb5\x2f\xfd",
        "lz4": b"\x02\x21\x4c\x18",
        "none": b"0707",
    }[name]
    assert fledge("verify", file).out.startswith(f"equal: {file} ")
    record = provenance.load(tmp_path / file)
    assert record.uncompressed == (None if name == "none" else gzip.uncompressed)
    assert {"deflate", "lz4", "zstandard"} <= record.versions.keys()
    assert (record.digest == gzip.uncompressed) == (name == "none")
    shown = fledge("inspect", file).out
    assert f"{name if name != 'none' else 'not compressed'}, at byte 0" in shown
    different = fledge("diff", file, str(gzip.path))
    if name == "gzip":
        assert different.out == "all bytes are equal\n"
    else:
        assert "the trees are equal, but the bytes differ\n" in different.out
        assert "the uncompressed archives are equal" in different.out
    needed = {each.purpose for each in artifact_requirements(file)}
    assert {each for each in needed if "initramfs" in each} == {
        "initramfs",
        *([] if name == "none" else [f"{name} initramfs"]),
    }


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (archive("gzip", "level = 13"), "level = 13: must be a whole number from 1 to 12"),
        (archive("zstd", "level = 20"), "level = 20: must be a whole number from 1 to 19"),
        (archive("lz4", "level = 0"), "level = 0: must be a whole number from 1 to 12"),
        (archive("none", "level = 1"), 'level = 1: requires compression = "gzip" or "zstd"'),
        (archive("zst"), 'compression = "zst": did you mean "zstd"?'),
        (archive("gzip", "levle = 1"), "levle is unknown: did you mean level?"),
    ],
)
def test_mistakes(table: str, problem: str, tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path, table)
    done = fledge("check")
    assert done.code == 2
    assert f"[archive] {problem}" in done.err


def test_a_disk_has_no_archive(tmp_path: Path, fledge: Fledge) -> None:
    toml = project.make_rootfs(tmp_path)
    toml.write_text(toml.read_text() + archive("zstd"))
    done = fledge("check")
    assert done.code == 2
    assert '[archive]: only for strategy = "initramfs"; remove the table' in done.err


@pytest.mark.slow
def test_a_level_makes_a_difference(tmp_path: Path) -> None:
    text = {"big": b"".join(b"%d\n" % (number * number) for number in range(50_000))}
    tables = (project.LOCAL_AGENT, '[mappings]\n"big" = "/big"\n')
    for name, levels in (("gzip", (1, 12)), ("zstd", (1, 19)), ("lz4", (1, 12))):
        sizes = []
        for level in levels:
            toml = project.make(tmp_path, *tables, archive(name, f"level = {level}"))
            project.write(tmp_path, "big", text["big"])
            sizes.append(build(toml, tmp_path / "plugin.cpio").size)
        assert sizes[0] > sizes[1]


def test_a_kernel_that_cannot_unpack_it(tmp_path: Path, fledge: Fledge) -> None:
    """Kata's kernel has gzip alone."""
    project.make(tmp_path, project.LOCAL_AGENT, archive("zstd"))
    done = fledge("check", "--kernel", "kata")
    assert done.code == 1
    assert (
        "  zstd initramfs: build the kernel with CONFIG_RD_ZSTD=y, or choose another compression"
        " in [archive]\n"
    ) in done.out
    project.make(tmp_path, project.LOCAL_AGENT, archive("none"))
    assert fledge("check", "--kernel", "kata").code == 0


MANIFEST = """
[manifest]
name = "app"
version = "1"
[manifest.workload]
base_url = "http://127.0.0.1:80"
entrypoint = ["/bin/busybox"]
[manifest.resources]
cpu_cores = 1
memory_mb = {}
"""

BIG = '[mappings]\n"big" = "/big"\n'


@pytest.mark.parametrize(("memory", "noted"), [(4, True), (5, False)])
def test_an_archive_that_fills_the_memory(
    memory: int, noted: bool, tmp_path: Path, fledge: Fledge
) -> None:
    """Only 4 KiB of the file are in the artifact, but the guest has all of it in memory."""
    toml = project.make(tmp_path, project.LOCAL_AGENT, BIG, MANIFEST.format(memory), files={
        **project.FILES, "big": bytes(2 << 20),
    })  # fmt: skip
    done = fledge("build", "-c", str(toml), "-o", str(tmp_path / "plugin.cpio.gz"))
    assert done.code == 0
    words = f"the files take 2.0 MiB of memory, over half of the {memory} MiB of"
    assert (words in done.err) == noted
    again = fledge("manifest", str(tmp_path / "plugin.cpio.gz"), "-c", str(toml))
    assert (words in again.err) == noted
