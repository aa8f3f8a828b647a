"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

EXIT_CODES = (
    "Exit codes: 0 done, 1 other failure, 2 usage or config, 3 network,"
    " 4 checksum or corrupt input, 5 missing tool or privilege, 6 not as expected (boot)."
)
"""The end of the help of every command."""

DEFAULT_CONFIG = Path("fledge.toml")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration to read.")
]
ConfigsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration to read. Can be repeated.",
        show_default="fledge.toml",
    ),
]
ProjectsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DIR|FILE]...",
        help="Folders with a fledge.toml, such files, or Dockerfiles; patterns, too.",
        show_default=False,
    ),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        "-m",
        metavar="FILE",
        help="The settings of the plugin manifest.",
        show_default="manifest.toml, or [manifest] in the configuration",
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where the artifact will be, for the plugin manifest: the URL of a folder.",
        show_default="[manifest] url, or the path on this machine",
    ),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Use only the cache, not the network.")
]
PlatformOption = Annotated[
    str | None,
    typer.Option(
        metavar="OS/ARCH[/VARIANT]",
        help="The platform of the image.",
        show_default="linux on this machine",
    ),
]
PlatformsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OS/ARCH[/VARIANT]",
        help="A platform of the image. Can be repeated.",
        show_default="linux on this machine",
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show more, and the traceback if fledge itself fails."),
]
VerboseDifferenceOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show the whole difference, and more of the build."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show only errors.")]
ArtifactArgument = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="The file to read.", show_default=False)
]


MOVABLE = frozenset({"-v", "--verbose", "-q", "--quiet"})
"""The options that may also be written before the command."""


class Group(TyperGroup):
    """A group of commands. `MOVABLE` options before a command are options of the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        count = next((n for n, each in enumerate(args) if each not in MOVABLE), len(args))
        return super().parse_args(ctx, args[count : count + 1] + args[:count] + args[count + 1 :])


class Command(TyperCommand):
    """A command that refuses an option given twice, of which only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises `typer.BadParameter`."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for each in given:
            if given.count(each) > 1 and not (each.multiple or getattr(each, "is_flag", False)):
                raise typer.BadParameter("it is given twice; give it once", ctx, each)
        return super().parse_args(ctx, args)


def new_app(help: str | None = None) -> typer.Typer:  # noqa: A002 - typer's own name
    """Make the app of a command's module.

    ``help`` is for a command with subcommands. Others use the docstring of their function.
    """
    return typer.Typer(
        cls=Group,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=help,
    )
