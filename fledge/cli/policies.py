"""The options that say which signatures an artifact needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.errors import ConfigError

if TYPE_CHECKING:
    from fledge.project.policy import Policy

KeysOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", metavar="FILE", help="A public key that must have signed it. Can be repeated."
    ),
]
ThresholdOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="How many of the keys must have signed it.", show_default="all of them"
    ),
]
BuilderOption = Annotated[
    str | None,
    typer.Option(metavar="ID", help="The builder.id that the provenance must have."),
]
SourcesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PATTERN",
        help="The image that it must be made from, such as docker.io/library/*. Can be repeated:"
        " one must match.",
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A file with keys, threshold, expires, builder and sources instead."
    ),
]


def read_policy(
    keys: list[Path] | None,
    threshold: int | None = None,
    builder: str | None = None,
    sources: list[str] | None = None,
    file: Path | None = None,
) -> Policy | None:
    """Return the policy that the options make; None if there are none. Raises `ConfigError`."""
    others = [
        option
        for option, value in (
            ("--threshold", threshold),
            ("--builder", builder),
            ("--source", sources),
        )
        if value is not None
    ]
    if not keys and not file:
        if others:
            raise ConfigError(
                f"{others[0]} says what a signed artifact must be, but no key is given",
                "Add --key FILE, the public key of whoever signs it.",
            )
        return None
    if file and (keys or others):
        raise ConfigError(
            f"--policy and {'--key' if keys else others[0]} cannot be combined",
            "Write all of it into the file, or into options.",
        )
    # Imported late because cryptography is slow to load, and only signatures need it.
    from fledge.project.policy import Policy  # noqa: PLC0415

    if file:
        return Policy.load(file)
    return Policy.of(keys or (), threshold=threshold, builder=builder, sources=sources or ())
