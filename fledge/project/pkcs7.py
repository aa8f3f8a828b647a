"""Makes the signature of a root hash that a kernel checks: PKCS #7, detached, in DER.

It is a SignedData of RFC 5652 with one signer and neither certificates nor signed attributes, as
``openssl smime -sign -nocerts -noattr -binary`` makes it for dm-verity (root_hash_sig_key_desc in
Documentation/admin-guide/device-mapper/verity.rst of Linux)::

    ContentInfo    signedData
      SignedData     version 1, SHA-256, data (not there)
        SignerInfo     version 1, issuer and serial number of the certificate,
                       SHA-256, ECDSA with SHA-256, the signature

The kernel finds the certificate in its keyring by issuer and serial number.

Only what signs imports this module, because ``cryptography`` is slow to load.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fledge.errors import ConfigError, unreadable_argument
from fledge.project.keys import MAX_KEY_SIZE, PublicKey, Signer
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_DATA = bytes.fromhex("06092a864886f70d010701")
_SHA256 = bytes.fromhex("300b0609608648016503040201")
"""The algorithm, without parameters (RFC 5754, section 2)."""
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
"""The algorithm (RFC 5758, section 3.2)."""

_INTEGER, _OCTET_STRING, _SEQUENCE, _SET, _EXPLICIT = 0x02, 0x04, 0x30, 0x31, 0xA0


def load_certificate(path: Path, signer: Signer) -> x509.Certificate:
    """Read the X.509 certificate of a signer, in PEM.

    Raises `ConfigError` if it is none, is for another key, or if no kernel checks signatures by
    such keys.
    """
    try:
        certificate = x509.load_pem_x509_certificate(read_regular(path, MAX_KEY_SIZE))
        key = certificate.public_key()
    except OSError as error:
        raise unreadable_argument(path, error) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not an X.509 certificate in PEM",
            "Make one of the key: openssl req -x509 -key FILE -subj /CN=NAME -out CERTIFICATE.",
        ) from error
    if not isinstance(signer.public.key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{signer.public.name} is an Ed25519 key, whose signatures no kernel checks",
            "Sign with an ECDSA key: fledge keygen makes one.",
        )
    is_own = isinstance(key, ec.EllipticCurvePublicKey) and (
        PublicKey(key, "").digest == signer.public.digest
    )
    if not is_own:
        raise ConfigError(
            f"{path} is not a certificate of {signer.public.name}",
            "Name the certificate of the key that signs.",
        )
    return certificate


def sign_root_hash(root_hash: Digest, certificate: x509.Certificate, signer: Signer) -> bytes:
    """Return the signature of a root hash, which is signed as hexadecimal text.

    Raises what `Signer.sign` raises.
    """
    signature = signer.sign(root_hash.hex.encode())
    number = certificate.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big")
    identifier = _encode(_SEQUENCE, certificate.issuer.public_bytes(), _encode(_INTEGER, serial))
    info = _encode(
        _SEQUENCE,
        *(_encode(_INTEGER, b"\1"), identifier, _SHA256, _ECDSA_WITH_SHA256),
        _encode(_OCTET_STRING, signature),
    )
    data = _encode(
        _SEQUENCE,
        *(_encode(_INTEGER, b"\1"), _encode(_SET, _SHA256), _encode(_SEQUENCE, _DATA)),
        _encode(_SET, info),
    )
    return _encode(_SEQUENCE, _SIGNED_DATA, _encode(_EXPLICIT, data))


def _encode(tag: int, *parts: bytes) -> bytes:
    """Return tag, length and value (X.690, section 8.1)."""
    value = b"".join(parts)
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + value
