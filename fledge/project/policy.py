"""Which signatures an artifact needs: the keys, how many of them, until when, and for what.

A policy comes from the command line, or from a TOML file that is distributed to many hosts:

    keys = ["alice.pub", "bob.pub", "carol.pub"]
    threshold = 2
    expires = 2027-01-01T00:00:00Z
    builder = "https://github.com/volantvm/fledge"
    sources = ["docker.io/library/*"]

As the root role of TUF (specification, section 4.3), it is replaced as a whole: keys and threshold
expire together, and a host that was forgotten refuses everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from fledge.errors import ConfigError
from fledge.host.files import PathLike
from fledge.project import toml
from fledge.project.keys import PublicKey, load_public
from fledge.project.values import Natural, Text

MAX_KEYS = 16
"""Maximum keys of a policy. Each checks every signature."""

KNOWN = ("keys", "threshold", "expires", "builder", "sources")


class Policy(msgspec.Struct, frozen=True):
    """What has to be true of an artifact's signed provenance.

    Make one with `of` or `load`, which check it.
    """

    keys: tuple[PublicKey, ...]
    """Different keys. Any of them counts."""
    threshold: int
    """How many of the keys must have signed the same statement, at least 1."""
    builder: str | None = None
    """The ``builder.id`` that the statement must have. None: any."""
    sources: tuple[str, ...] = ()
    """Patterns of `matches`, of which one must match the image that the artifact is made from.
    Empty: any image, or none."""
    expires: datetime | None = None
    """The time from which nothing is accepted, with a time zone. None: never."""
    file: Path | None = None
    """The file that the policy is from; None: there is none."""

    @classmethod
    def of(
        cls,
        keys: Sequence[PathLike],
        *,
        threshold: int | None = None,
        builder: str | None = None,
        sources: Sequence[str] = (),
        expires: datetime | None = None,
        file: Path | None = None,
    ) -> Policy:
        """Make a policy of the files of public keys. Raises `ConfigError`.

        ``threshold`` None: all keys. A key that is given twice counts once.
        """
        loaded = [load_public(Path(key)) for key in keys]
        distinct = tuple({key.digest: key for key in reversed(loaded)}.values())[::-1]
        if not 1 <= len(distinct) <= MAX_KEYS:
            raise ConfigError(
                f"a policy has 1 to {MAX_KEYS} keys, and this one has {len(distinct)}",
                "Name the file of each public key.",
            )
        needed = len(distinct) if threshold is None else threshold
        if not 1 <= needed <= len(distinct):
            raise ConfigError(
                f"the threshold is {needed}, and the number of different keys {len(distinct)}",
                "It is how many of the keys must have signed: from 1 to all of them.",
            )
        if expires is not None and expires.tzinfo is None:
            raise ConfigError("the time at which a policy expires needs a time zone")
        return cls(distinct, needed, builder, tuple(sources), expires, file)

    @classmethod
    def load(cls, path: PathLike) -> Policy:
        """Read the file of a policy. Paths in it start at its folder.

        Raises `InvalidConfig` with all problems of the file, `ConfigError` if it or a key cannot be
        read. A policy that has expired can be read.
        """
        path = Path(path)
        document = toml.read(path, "Check the path of the policy.")
        top = document.top
        top.reject_unknown(KNOWN)
        keys = _texts(top, "keys", '["team.pub"]')
        if not keys and not document.has_problems:
            top.report_missing("keys", 'write keys = ["team.pub"]')
        threshold = top.value("threshold", Natural(least=1)) if "threshold" in top.data else None
        builder = top.value("builder", Text()) if "builder" in top.data else None
        sources = _texts(top, "sources", '["docker.io/library/*"]')
        expires = top.data.get("expires")
        if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo):
            top.report_value(
                "expires", "must be a time with its zone, such as 2027-01-01T00:00:00Z"
            )
        document.finish()
        return cls.of(
            [path.parent / key for key in keys],
            threshold=threshold if isinstance(threshold, int) else None,
            builder=builder if isinstance(builder, str) else None,
            sources=sources,
            expires=expires if isinstance(expires, datetime) else None,
            file=path,
        )

    def check_date(self) -> None:
        """Raise `ConfigError` if the policy has expired, by the clock of this machine."""
        if self.expires and datetime.now(timezone.utc) >= self.expires:
            raise ConfigError(
                f"{self.file or 'the policy'} expired at {self.expires.isoformat()}",
                "Get the current policy from whoever publishes it.",
            )


def matches(uri: str, pattern: str) -> bool:
    """Return whether the URI of an image, as provenance records it, matches a pattern.

    In a pattern ``*`` stands for any characters, also ``/``, and ``?`` for one. ``docker://``, the
    transport of registries, may be left out; any other is written.
    """
    return fnmatchcase(uri, pattern) or fnmatchcase(uri, f"docker://{pattern}")


def _texts(table: toml.Table, key: str, example: str) -> list[str]:
    """Return a list of texts, empty if the key is missing. Reports a value of another type."""
    found = table.data.get(key, [])
    if isinstance(found, list) and all(isinstance(each, str) and each for each in found):
        return found
    table.report_value(key, f"must be a list of texts, such as {example}")
    return []
