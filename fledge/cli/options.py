"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer._types import TyperChoice
from typer.core import TyperCommand, TyperGroup, TyperOption

from fledge.cli import variables
from fledge.cli.colour import When, remember

EXIT_CODES = (
    "Exit codes: 0 done, 1 other failure, 2 usage or config, 3 network,"
    " 4 checksum or corrupt input, 5 missing tool or privilege, 6 not as expected (boot)."
)
"""The end of the help of every command."""

DEFAULT_CONFIG = Path("fledge.toml")

PLATFORMS = (
    *("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64"),
    *("linux/ppc64le", "linux/s390x"),
)
"""The platforms that shells complete: those that most images have."""


def complete_platform(incomplete: str) -> list[str]:
    """Return the common platforms that begin so."""
    return [each for each in PLATFORMS if each.startswith(incomplete)]


def complete_image(incomplete: str) -> list[str]:
    """Return the images and artifacts that the cache has seen and that begin so."""
    # Imported late, because only these words need the cache.
    from fledge.host.settings import Settings  # noqa: PLC0415
    from fledge.store.cache import Cache  # noqa: PLC0415

    names = Cache(Settings.from_environment().cache_folder).names()
    return [each for each in names if each.startswith(incomplete)]


def complete_change(incomplete: str) -> list[str]:
    """Return the images for the key of the image; nothing for other keys."""
    key, equals, value = incomplete.partition("=")
    found = complete_image(value) if (key, equals) == ("source.image", "=") else []
    return [f"{key}={each}" for each in found]


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration to read.",
        show_default="fledge.toml, here or in a parent folder",
    ),
]
ConfigsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration to read. Can be repeated.",
        show_default="fledge.toml, here or in a parent folder",
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
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the configuration, such as agent.version=v1.2. Can be repeated.",
        autocompletion=complete_change,
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
        autocompletion=complete_platform,
        show_default="linux on this machine",
    ),
]
PlatformsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OS/ARCH[/VARIANT]",
        help="A platform of the image. Can be repeated.",
        autocompletion=complete_platform,
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

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the section of the help that lists the commands, each with its whole summary."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, (each.help or "").partition("\n\n")[0])
                    for name, each in self.commands.items()
                ]
            )


class Command(TyperCommand):
    """A command that refuses an option given twice, of which only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises `typer.BadParameter`, which names a variable if that is
        wrong.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for each in given:
            if given.count(each) > 1 and not (each.multiple or getattr(each, "is_flag", False)):
                raise typer.BadParameter("it is given twice; give it once", ctx, each)
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param and variables.is_from(ctx, error.param):
                error.param_hint = str(error.param.envvar)
            raise
        # What a person names takes the place of what a variable names.
        if ctx.params.get("projects") or ctx.params.get("root_hash"):
            for option in self.params:
                if option.name == "config" and variables.is_from(ctx, option):
                    ctx.params["config"] = None
        return rest


def color_option() -> TyperOption:
    """Make the option ``--color``, which every command has."""
    return TyperOption(
        param_decls=["--color"],
        type=TyperChoice([each.value for each in When]),
        callback=remember,
        expose_value=False,
        help="Whether to print colours. auto: on a terminal; NO_COLOR and FORCE_COLOR count.",
    )


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
