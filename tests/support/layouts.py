"""The image of fixtures/image, and facts about any image."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fledge.host.settings import Settings
from fledge.oci import layers
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree import File, Tree
from fledge.tree.content import read_content
from fledge.tree.digest import Digest

AMD64 = Platform("linux", "amd64")
SCRIPT = Path(__file__).parents[2] / "fixtures" / "image" / "make-layout"


def make_layout(folder: Path) -> Path:
    subprocess.run([sys.executable, SCRIPT, folder], check=True)
    return folder


def verified(image: Image, cache: Cache) -> tuple[bytes, list[Digest]]:
    """Verify the layers of an image, and return its config and diff_ids."""
    list(layers.prepare(image, Session(Settings(), cache, Reporter())))
    return image.config, [layer.diff_id for layer in image.layers]


def unpacked(image: Image, cache: Cache) -> dict[str, bytes]:
    """Return the regular files of an image."""
    tree = Tree(mtime_ns=0)
    layers.unpack(image, tree, Session(Settings(), cache, Reporter()))
    return {
        path.decode(): b"".join(read_content(node.content))
        for path, node in tree.walk()
        if isinstance(node, File)
    }


def edit(path: Path, **changes: Any) -> None:
    """Change members of a JSON object in a file. None removes a member."""
    document = {**json.loads(path.read_bytes()), **changes}
    kept = {key: value for key, value in document.items() if value is not None}
    path.write_text(json.dumps(kept))
