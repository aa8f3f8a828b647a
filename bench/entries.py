"""Write ext4 images with more and more entries. Time and memory per entry should be constant."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from measure import measure, mib

COUNTS = (10_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
PER_DIRECTORY = 1000

SCRIPT = """
import gc
import sys
from pathlib import Path
from contextlib import closing
from fledge.ext4.format import Ext4
from fledge.host.destination import Destination
from fledge.host.files import replacing_together
from fledge.host.output import Hasher
from fledge.host.settings import Settings
from fledge.report import Reporter
from fledge.tree import Directory, File, Tree
from fledge.tree.content import Span
from fledge.tree.digest import Digest

gc.disable()  # as the command line does
count, per_directory = int(sys.argv[1]), int(sys.argv[2])
content = Span(Path("data"), 0, 1500, file_digest=Digest("0" * 64))  # as in a layer
tree = Tree(mtime_ns=0)
for number in range(count):
    if number % per_directory == 0:
        parent = Directory(mode=0o755)
        tree.add(b"%d" % number, parent)
    parent.children[b"file-%d" % number] = File(mode=0o644, content=content)
if len(sys.argv) > 3:
    with replacing_together(Path("image")) as [new], closing(Hasher()) as hasher:
        destination = Destination(new, hasher, Reporter(), Settings.from_environment())
        Ext4(size_buffer_mb=64).write(tree, destination)
    Path("image").unlink()
"""


def main() -> None:
    print("| files | writing | per file | peak memory | per file | share of the tree |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        (folder / "data").write_bytes(os.urandom(1500))
        for count in COUNTS:
            command = [sys.executable, "-c", SCRIPT, str(count), str(PER_DIRECTORY)]
            variables = {"PYTHONPATH": str(Path(__file__).parents[1])}
            empty = measure([*command[:3], "0", "1"], folder, variables)
            tree = measure(command, folder, variables)
            image = measure([*command, "write"], folder, variables)
            seconds = image.seconds - tree.seconds
            memory = image.peak_memory - empty.peak_memory
            share = (tree.peak_memory - empty.peak_memory) / memory
            print(
                f"| {count:,} | {seconds:.2f} s | {seconds / count * 1e6:.0f} µs"
                f" | {mib(image.peak_memory)} | {memory / count:.0f} bytes | {share:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
