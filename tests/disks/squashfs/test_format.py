"""The options of squashfs images, what a build says of them, and the commands that read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fledge.disks.squashfs.format import Squashfs
from fledge.errors import ConfigError
from fledge.formats import artifact_requirements
from fledge.operations import build, diff
from fledge.project.config import load
from fledge.tree.kernel import Requirement
from tests.support import project
from tests.support.project import Fledge


def make(folder: Path, *lines: str) -> Path:
    """Write a project with an image that becomes a squashfs with these options."""
    toml = project.make_rootfs(folder)
    table = "\n".join(('type = "squashfs"', *lines))
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", table))
    return toml


def test_the_options(tmp_path: Path) -> None:
    toml = make(
        tmp_path,
        'compression = "gzip"',
        "compression_level = 12",
        "block_size = 1024",
        'overlay_size = "512M"',
    )
    assert load(toml).format == Squashfs("gzip", 12, 1024, "512M")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('compression = "xz"', 'must be "zstd" or "gzip"'),
        ("compression_level = 0", "must be a whole number from 1 to 22"),
        ("compression_level = 23", "must be a whole number from 1 to 22"),
        (
            'compression = "gzip"\ncompression_level = 13',
            ":9: [filesystem] compression_level = 13: gzip has",
        ),
        ("block_size = 2", "must be a whole number from 4 to 1024"),
        ("block_size = 100", "block_size = 100: must be a power of 2, such as 128"),
        ('overlay_size = "1 GB"', 'must be like "1G" or "512M"'),
        ("overlay_size = 1", "must be text in quotes"),
        ("size_buffer_mb = 8", "requires type ="),
        ("preallocate = true", "requires type ="),
    ],
)
def test_impossible_options(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(make(tmp_path, line))
    assert words in str(error.value)


def test_default_names() -> None:
    assert Squashfs().default_output("nginx") == "nginx.squashfs"
    assert Squashfs().default_output(None) == "plugin.squashfs"
    assert Squashfs().read_only


def test_what_a_build_says(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, 'overlay_size = "1G"')
    done = fledge("build", "--platform", "linux/amd64")
    assert done.code == 0, done.err
    assert "put overlay_size=1G on the kernel's command line" in done.err
    for option in ("SQUASHFS", "SQUASHFS_ZSTD"):
        assert f"CONFIG_{option}=y" in done.err
    [image] = tmp_path.glob("*.squashfs")
    assert image.stat().st_size % 4096 == 0


def options_of(requirements: list[Requirement]) -> set[str]:
    return {option for each in requirements if each.essential for option in each.options}


def test_what_an_image_needs_of_a_kernel(tmp_path: Path) -> None:
    for name, driver in (("zstd", "SQUASHFS_ZSTD"), ("gzip", "SQUASHFS_ZLIB")):
        artifact = build.build(make(tmp_path / name, f'compression = "{name}"'), tmp_path / "out")
        found = list(artifact_requirements(artifact.path))
        written = list(Squashfs(compression=name).requirements())  # type: ignore[arg-type]
        assert {"SQUASHFS", driver, "OVERLAY_FS", "VIRTIO_BLK"} <= options_of(found)
        assert found == written


@pytest.mark.slow
def test_the_commands_read_it(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path)
    assert fledge("build", "-q", "-o", "x.squashfs", "--platform", "linux/amd64").code == 0
    shown = fledge("inspect", "x.squashfs")
    for words in ("squashfs", "zstd, in blocks of 128.0 KiB", "fragment block"):
        assert words in shown.out
    assert fledge("inspect", "x.squashfs", "/etc/webserver/config.yaml").out == (
        project.FILES["payload/webserver.yaml"].decode()
    )
    described = json.loads(fledge("inspect", "--json", "x.squashfs").out)
    assert described["filesystem"]["block_size"] == 128 << 10
    assert described["filesystem"]["flags"] == [
        *("always_fragments", "duplicates", "export", "no_xattrs", "options"),
    ]
    entries = {each["path"]: each for each in described["entries"]}
    assert entries["/usr/bin/kestrel"]["fragment"] == 0
    assert entries["/usr/bin/kestrel"]["sha256"]
    verified = fledge("verify", "x.squashfs")
    assert verified.code == 0, verified.err


@pytest.mark.slow
def test_it_is_compared_with_other_formats(tmp_path: Path) -> None:
    squashfs = build.build(make(tmp_path / "squashfs"), tmp_path / "x.squashfs").path
    ext4 = build.build(project.make_rootfs(tmp_path / "ext4"), tmp_path / "x.img").path
    difference = diff.diff(ext4, squashfs)
    assert difference.same_tree
    assert difference.not_compared == ("parts of a second", "/lost+found")
    gzip = build.build(make(tmp_path / "gzip", 'compression = "gzip"'), tmp_path / "gz").path
    difference = diff.diff(squashfs, gzip)
    assert difference.same_tree
    assert difference.container["compression"] == ("zstd", "gzip")
    shutil.copy(squashfs, tmp_path / "copy")
    assert diff.diff(squashfs, tmp_path / "copy").same_bytes
