"""Reads an artifact to compute its digest, as a step that people see."""

from __future__ import annotations

from pathlib import Path

from fledge.errors import unreadable_argument
from fledge.session import Session
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest


def read_digest(artifact: Path, session: Session) -> Digest:
    """Return the digest of an artifact. Raises `FledgeError` if it cannot be read."""
    with session.reporter.step("read") as step:
        with session.reporter.work("reading") as progress:
            try:
                progress.restart(0, artifact.stat().st_size)
                digest = hash_file(artifact, progress=progress).digest
            except OSError as error:
                raise unreadable_argument(artifact, error) from error
        step.detail = f"sha256 {digest.hex}"
    return digest
