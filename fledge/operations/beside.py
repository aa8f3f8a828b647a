"""Keeps the documents beside an artifact in step with it: plugin manifest, SBOMs, signatures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.errors import CorruptError, FledgeError, MalformedError
from fledge.host.files import replacing
from fledge.operations import seal
from fledge.operations.documents import is_manifest_of
from fledge.project import provenance, signatures
from fledge.project.config import Config
from fledge.project.manifest import MAX_MANIFEST_SIZE, path_beside, read
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.project.signatures import MAX_ENVELOPE_SIZE
from fledge.session import Session
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from fledge.project.keys import Signer


def open_signer(key: str | None, session: Session) -> Signer | None:
    """Return the signer that a build is to use, before its work. None: it is not signed.

    Raises `ConfigError`.
    """
    if key is None:
        return None
    # Imported late because cryptography is slow to load, and only signatures need it.
    from fledge.operations import sign as signing  # noqa: PLC0415

    return signing.open_signer(key, None, None, session)


def sign(
    output: Path, statement: bytes, envelope: bytes | None, signer: Signer | None, session: Session
) -> None:
    """Put the signatures of an artifact beside it, and remove those of an older one.

    ``envelope`` has those that were pulled with it; None: there are none.
    """
    path = signatures.path_beside(output)
    if envelope and signatures.parse(envelope, "").payload == statement:
        with replacing(path) as file:
            file.write(envelope)
    elif path.exists() and not _is_signed(path, statement):
        _remove(path, session)
    if signer:
        from fledge.operations import sign as signing  # noqa: PLC0415 - as above

        signing.sign_with(signer, output, session)


def tidy_tree(output: Path, old: Digest | None, session: Session) -> None:
    """Remove the hash tree that an older build has put beside its artifact.

    ``old`` is the root hash of the older artifact.
    """
    path = seal.path_beside(output)
    if old and path.exists():
        _remove(path, session)


def recorded_sboms(output: Path) -> Sequence[Path]:
    """Return the software bills of materials that the build of an artifact has put beside it."""
    found = []
    with suppress(FledgeError):
        for kind, digest in provenance.load(output).sboms.items():
            path = sbom_path(output, kind)
            with suppress(OSError):
                if hash_file(path).digest == digest:
                    found.append(path)
    return found


def tidy_sboms(old: Sequence[Path], new: Collection[Path], session: Session) -> None:
    """Remove the software bills of materials of an older artifact, unless a build has replaced
    them. ``old`` are those that the older build has recorded, ``new`` those that are written now.
    """
    for path in old:
        if path not in new:
            _remove(path, session)


def load_certificate(config: Config, signer: Signer | None, session: Session) -> Certificate | None:
    """Return the certificate that a build is to sign its root hash with. None: it does not.

    Raises `ConfigError` if it cannot be used.
    """
    if not config.verity or not config.verity.certificate:
        return None
    if not signer:
        session.reporter.note(
            f"{config.verity.certificate} is not used: without --sign-with, nothing signs the root"
            " hash"
        )
        return None
    from fledge.project import pkcs7  # noqa: PLC0415 - as above

    return pkcs7.load_certificate(config.verity.certificate, signer)


def sign_root_hash(
    output: Path,
    root_hash: Digest | None,
    old: Digest | None,
    certificate: Certificate | None,
    signer: Signer | None,
    session: Session,
) -> None:
    """Sign the root hash of an artifact with a certificate, and remove the signature of an older
    artifact, whose root hash is ``old``.
    """
    path = seal.signature_path(output)
    if old != root_hash and path.exists():
        _remove(path, session)
    if signer and certificate and root_hash:
        from fledge.operations import sign as signing  # noqa: PLC0415 - as above

        signing.write_root_signature(output, root_hash, certificate, signer)


def _remove(path: Path, session: Session) -> None:
    """Remove a file beside the artifact of an older build, and say so."""
    path.unlink()
    session.reporter.note(f"{path} is removed: it was for another build")


def _is_signed(envelope: Path, statement: bytes) -> bool:
    """Return whether a file is an envelope with a statement, or nothing that fledge has written."""
    try:
        return signatures.parse(read_regular(envelope, MAX_ENVELOPE_SIZE), "").payload == statement
    except (CorruptError, OSError):
        return True


def recorded_manifest(output: Path) -> Path | None:
    """Return the plugin manifest beside an artifact if the build of the artifact has written it."""
    path = path_beside(output)
    with suppress(FledgeError, OSError):
        record = provenance.load(output)
        if is_manifest_of(record, read_regular(path, MAX_MANIFEST_SIZE)):
            return path
    return None


def tidy_manifest(
    config: Config, output: Path, digest: Digest, stale: Path | None, session: Session
) -> None:
    """Remove the plugin manifest of an older artifact, or report one that somebody else wrote.

    ``stale`` is the one that the older build has recorded; None: it has recorded none.
    """
    path = path_beside(output)
    if stale:
        stale.unlink(missing_ok=True)
        session.reporter.note(f"{stale} is removed: {config.path} has no [manifest] any more")
        return
    with suppress(MalformedError, OSError):
        if read(read_regular(path, MAX_MANIFEST_SIZE)).digest not in (None, digest):
            session.reporter.note(
                f"{path} is not for this artifact: remove it, or add [manifest] to {config.path}"
            )
