"""Signs the provenance of an artifact, and makes keys for that."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from cryptography.x509 import Certificate

from fledge.errors import ConfigError, CorruptError, FledgeError, unreadable_argument
from fledge.host.files import PathLike, create, replacing
from fledge.operations import seal
from fledge.operations.arguments import as_session
from fledge.operations.digests import read_digest
from fledge.operations.documents import read_beside
from fledge.project import keys, pkcs7, provenance, signatures
from fledge.project.keys import KeyType, Passphrase, Signer
from fledge.project.signatures import Envelope, Signature
from fledge.session import Session
from fledge.tree.digest import Digest


class KeyPair(msgspec.Struct, frozen=True):
    """The files of a new key."""

    private: Path
    public: Path


def keygen(
    name: PathLike = "fledge", kind: KeyType = "ecdsa-p256", *, passphrase: str = ""
) -> KeyPair:
    """Make a key: ``NAME.key``, which only its owner can read, and ``NAME.pub``.

    With a ``passphrase`` the private key is encrypted. Raises `ConfigError` if one of the files
    exists, `FledgeError` if one cannot be written.
    """
    name = Path(name)
    made = KeyPair(name.parent / f"{name.name}.key", name.parent / f"{name.name}.pub")
    if made.public.exists():
        raise ConfigError(
            f"{made.public} exists, and is not overwritten", "Choose another name with -o NAME."
        )
    key = keys.generate(kind)
    create(made.private, keys.private_pem(key, passphrase), 0o600)
    try:
        create(made.public, keys.public_pem(key.public), 0o666)
    except FledgeError:
        made.private.unlink()
        raise
    return made


def sign(
    artifact: PathLike,
    key: str,
    *,
    public_key: PathLike | None = None,
    certificate: PathLike | None = None,
    passphrase: Passphrase | None = None,
    session: Session | None = None,
) -> Path:
    """Sign the provenance beside an artifact, and return the path of the envelope beside it.

    ``key`` is the path of a private key, ``env:NAME`` for one in a variable, or ``exec:COMMAND``
    for a program that signs (`SigningCommand`). ``public_key`` is the file of its public key, which
    a command needs. With the ``certificate`` of the key, X.509 in PEM, the root hash of a sealed
    artifact is signed as well, for a kernel: ARTIFACT.roothash.p7s. ``passphrase`` is called
    for that of an encrypted key unless FLEDGE_KEY_PASSPHRASE is set; None: there is no other.

    Signatures of the same statement by other keys stay, and one by this key is replaced. Those of
    an older statement are dropped with it. Raises `CorruptError` if the artifact is not the one in
    its provenance, `ConfigError` if the key cannot be used; nothing is written then.
    """
    artifact, session = Path(artifact), as_session(session)
    try:
        artifact.stat()
    except OSError as error:
        raise unreadable_argument(artifact, error) from error
    text = provenance.read(artifact)  # before a passphrase is asked for
    signer = open_signer(key, Path(public_key) if public_key else None, passphrase, session)
    path = sign_with(signer, artifact, session)
    if certificate:
        _, record = provenance.parse_file(text, artifact)
        if record.root_hash is None:
            raise ConfigError(
                f"{artifact} is not sealed, so there is no root hash to sign",
                "Build it with [verity] in fledge.toml, or leave out the certificate.",
            )
        loaded = pkcs7.load_certificate(Path(certificate), signer)
        write_root_signature(artifact, record.root_hash, loaded, signer)
    return path


def write_root_signature(
    artifact: Path, root_hash: Digest, certificate: Certificate, signer: Signer
) -> None:
    """Write the signature of a root hash beside its artifact.

    Raises `FledgeError` if the signer fails, or the file cannot be written.
    """
    signature = pkcs7.sign_root_hash(root_hash, certificate, signer)
    with replacing(seal.signature_path(artifact)) as file:
        file.write(signature)


def open_signer(
    key: str, public_key: Path | None, passphrase: Passphrase | None, session: Session
) -> Signer:
    """Return the signer that a key names, as for `sign`. Raises `ConfigError`.

    A file that others can read is a note.
    """
    with suppress(OSError, ValueError):
        if Path(key).stat().st_mode & 0o077:
            session.reporter.note(f"others can read {key}: run chmod 600 {key}")
    return keys.load_signer(
        key,
        public_key,
        lambda: session.settings.key_passphrase or (passphrase or _missing)(),
        session.settings,
    )


def sign_with(signer: Signer, artifact: Path, session: Session) -> Path:
    """Do the work of `sign` with an open signer."""
    payload = provenance.read(artifact)
    _, recorded = provenance.parse_file(payload, artifact)
    path = signatures.path_beside(artifact)
    _read_old(path)  # before the work
    digest = read_digest(artifact, session)
    if digest != recorded.digest:
        raise CorruptError(
            f"{artifact} is not the artifact in its provenance, so it is not signed",
            "Build it again, or restore the file that was built.",
            [f"provenance: {recorded.digest}", f"here: {digest}"],
        )
    message = signatures.encode(payload)
    new = Signature(signer.sign(message))
    with _locked(artifact):
        old = _read_old(path)
        kept: list[Signature] = []
        if old and old.payload == payload:
            mine = signer.public
            kept = [each for each in old.signatures if not mine.verifies(message, each.signature)]
        elif old:
            session.reporter.note(f"{path} was for another provenance; its signatures are dropped")
        if len(kept) >= signatures.MAX_SIGNATURES:
            raise CorruptError(f"{path} has {len(kept)} signatures, and cannot have more")
        try:
            with replacing(path) as file:
                file.write(signatures.serialize(Envelope(payload, (*kept, new))))
        except FledgeError as error:
            error.hint = f"Check that you can write to {path.parent}, and that its disk has space."
            raise
    return path


@contextmanager
def _locked(artifact: Path) -> Iterator[None]:
    """Keep others that sign the same artifact from writing in between."""
    with artifact.open("rb") as file:
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _missing() -> str:
    raise ConfigError(
        "the private key is encrypted, and there is no terminal to ask for its passphrase",
        "Set FLEDGE_KEY_PASSPHRASE.",
    )


def _read_old(path: Path) -> Envelope | None:
    """Read the signatures that exist; None if there are none."""
    text = read_beside(path, signatures.MAX_ENVELOPE_SIZE + 1)
    return None if text is None else signatures.parse(text, str(path))
