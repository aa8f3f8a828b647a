"""Build an image again after one mapped file was edited, with a full cache.

In the first such build the cached layers have no stamps, so they are verified by SHA-256. Beside it
stands SHA-256 of the artifact alone: no build can be faster, because one digest cannot be computed
in parts, and the first block of a filesystem depends on all files.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import (
    Row,
    Run,
    Way,
    add_image,
    fledge,
    image,
    in_turn,
    main,
    measure,
    version,
    write_config,
)

from fledge.store.stamps import SETTLING

HASH = ("openssl", "dgst", "-sha256", "image")


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    layout, tag = image(arguments)
    write_config(folder, f"oci:{layout}:{tag}", '[mappings]\n"app.conf" = "/etc/app.conf"\n')
    numbers = itertools.count()

    def build() -> Run:
        (folder / "app.conf").write_text(f"number = {next(numbers)}\n")
        return fledge(folder, "build", "-q", "-o", "image")

    build()
    time.sleep(SETTLING / 10**9)
    yield Row("first build after an edit", [build()])
    ways = [
        Way("build after an edit", build),
        Way(
            "SHA-256 of the artifact",
            partial(measure, HASH, folder),
            peer=version(HASH[0], "version"),
        ),
    ]
    yield from in_turn(arguments, ways)


if __name__ == "__main__":
    main(benchmark, __doc__, add_image, runs=7)
