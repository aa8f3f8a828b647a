"""Look at artifacts with fledge, and hash the same files with sha256sum and openssl, in turn.

    bench/look.py oci:FOLDER:TAG

Builds the image as ext4, and once more with one file added. Measures ``inspect``, ``inspect
--json``, ``inspect IMAGE PATH``, ``diff`` and ``verify``. sha256sum is portable code on many
systems; openssl uses the processor's instructions, as Python does. Both of them run on one core,
so processor time is given beside the time.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from measure import Run, measure, mib

RUNS = 3

CONFIG = """
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "{image}"
[filesystem]
type = "ext4"
[mappings]
"edited" = "/etc/edited"
"""
AGENT = b"#!/bin/sh\n"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        _prepare(folder, sys.argv[1])
        fledge = [sys.executable, "-m", "fledge"]
        # The exit code of diff is 1 if there is a difference.
        differs = ["sh", "-c", '"$@"; [ $? = 1 ]', "sh", *fledge, "diff"]
        commands = {
            "sha256sum": ["sha256sum", "one.img"],
            "openssl": ["openssl", "dgst", "-sha256", "one.img"],
            "sha256sum of both": ["sha256sum", "one.img", "two.img"],
            "openssl of both": ["openssl", "dgst", "-sha256", "one.img", "two.img"],
            "inspect": [*fledge, "inspect", "one.img"],
            "inspect --json": [*fledge, "inspect", "--json", "one.img"],
            "inspect PATH": [*fledge, "inspect", "one.img", "etc/edited"],
            "diff, equal": [*fledge, "diff", "one.img", "same.img"],
            "diff, one file": [*differs, "one.img", "two.img"],
            "build": [*fledge, "build", "-q", "-o", "again.img"],
            "verify": [*fledge, "verify", "one.img"],
        }
        runs: dict[str, list[Run]] = {title: [] for title in commands}
        for _ in range(RUNS):
            for title, command in commands.items():
                runs[title].append(_measure(command, folder))
        size = (folder / "one.img").stat().st_size
        print(f"| {mib(size)}, medians of {RUNS} | time | processor time | peak memory |")
        print("| --- | ---: | ---: | ---: |")
        for title, found in runs.items():
            seconds = statistics.median(run.seconds for run in found)
            processor = statistics.median(run.cpu_seconds for run in found)
            memory = mib(statistics.median(run.peak_memory for run in found))
            print(f"| {title} | {seconds:.2f} s | {processor:.2f} s | {memory} |")


def _prepare(folder: Path, image: str) -> None:
    """Build ``one.img``, an equal ``same.img``, and ``two.img`` with another file in it."""
    (folder / "agent").write_bytes(AGENT)
    (folder / "fledge.toml").write_text(CONFIG.format(image=image))
    for name, text in (("two.img", "other\n"), ("one.img", "edited\n")):
        (folder / "edited").write_text(text)
        build = [sys.executable, "-m", "fledge", "build", "-q", "-o", name]
        _measure(build, folder)
    shutil.copyfile(folder / "one.img", folder / "same.img")


def _measure(command: list[str], folder: Path) -> Run:
    return measure(command, folder, {"FLEDGE_CACHE_DIR": str(folder / "cache")})


if __name__ == "__main__":
    main()
