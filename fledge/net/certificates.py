"""Finds the certificate authorities to trust, and the client certificates to show to a server.

Docker's and podman's folders for that are described in dockerd(8) and containers-certs.d(5).
"""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from fledge.errors import HostError, reason
from fledge.tree.regular import check_regular, read_regular

SYSTEM_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Arch, Alpine, NixOS
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # Fedora, RHEL
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),  # newer Fedora
    Path("/etc/ssl/cert.pem"),
)
"""Where distributions keep the authorities that all programs should trust."""
SYSTEM_FOLDERS: tuple[Path, ...] = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
"""Folders with a folder of certificates for each registry, ``HOST`` or ``HOST:PORT``."""
MAX_PEM_SIZE = 1 << 20
"""Maximum bytes in a file for one registry."""


class HostCertificates(msgspec.Struct, frozen=True):
    """The certificates for one host."""

    authorities: str
    """PEM of authorities to trust besides those of the system; empty if there are none."""
    client: tuple[str, str] | None
    """The files with a client certificate and its key; None if there are none."""


class Certificates(msgspec.Struct, frozen=True):
    """The certificates that a `Transport` uses."""

    bundle: Path | None = None
    """A PEM file with the authorities to trust. None: those of the system, or if there are none
    those that come with requests."""
    folders: tuple[Path, ...] = SYSTEM_FOLDERS
    """As `SYSTEM_FOLDERS`. All that are for a host count."""

    def trusted(self) -> str | None:
        """Return the path of the bundle to trust, None for the one that comes with requests."""
        if self.bundle:
            return str(self.bundle)
        return next((str(path) for path in SYSTEM_BUNDLES if path.is_file()), None)

    def for_host(self, host: str) -> HostCertificates:
        """Return the certificates for ``HOST`` or ``HOST:PORT``.

        Raises `HostError` if one cannot be used.
        """
        authorities = ""
        client = None
        if host.startswith(".") or "/" in host:
            return HostCertificates("", None)
        for folder in self.folders:
            try:
                paths = sorted((folder / host).iterdir())
            except OSError:  # there is no such folder, or it is not for this user
                continue
            authorities += "".join(_read(path) for path in paths if path.suffix == ".crt")
            for path in paths:
                key = path.with_suffix(".key")
                if path.suffix == ".cert" and key in paths and client is None:
                    client = _checked(path), _checked(key)
        return HostCertificates(authorities, client)


def _checked(path: Path) -> str:
    """Return the path of a file that OpenSSL will read."""
    try:
        check_regular(path)
    except OSError as error:
        raise HostError(
            f"the client certificate {path} cannot be used: {reason(error)}",
            "Put PEM files with the certificate and its key there, or remove both.",
        ) from error
    return str(path)


def _read(path: Path) -> str:
    """Read a PEM file with authorities."""
    try:
        text = read_regular(path, MAX_PEM_SIZE).decode("ascii", "replace")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:
        problem = reason(error) if isinstance(error, OSError) else str(error)
        raise HostError(
            f"the CA certificate {path} cannot be used: {problem}",
            "Put a PEM file there that this user may read, or remove it.",
        ) from error
    return f"{text}\n"
