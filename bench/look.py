"""Look at artifacts with fledge, and hash the same files with sha256sum and openssl, in turn.

Builds the image as ext4, and once more with one file changed. sha256sum is portable code on many
systems; openssl uses the processor's instructions, as Python does. Both of them run on one core,
so processor time is given beside the time.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import (
    PYTHON,
    Row,
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

MAPPING = '[mappings]\n"edited" = "/etc/edited"\n'


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    layout, tag = image(arguments)
    write_config(folder, f"oci:{layout}:{tag}", MAPPING)
    for name, text in (("two.img", "other\n"), ("one.img", "edited\n")):
        (folder / "edited").write_text(text)
        fledge(folder, "build", "-q", "-o", name)
    shutil.copyfile(folder / "one.img", folder / "same.img")
    # The exit code of diff is 1 if there is a difference.
    differs = ["sh", "-c", '"$@"; [ $? = 1 ]', "sh", PYTHON, "-m", "fledge", "diff"]
    sums, openssl = version("sha256sum", "--version"), version("openssl", "version")
    digest = ("openssl", "dgst", "-sha256")

    ways = [
        Way("sha256sum", partial(measure, ["sha256sum", "one.img"], folder), peer=sums),
        Way("openssl", partial(measure, [*digest, "one.img"], folder), peer=openssl),
        Way(
            "sha256sum of both",
            partial(measure, ["sha256sum", "one.img", "two.img"], folder),
            peer=sums,
        ),
        Way(
            "openssl of both",
            partial(measure, [*digest, "one.img", "two.img"], folder),
            peer=openssl,
        ),
        Way("inspect", partial(fledge, folder, "inspect", "one.img")),
        Way("inspect --json", partial(fledge, folder, "inspect", "--json", "one.img")),
        Way("inspect PATH", partial(fledge, folder, "inspect", "one.img", "etc/edited")),
        Way("diff, equal", partial(fledge, folder, "diff", "one.img", "same.img")),
        Way("diff, one file", partial(measure, [*differs, "one.img", "two.img"], folder)),
        Way("verify", partial(fledge, folder, "verify", "one.img")),
    ]
    yield from in_turn(arguments, ways)


if __name__ == "__main__":
    main(benchmark, __doc__, add_image, runs=3)
