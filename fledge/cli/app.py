"""The entry point of the command line, and the list of its commands."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer._click.shell_completion import add_completion_class
from typer._completion_classes import ZshComplete, completion_init
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from fledge.cli import variables
from fledge.cli.interrupts import end_unwritable
from fledge.cli.options import EXIT_CODES, MOVABLE, Group, color_option
from fledge.cli.streams import OutputError, prepare_streams
from fledge.host.process import tune_for_builds


class CommandEntry(NamedTuple):
    """The entry of a command in ``fledge --help``."""

    module: str
    """The module of the command. Its ``app`` is a `typer.Typer`."""
    help: str
    """The first line of the command's own help."""


COMMANDS = {
    "init": CommandEntry("fledge.cli.init", "Start a project: write a fledge.toml that builds."),
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
    "cache": CommandEntry("fledge.cli.cache", "Show, verify, prune or clear the cache."),
    "config": CommandEntry("fledge.cli.config", "Show where each value of the config comes from."),
    "doctor": CommandEntry("fledge.cli.doctor", "Show which parts of this machine fledge can use."),
    "completion": CommandEntry(
        "fledge.cli.completion", "Print the script that lets a shell complete."
    ),
    "help": CommandEntry("fledge.cli.help", "Show the help of fledge or of a command."),
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
        """Parse the arguments. ``--version`` is the command of that name.

        `MOVABLE` options before the command become its own; `OPTIONS` stay before it.
        """
        count, moved = 0, []
        while count < len(args):
            if args[count] in MOVABLE:
                moved.append(args.pop(count))
            elif args[count] in VALUED:
                count += 2
            elif args[count].startswith(tuple(VALUED)):
                count += 1
            else:
                break
        if args[count : count + 1] == ["--version"]:
            args[count] = "version"
        args[count + 1 : count + 1] = moved
        return TyperGroup.parse_args(self, ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command. None if no command has that name.

        One that only the original fledge has is a usage error.
        """
        if cmd_name in FOREIGN:
            ctx.fail(FOREIGN[cmd_name])
        if cmd_name not in COMMANDS:
            return None
        command = get_command(import_module(COMMANDS[cmd_name].module).app)
        command.params.append(color_option())
        variables.bind(command, cmd_name)
        return command

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


def _change_folder(context: Any, _: Any, folders: tuple[str, ...]) -> None:
    """Change to each folder, the next one from the one before, as git and make do."""
    if context.resilient_parsing:
        return
    for folder in folders:
        try:
            os.chdir(folder)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise typer.BadParameter(f"{folder}: {reason}", param_hint="-C") from error


OPTIONS: list[Any] = [
    TyperOption(
        param_decls=["-C"],
        metavar="DIR",
        multiple=True,
        callback=_change_folder,
        expose_value=False,
        help="Run in this folder: relative paths begin there.",
    ),
    color_option(),
]
"""The options that stand before a command."""

VALUED = ("-C", "--color")
"""The names of `OPTIONS`, all of which take a value."""

app = CommandGroup(
    name="fledge",
    params=OPTIONS,
    commands=_COMMAND_NAMES,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a fledge.toml into a bootable plugin artifact for Volant microVMs.",
    epilog="Environment: FLEDGE_OPTION sets the option of that name, such as FLEDGE_OFFLINE=1; the"
    f" help of a command lists its variables.\n\n{EXIT_CODES}",
)
"""The command line. ``app(["build"])`` runs it with these arguments and raises `SystemExit`."""

# Done here because `app` lacks typer's options that write into the files of a shell.
completion_init()


class LineComplete(ZshComplete):
    """Completes for the scripts of ``fledge completion``: a candidate a line, a tab, its help."""

    name = "lines"

    def format_completion(self, item: Any) -> str:
        """Return the line of a candidate. Without rich, which typer would load for its help."""
        return f"{item.value}\t{' '.join(item.help.split())}" if item.help else str(item.value)

    def complete(self) -> str:
        """Return all lines."""
        arguments, incomplete = self.get_completion_args()
        return "\n".join(map(self.format_completion, self.get_completions(arguments, incomplete)))


add_completion_class(LineComplete, LineComplete.name)


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
