"""The entry point of the command line, and the list of its commands."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NamedTuple

from typer._completion_classes import completion_init
from typer.main import get_command

from fledge.cli.interrupts import end_unwritable
from fledge.cli.options import EXIT_CODES, Group
from fledge.cli.streams import OutputError, prepare_streams
from fledge.host.process import tune_for_builds


class CommandEntry(NamedTuple):
    """The entry of a command in ``fledge --help``."""

    module: str
    """The module of the command. Its ``app`` is a `typer.Typer`."""
    help: str
    """The first line of the command's own help."""


COMMANDS = {
    "build": CommandEntry("fledge.cli.build", "Build the artifact and print its path."),
    "lock": CommandEntry("fledge.cli.lock", "Pin the inputs of the configuration in fledge.lock."),
    "fetch": CommandEntry("fledge.cli.fetch", "Download everything that fledge.lock pins."),
    "verify": CommandEntry("fledge.cli.verify", "Check signatures, build it again and compare."),
    "sign": CommandEntry("fledge.cli.sign", "Sign the provenance of an artifact."),
    "keygen": CommandEntry("fledge.cli.keygen", "Make a key that signs artifacts."),
    "inspect": CommandEntry("fledge.cli.inspect", "Show the content of an artifact."),
    "sbom": CommandEntry("fledge.cli.sbom", "Print the SBOM of an artifact: the software in it."),
    "diff": CommandEntry("fledge.cli.diff", "Explain how two artifacts differ."),
    "check": CommandEntry(
        "fledge.cli.check", "Validate the configuration, and check a kernel against it."
    ),
    "schema": CommandEntry(
        "fledge.cli.schema", "Print the JSON Schema of fledge.toml, for editors."
    ),
    "version": CommandEntry("fledge.cli.version", "Print the version."),
    "manifest": CommandEntry("fledge.cli.manifest", "Print the plugin manifest of an artifact."),
    "boot": CommandEntry("fledge.cli.boot", "Boot an artifact in QEMU, as Volant does."),
    "push": CommandEntry("fledge.cli.push", "Push artifacts to a registry."),
    "pull": CommandEntry("fledge.cli.pull", "Pull artifacts from a registry."),
    "cache": CommandEntry("fledge.cli.cache", "Show, verify or prune the cache."),
}
"""All commands, in the order of ``fledge --help``."""


FOREIGN = {
    "serve": "fledge has no server; run fledge build on each request, or call fledge.build() in"
    " Python",
}
"""Commands of the original fledge that this one has not, and what to do instead."""


class Completion(NamedTuple):
    """What a shell may complete a word to, as typer's classes for shells expect it."""

    value: str
    help: str


class CommandGroup(Group):
    """The group of all `COMMANDS`. Listing them does not import their modules."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. ``--version`` is the command of that name."""
        if args[:1] == ["--version"]:
            args = ["version", *args[1:]]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command. None if no command has that name.

        One that only the original fledge has is a usage error.
        """
        if cmd_name in FOREIGN:
            ctx.fail(FOREIGN[cmd_name])
        if cmd_name not in COMMANDS:
            return None
        return get_command(import_module(COMMANDS[cmd_name].module).app)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return what a word can be completed to. Names of commands import no command."""
        names = [
            Completion(name, entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names or super().shell_complete(ctx, incomplete)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the section of the help that lists the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, listed.help) for name, listed in COMMANDS.items()])


_COMMAND_NAMES: dict[str, Any] = dict.fromkeys(COMMANDS)
"""The names of the commands, which are enough for lists and suggestions."""

app = CommandGroup(
    name="fledge",
    commands=_COMMAND_NAMES,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a fledge.toml into a bootable plugin artifact for Volant microVMs.",
    epilog=EXIT_CODES,
)
"""The command line. ``app(["build"])`` runs it with these arguments and raises `SystemExit`."""

# Done here because `app` lacks typer's options that write into the files of a shell.
completion_init()


def main() -> None:
    """Run the command line with the arguments of this process, and exit."""
    prepare_streams()
    tune_for_builds()
    try:
        try:
            app(prog_name="fledge")
        finally:
            sys.stdout.flush()
    except OutputError as error:
        end_unwritable(error)
