"""Lists the software in an artifact, in the formats of others.

The documents depend only on the tree, the name and digest of the artifact, and what its provenance
records. So those of an artifact that is read again are those that its build has written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from fledge.errors import FledgeError
from fledge.formats import open_artifact
from fledge.host.files import PathLike
from fledge.operations.arguments import as_session
from fledge.operations.digests import read_digest
from fledge.project import provenance
from fledge.project.provenance import Provenance
from fledge.project.sboms.inventory import Inventory
from fledge.project.sboms.table import SbomFormat
from fledge.project.sboms.writer import serialize
from fledge.report import Reporter, counted
from fledge.session import Session
from fledge.sources.inputs import Input
from fledge.tree import Tree
from fledge.tree.digest import Digest
from fledge.tree.names import printable
from fledge.tree.packages import find_packages


def sbom(
    artifact: PathLike,
    kind: SbomFormat = "spdx",
    *,
    session: Session | None = None,
) -> bytes:
    """Return the software bill of materials of an artifact, whoever made it.

    With the provenance of these bytes beside it, that is what a build with ``[sbom]`` writes;
    without, only packages are listed, and the time is 1970. What could not be read is said in the
    document. Raises `CorruptError` if the artifact is in no known format, `FledgeError` if it
    cannot be read.
    """
    path, session = Path(artifact), as_session(session)
    with open_artifact(path) as opened:
        digest = read_digest(path, session)
        record = _provenance(path, digest)
        inputs, epoch = (record.inputs, record.epoch) if record else ((), 0)
        found = documents(opened.tree, path.name, digest, inputs, epoch, (kind,), session.reporter)
    return found[kind]


def documents(
    tree: Tree,
    name: str,
    digest: Digest,
    inputs: Sequence[Input],
    epoch: int,
    formats: Collection[SbomFormat],
    reporter: Reporter,
) -> dict[SbomFormat, bytes]:
    """Return the documents about the artifact with a tree, by format.

    ``name`` is its file name, ``epoch`` the time of its build in seconds since 1970. Raises
    `FledgeError` if a file cannot be read.
    """
    with reporter.step("sbom") as step:
        found = find_packages(tree)
        inventory = Inventory(printable(name), digest, epoch, inputs, found)
        texts = {kind: serialize(inventory, kind) for kind in formats}
        step.detail = counted(len(found.packages), "package")
    if found.problems:
        more = f", and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
        reporter.note(f"the SBOM is incomplete, and says so: {found.problems[0]}{more}")
    return texts


def _provenance(artifact: Path, digest: Digest) -> Provenance | None:
    """Return the provenance beside an artifact; None unless it is valid and for these bytes."""
    with suppress(FledgeError):
        record = provenance.load(artifact)
        return record if record.digest == digest else None
    return None
