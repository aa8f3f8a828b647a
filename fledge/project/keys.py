"""Reads, makes and uses keys that sign: Ed25519, and ECDSA with P-256 and SHA-256.

Files are PEM (RFC 7468): PKCS #8 for a private key, plain or encrypted, SEC 1 as well for one of
P-256, and PKIX for a public key, as openssl and cosign write them. An ECDSA signature is DER.
No message has a part of a key, a passphrase or the arguments of a command in it.

Only what signs or checks signatures imports this module, because ``cryptography`` is slow to load.
"""

from __future__ import annotations

import base64
import binascii
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256

from fledge.errors import (
    ConfigError,
    CorruptError,
    FledgeError,
    HostError,
    reason,
    unreadable_argument,
)
from fledge.host.settings import Settings
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

KeyType = Literal["ecdsa-p256", "ed25519"]

MAX_KEY_SIZE = 1 << 14
"""Maximum bytes of a file with a key."""

COMMAND_TIMEOUT = 300.0
"""Seconds to wait for a command that signs: a person may have to touch a token."""

PUBLIC = "PUBLIC KEY"
PRIVATE = frozenset(("PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY"))
"""The labels of PEM blocks that are read (RFC 7468, and SEC 1 in RFC 5915)."""

OTHER_LABELS = {
    "CERTIFICATE": "Write its key to a file: openssl x509 -in FILE -noout -pubkey.",
    "ENCRYPTED SIGSTORE PRIVATE KEY": "Only cosign reads its own format. Make a key with fledge"
    " keygen, and give it to cosign with cosign import-key-pair; or sign with cosign attest-blob"
    " --statement, which fledge verifies.",
}
OTHER_LABELS["ENCRYPTED COSIGN PRIVATE KEY"] = OTHER_LABELS["ENCRYPTED SIGSTORE PRIVATE KEY"]
"""What to do with a file that has a block with this label."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_MAKE_ONE = "Make a key with fledge keygen."

Passphrase = Callable[[], str]
"""Returns the passphrase of a private key. Called only if a key is encrypted."""


class PublicKey(msgspec.Struct, frozen=True):
    """A key that checks signatures."""

    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
    name: str
    """What messages call it: the path of its file."""

    @property
    def digest(self) -> Digest:
        """The digest of its PKIX structure. Equal keys have equal digests, whatever their names."""
        pkix = serialization.PublicFormat.SubjectPublicKeyInfo
        return Digest.of(self.key.public_bytes(serialization.Encoding.DER, pkix))

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether the private key of this key has made the signature."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, message)
            else:
                self.key.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


class Signer(Protocol):
    """A private key, or a command that has one."""

    @property
    def public(self) -> PublicKey:
        """The key that checks its signatures."""

    def sign(self, message: bytes) -> bytes:
        """Return a signature that the public key verifies. Raises `FledgeError`."""


class PrivateKey(msgspec.Struct, frozen=True):
    """A private key in memory. Its ``repr`` does not show the key."""

    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    name: str

    def __repr__(self) -> str:
        return f"PrivateKey({self.name!r})"

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.key.public_key(), self.name)

    def sign(self, message: bytes) -> bytes:
        """Return the signature, the same every time if OpenSSL has RFC 6979 (3.2 and later)."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(message)
        try:
            algorithm = ec.ECDSA(SHA256(), deterministic_signing=True)
        except UnsupportedAlgorithm:
            algorithm = ec.ECDSA(SHA256())
        return self.key.sign(message, algorithm)


class SigningCommand(msgspec.Struct, frozen=True):
    """A program that signs, for a key of a KMS or a hardware token.

    It gets the message on standard input and prints the signature, as it is or in base64. It may
    ask for a PIN on the terminal or on standard error.
    """

    arguments: tuple[str, ...]
    public: PublicKey
    settings: Settings

    def sign(self, message: bytes) -> bytes:
        """Return the signature that the command prints.

        Raises `HostError` if it is not installed, `FledgeError` if it fails, `CorruptError` if what
        it prints is no signature by the public key.
        """
        program = self.arguments[0]
        try:
            done = subprocess.run(
                self.arguments,
                input=message,
                stdout=subprocess.PIPE,
                timeout=COMMAND_TIMEOUT,
                check=False,
                env=dict(self.settings.environment),
            )
        except FileNotFoundError as error:
            raise HostError(
                f"{program}, which should sign, is not installed", "Check --key exec:COMMAND."
            ) from error
        except OSError as error:
            raise HostError(f"{program}, which should sign: {reason(error)}") from error
        except subprocess.TimeoutExpired as error:
            raise FledgeError(
                f"{program} did not sign within {COMMAND_TIMEOUT:g} s", "Try it by hand."
            ) from error
        if done.returncode != 0:
            raise FledgeError(
                f"{program} did not sign: exit status {done.returncode}",
                "It gets the message on standard input, and has to print the signature.",
            )
        for signature in (done.stdout, _from_base64(done.stdout)):
            if self.public.verifies(message, signature):
                return signature
        raise CorruptError(
            f"what {program} printed is no signature by {self.public.name}",
            "It has to print one of the whole message, ECDSA in DER; --public-key names its key.",
        )


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return b""


def load_public(path: Path) -> PublicKey:
    """Read the file of a public key. Raises `ConfigError`."""
    label, block = _find_block(_read(path), str(path))
    if label in PRIVATE:
        raise ConfigError(
            f"{path} is a private key; name the public key that belongs to it",
            "Write it to a file: openssl pkey -in FILE -pubout. Keep the private key to yourself.",
        )
    if label != PUBLIC:
        raise _not_read(str(path), label)
    try:
        key = serialization.load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _damaged(str(path), "public key") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(key, str(path))
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return PublicKey(key, str(path))
    raise _other_algorithm(str(path))


def load_signer(
    source: str, public: Path | None, passphrase: Passphrase, settings: Settings
) -> Signer:
    """Return the signer that ``source`` names: a file, ``env:NAME`` or ``exec:COMMAND``.

    ``public`` is the file of the public key, which a command needs and any other key must match.
    Raises `ConfigError`.
    """
    if "\n" in source or "-----BEGIN" in source:
        raise ConfigError(
            "--key has a key in it, which other users can see in the list of processes",
            "Make a new key, and write --key FILE, --key env:NAME or --key exec:COMMAND.",
        )
    transport, colon, rest = source.partition(":")
    if colon and transport == "exec":
        return _command(rest, public, settings)
    if colon and transport == "env":
        key = _parse_private(_from_environment(rest, settings), source, passphrase)
    else:
        key = _parse_private(_read(Path(source)), source, passphrase)
    if public and load_public(public).digest != key.public.digest:
        raise ConfigError(f"{public} does not belong to the private key {source}")
    return key


def _command(command: str, public: Path | None, settings: Settings) -> SigningCommand:
    try:
        arguments = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(
            f"the command of --key exec: cannot be split: {str(error).lower()}",
            "Quote its arguments as in a shell.",
        ) from error
    if not arguments:
        raise ConfigError("--key exec: names no command", "Write --key 'exec:COMMAND ARGUMENT…'.")
    if public is None:
        raise ConfigError(
            f"which key does {arguments[0]} sign with?",
            "Name the file of its public key with --public-key FILE.",
        )
    return SigningCommand(arguments, load_public(public), settings)


def _from_environment(name: str, settings: Settings) -> bytes:
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(
            "--key env: is not followed by the name of a variable",
            "Write --key env:NAME; the variable has the key in PEM.",
        )
    value = settings.environment.get(name)
    if not value:
        raise ConfigError(f"the variable {name} is not set", "Set it to the private key, in PEM.")
    return value.encode(errors="replace")


def _parse_private(text: bytes, name: str, passphrase: Passphrase) -> PrivateKey:
    label, block = _find_block(text, name)
    if label == PUBLIC:
        raise ConfigError(
            f"{name} is a public key, which cannot sign",
            f"Name the private key that belongs to it. {_MAKE_ONE}",
        )
    if label not in PRIVATE:
        raise _not_read(name, label)
    # The second is how openssl marks an encrypted key that is not PKCS #8 (RFC 1421, section 4.6).
    is_encrypted = label.startswith("ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in block
    password = passphrase().encode(errors="surrogateescape") if is_encrypted else None
    try:
        key = serialization.load_pem_private_key(block, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if is_encrypted:
            raise ConfigError(
                f"{name} cannot be decrypted",
                "The passphrase is wrong, or the key is damaged. fledge reads it from"
                " FLEDGE_KEY_PASSPHRASE, or asks for it on a terminal.",
            ) from error
        raise _damaged(name, "private key") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return PrivateKey(key, name)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return PrivateKey(key, name)
    raise _other_algorithm(name)


def generate(kind: KeyType) -> PrivateKey:
    """Make a new private key."""
    if kind == "ed25519":
        return PrivateKey(ed25519.Ed25519PrivateKey.generate(), "the new key")
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()), "the new key")


def private_pem(key: PrivateKey, passphrase: str) -> bytes:
    """Return a private key as PKCS #8, encrypted unless the passphrase is empty."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(
            passphrase.encode(errors="surrogateescape")
        )
    pkcs8 = serialization.PrivateFormat.PKCS8
    return key.key.private_bytes(serialization.Encoding.PEM, pkcs8, encryption)


def public_pem(key: PublicKey) -> bytes:
    """Return a public key as PKIX."""
    pkix = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.key.public_bytes(serialization.Encoding.PEM, pkix)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_KEY_SIZE + 1)
    except OSError as error:
        raise unreadable_argument(path, error) from error


def _find_block(text: bytes, name: str) -> tuple[str, bytes]:
    """Return the label and the text of the one key in a file.

    openssl writes the parameters of a curve in front of a key.
    """
    if len(text) > MAX_KEY_SIZE:
        raise ConfigError(f"{name} has over {MAX_KEY_SIZE} bytes, too many for a key", _MAKE_ONE)
    found = [(each[1].decode(), each[0] + b"\n") for each in _BLOCK.finditer(text)]
    blocks = [(label, block) for label, block in found if label != "EC PARAMETERS"]
    if not blocks:
        raise ConfigError(f"{name} has no key in PEM, which begins with -----BEGIN", _MAKE_ONE)
    if len(blocks) > 1:
        raise ConfigError(f"{name} has {len(blocks)} keys", "Write each to a file of its own.")
    return blocks[0]


def _not_read(name: str, label: str) -> ConfigError:
    return ConfigError(
        f'{name} is a "{label}", which fledge does not read',
        OTHER_LABELS.get(label, _MAKE_ONE),
    )


def _damaged(name: str, kind: str) -> ConfigError:
    return ConfigError(f"{name} is damaged, or no {kind} that fledge reads", _MAKE_ONE)


def _other_algorithm(name: str) -> ConfigError:
    return ConfigError(f"{name} is neither an Ed25519 key nor one of ECDSA on P-256", _MAKE_ONE)
