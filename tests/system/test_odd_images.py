"""Images of odd parts, assembled at random: fledge makes the tree that containerd and umoci make.

``FLEDGE_ODD_IMAGES`` is the number of images, ``FLEDGE_ODD_SEED`` the seed of the first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from fledge.cli import app as cli
from fledge.ext4.format import Ext4
from fledge.oci import layers
from fledge.oci.manifest import REF_NAME
from fledge.tree import Tree
from tests.support import project
from tests.support.bounded import in_a_child
from tests.support.daemons import need
from tests.support.httpd import Server
from tests.support.images import OCI, sha256
from tests.support.mounted import Listing, list_tree
from tests.support.odd_images import (
    Documents,
    OddImage,
    archive,
    docker_files,
    files,
    odd_image,
    write_folder,
)
from tests.support.odd_registry import REPOSITORY, odd_registry
from tests.support.odd_tars import OddLayers, layers_through_links
from tests.support.oracles import (
    METADATA,
    UNDESCRIBED,
    Containerd,
    Refusal,
    as_containerd_shows,
    as_umoci_shows,
    containerd,
    differences,
    umoci,
)
from tests.support.tars import file, pack, span

COUNT = int(os.environ.get("FLEDGE_ODD_IMAGES", "60"))
SEED = int(os.environ.get("FLEDGE_ODD_SEED", "0"))

pytestmark = [pytest.mark.real, pytest.mark.timeout(300 + 10 * COUNT)]

MAX_SECONDS = 20
"""Seconds of processor time for one image."""
MAX_MEMORY = 256 << 20

MAX_SHOWN = 100
"""Differences in a message."""

ADDED = (b"lost+found", b"etc", b"usr", b"bin")
"""What a disk has beside the image. No odd image has these names."""
CONFIG = b"etc/fsify-entrypoint"
"""The path of the image's config on a disk."""
REFUSED = (2, 4)
"""The exit codes for an image that is refused."""

OURS_ALONE = {
    "too many symlinks": 'containerd takes "a -> a/../b" for b; to Linux and umoci that is a loop',
    "is an image for linux/arm64": "an empty platform in the index says nothing, so the config"
    " counts; containerd takes it for the platform of the host",
    "has no rootfs": "nothing tells it from an artifact; skopeo does not look, containerd counts 0",
}
"""What only fledge refuses, by a part of its message, and why."""

FLEDGE_TOML = """
version = "1"
strategy = "oci_rootfs"
[source]
image = "{image}"
[filesystem]
size_buffer_mb = 8
[agent]
source_strategy = "local"
path = "kestrel"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Containerd]:
    with containerd() as running:
        yield running


@dataclass
class Tally:
    """What became of the images."""

    taken: Counter[str] = field(default_factory=Counter)
    """By who took them."""
    peak: int = 0
    """Bytes."""
    wrong: list[str] = field(default_factory=list)


class Built(NamedTuple):
    """The end of one build."""

    code: int
    said: str
    disk: Listing
    """What the image has on the disk; empty if there is none."""
    config: str = ""
    """The sha256 of the image's config."""


def build(folder: Path, image: str) -> Built:
    """Build a disk of an image, named as in ``folder``, by the command."""
    os.chdir(folder)
    os.environ["FLEDGE_CACHE_DIR"] = str(folder / "cache")
    project.write(folder, "kestrel", project.FILES["kestrel"])
    project.write(folder, "fledge.toml", FLEDGE_TOML.format(image=image).encode())
    code = 0
    with Path("output").open("w") as output, redirect_stdout(output), redirect_stderr(output):
        try:
            cli.app(["build", "--platform", "linux/amd64", "-o", "x.img"])
        except SystemExit as end:
            code = int(end.code or 0)
    said = Path("output").read_text()
    if code:
        return Built(code, said, {})
    listing = list_tree(Ext4.read(Path("x.img"), folder, None).tree)
    kept = {path: each for path, each in listing.items() if path.split(b"/")[0] not in ADDED}
    return Built(code, said, kept, str(listing[CONFIG].data))


def test_trees(tmp_path: Path, daemon: Containerd) -> None:
    tally = Tally()
    for seed in range(SEED, SEED + COUNT):
        folder = tmp_path / str(seed)
        try_image(odd_image(seed), Random(seed), folder, daemon, tally)  # noqa: S311
        shutil.rmtree(folder)
    print(f"{dict(tally.taken)}, at most {tally.peak >> 20} MiB")
    assert not tally.wrong, "\n".join(tally.wrong[:MAX_SHOWN])


def try_image(
    image: OddImage, chosen: Random, folder: Path, daemon: Containerd, tally: Tally
) -> None:
    as_docker = chosen.random() < 0.2
    made = docker_files(image.odd) if as_docker else files(image.odd)
    write_folder(folder / "layout", made)
    write_folder(folder / "plain", files(image.plain))
    packed = folder / "image.tar"
    packed.write_bytes(archive(made))
    reference = "docker-archive:image.tar" if as_docker else "oci-archive:image.tar"
    if not as_docker and chosen.random() < 0.5:
        reference = "oci:layout"

    built, peak = in_a_child(partial(build, folder, reference), MAX_SECONDS)
    since = time.time_ns()
    theirs: dict[str, Listing] = {}
    with suppress(Refusal):
        theirs["umoci"] = umoci(folder / "plain", "latest", folder / "rootfs")
    with suppress(Refusal):
        theirs["containerd"] = daemon.unpack(packed, diff_ids(image.odd))
    if "containerd" not in theirs and image.odd.tars:
        with suppress(Refusal):
            packed.write_bytes(archive(files(image.plain)))
            theirs["containerd, of the plain image"] = daemon.unpack(packed, diff_ids(image.plain))

    problems = list(wrong(built, theirs, image, since))
    if peak > MAX_MEMORY:
        problems.append(f"it takes {peak >> 20} MiB")
    tally.taken[" ".join([*theirs, *(["fledge"] if built.code == 0 else [])])] += 1
    tally.peak = max(tally.peak, peak)
    odd = [*image.parts, *image.layers.parts]
    tally.wrong += [f"image {folder.name}: {each}\n  {reference}, {odd}" for each in problems[:3]]


def wrong(built: Built, theirs: dict[str, Listing], image: OddImage, since: int) -> Iterator[str]:
    if built.code not in (0, *REFUSED) or "internal error" in built.said:
        yield f"exit code {built.code}: {built.said}"
    if built.code:
        known = any(part in built.said for part in OURS_ALONE)
        if "containerd" in theirs and not known and not image.layers.late_whiteouts:
            yield f"only fledge refuses it: {built.said}"
        return
    if "umoci" in theirs and image.odd.tars:
        # It ignores what the entry of a hard link says beside the name.
        ignored = METADATA if image.layers.hard_links else frozenset()
        shown = {path: as_umoci_shows(entry) for path, entry in built.disk.items()}
        for each in differences(shown, theirs["umoci"], since, ignored_but_of_folders=ignored):
            yield f"umoci: {each}"
    # It lets a whiteout hide what its own layer has before it, unlike the specification and umoci.
    if not image.layers.late_whiteouts:
        # It sets the times of folders last, also where something else has replaced them.
        ignored = frozenset({"mtime_ns"} if image.layers.replaced_folders else ())
        shown = {path: as_containerd_shows(entry) for path, entry in built.disk.items()}
        for name in theirs.keys() - {"umoci"}:
            their = {path: as_containerd_shows(entry) for path, entry in theirs[name].items()}
            for each in differences(shown, their, since, ignored):
                yield f"{name}: {each}"


def test_links_that_lead_through_missing_components(tmp_path: Path, daemon: Containerd) -> None:
    taken = 0
    for seed in range(SEED, SEED + COUNT):
        tars = layers_through_links(Random(seed))  # noqa: S311
        documents = Documents.make(tars, tars)
        documents.layer_type = f"{OCI}.layer.v1.tar"
        documents.annotations = {REF_NAME: "latest"}
        folder = tmp_path / str(seed)
        write_folder(folder / "layout", files(documents))
        packed = folder / "image.tar"
        packed.write_bytes(archive(files(documents)))
        tree = Tree(mtime_ns=UNDESCRIBED)
        since = time.time_ns()
        try:
            theirs = [
                umoci(folder / "layout", "latest", folder / "rootfs"),
                daemon.unpack(packed, diff_ids(documents)),
            ]
        except Refusal:
            continue
        for tar in tars:
            layers.apply(tree, span(folder, tar))
        for their in theirs:
            assert not differences(list_tree(tree), their, since), f"layers {seed}"
        taken += 1
    assert taken > COUNT // 3


def test_registries(tmp_path: Path) -> None:
    """fledge takes the image that skopeo takes from a registry with odd answers."""
    taken, wrong = Counter[str](), list[str]()
    for seed in range(SEED, SEED + COUNT):
        folder = tmp_path / str(seed)
        chosen = Random(seed)  # noqa: S311
        tars = [pack(file(f"a{number}", b"a")) for number in range(chosen.randint(1, 3))]
        image = odd_image(seed, OddLayers(tars))
        with Server() as server:
            answers = odd_registry(image.odd, chosen, server)
            name = f"docker://{urlsplit(server.url('')).netloc}/{REPOSITORY}:odd"
            folder.mkdir()
            built, peak = in_a_child(partial(build, folder, name), MAX_SECONDS)
            config = skopeo_config(name, folder / "skopeo")
        taken[f"{'fledge' if built.code == 0 else ''} {'skopeo' if config else ''}".strip()] += 1
        problems = []
        if built.code not in (0, *REFUSED, 3) or "internal error" in built.said:
            problems.append(f"exit code {built.code}: {built.said}")
        if peak > MAX_MEMORY:
            problems.append(f"it takes {peak >> 20} MiB")
        if config and built.code and not any(part in built.said for part in OURS_ALONE):
            problems.append(f"only fledge refuses it: {built.said}")
        if config and not built.code and built.config != config:
            problems.append(f"it has the config {built.config}, not {config}")
        if not built.code and built.disk != expected_disk(image.odd, folder):
            problems.append("it has another tree")
        odd = [answers.challenge, *answers.parts, *image.parts]
        wrong += [f"registry {seed}: {each}\n  {odd}" for each in problems]
        shutil.rmtree(folder)
    print(dict(taken))
    assert not wrong, "\n".join(wrong[:MAX_SHOWN])


def skopeo_config(name: str, folder: Path) -> str:
    """Return the sha256 of the config that skopeo finds; empty if it refuses the image."""
    need("skopeo")
    skopeo = "skopeo", "--insecure-policy", "--override-arch", "amd64", "--override-os", "linux"
    done = subprocess.run(
        [*skopeo, "copy", "--quiet", "--src-tls-verify=false", name, f"dir:{folder}"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return ""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return str(manifest["config"]["digest"]).removeprefix("sha256:")


def expected_disk(image: Documents, folder: Path) -> Listing:
    tree = Tree(mtime_ns=UNDESCRIBED)
    for tar in image.tars:
        layers.apply(tree, span(folder, tar))
    return list_tree(tree)


def diff_ids(image: Documents) -> list[str]:
    return [f"sha256:{sha256(tar)}" for tar in image.tars]
