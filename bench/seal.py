"""Build a disk of 500 MiB with and without [verity], in turn. The difference is the sealing.

veritysetup, which makes the same tree, is measured beside it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import Row, Way, fledge, in_turn, main, measure, version, write_config

from tests.support import images, tars

SIZE = 500 << 20
"""Bytes of the disk's files."""
FILES = 50

MORE = """\
[filesystem]
read_only = true
[mappings]
data = "/data"
"""


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    (folder / "data").mkdir()
    for number in range(FILES):
        noise = hashlib.shake_128(b"%d" % number).digest(SIZE // FILES)
        (folder / "data" / str(number)).write_bytes(noise)
    images.write_layout(folder / "layout", images.image(tars.pack(tars.folder("etc"))), "latest")
    ways = []
    for name, table in (("plain", ""), ("sealed", "[verity]\n")):
        write_config(folder, "oci:layout:latest", MORE + table, f"{name}.toml")
        build = partial(fledge, folder, "build", "-q", "-c", f"{name}.toml", "-o", name)
        ways.append(Way(name, build, folder / name))
    command = ["veritysetup", "format", "plain", "tree"]
    seal = partial(measure, command, folder)
    ways.append(Way("veritysetup format", seal, folder / "tree", version(command[0], "--version")))
    rows = in_turn(arguments, ways)
    plain, sealed = rows[:2]
    yield from rows
    yield Row("sealing alone", extra={"s": sealed.seconds - plain.seconds})


if __name__ == "__main__":
    main(benchmark, __doc__)
