"""Finds the containers that podman or buildah has left in its storage.

    GRAPHROOT/
        overlay-containers/               or vfs-, as the driver is called
            ID/userdata/buildah.json      what a container of a build was made with

podman rm and buildah rm take such an ID (github.com/containers/buildah, buildah.go, `stateFile`).
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from fledge.tree.regular import read_regular

MAX_STATE_SIZE = 16 << 20
"""Maximum bytes of a buildah.json that are searched."""

ID = re.compile("[0-9a-f]{64}")


def marked(storage: Path, mark: str) -> list[str]:
    """Return the IDs of the containers of a build that has been given a text nobody else has.

    A container that cannot be read belongs to another user.
    """
    found = []
    for path in sorted(storage.glob("*-containers/*/userdata/buildah.json")):
        with suppress(OSError):
            state = read_regular(path, MAX_STATE_SIZE)
            if mark.encode() in state and ID.fullmatch(path.parent.parent.name):
                found.append(path.parent.parent.name)
    return found
