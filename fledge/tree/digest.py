"""SHA-256 digests, as a type of their own."""

from __future__ import annotations

import hashlib
import re

import msgspec

from fledge.errors import MalformedError

_HEX = re.compile("[0-9a-f]{64}")
_PREFIX = "sha256:"


class Digest(msgspec.Struct, frozen=True, order=True):
    """A SHA-256 digest. ``str()`` gives the form of OCI descriptors: ``sha256:HEX``.

    Make one with `parse`, `from_hex` or `of`. The constructor does not check its argument; it is
    for the result of a hash.
    """

    hex: str
    """64 lower-case hexadecimal digits."""

    def __str__(self) -> str:
        return _PREFIX + self.hex

    @property
    def short(self) -> str:
        """The first 12 digits, for messages."""
        return self.hex[:12]

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``sha256:HEX`` (OCI image-spec, descriptor.md). Raises `MalformedError`."""
        if not text.startswith(_PREFIX):
            raise MalformedError(f"{text[:100]!r} is not a sha256 digest")
        return cls.from_hex(text.removeprefix(_PREFIX))

    @classmethod
    def from_hex(cls, text: str) -> Digest:
        """Parse 64 hexadecimal digits in lower case. Raises `MalformedError`."""
        if not _HEX.fullmatch(text):
            raise MalformedError(
                f"{text[:100]!r} is not a sha256 digest: it takes 64 digits 0-9a-f"
            )
        return cls(text)

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        """Hash bytes in memory."""
        return cls(hashlib.sha256(data).hexdigest())
