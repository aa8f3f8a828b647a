"""Derives the reference of the command line, in Markdown and as a manual page, from the commands.

docs/cli.md and docs/fledge.1 are written by scripts/reference. The manual page uses the macros of
man(7), which every formatter knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from typer._click.core import Context

from fledge._version import __version__
from fledge.cli.app import COMMANDS, app
from fledge.cli.options import EXIT_CODES

INTRODUCTION = """\
# Command line

<!-- scripts/reference writes this page from the commands in fledge/cli/. Edit those. -->
"""

ABOUT = (
    "fledge builds what fledge.toml describes. Without `-c`, it takes the fledge.toml of the"
    " working directory, or else of the nearest parent folder: not above the root of a git"
    " repository, the home folder or the filesystem, and none of another user. It says so, and the"
    " artifact then goes beside that file.",
    "Options before the command belong to all commands. `-C DIR` can be repeated; each starts from"
    " the one before.",
    "Every option can also be set by a variable, which the option on a command line overrides."
    " FLEDGE_CONFIG has no effect where a command is given projects. A flag is on with 1, true, yes"
    " or on. An error names the variables that it may be due to.",
    "`--set KEY=VALUE` sets a key of fledge.toml for one run. Text needs no quotes; other values"
    " are as in TOML. In `[agent] version`, `[source] image`, `[cache] registry` and `[target]"
    " kernel`, `${NAME}` is the value of a variable of the environment. Provenance records the"
    " resulting config, and `fledge lock` pins by it; `fledge verify` compares with the config that"
    " the same options and variables make.",
)


class Entry(NamedTuple):
    """The reference of one command."""

    name: str
    """With the command around it: ``cache prune``."""
    usage: str
    paragraphs: list[str]
    arguments: list[tuple[str, str]]
    options: list[tuple[str, str, str]]
    """The forms of an option, its help, and its variable; empty: it has none."""


def entries() -> list[Entry]:
    """Return all commands and subcommands, in the order of ``fledge --help``."""
    context = Context(app, info_name="fledge", **app.context_settings)
    return [_entry(app, context, ""), *_below(app, context, "")]


def _below(group: Any, context: Any, prefix: str) -> Iterator[Entry]:
    for name in COMMANDS if group is app else getattr(group, "commands", {}):
        command = group.get_command(context, name)
        inner = Context(command, info_name=name, parent=context)
        yield _entry(command, inner, f"{prefix}{name}")
        yield from _below(command, inner, f"{prefix}{name} ")


def _entry(command: Any, context: Any, name: str) -> Entry:
    arguments, options = [], []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        if parameter.param_type_name == "argument":
            arguments.append(record)
        else:
            options.append((*record, str(parameter.envvar or "")))
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    paragraphs = [" ".join(each.split()) for each in (command.help or "").split("\n\n")]
    return Entry(name, usage, paragraphs, arguments, options)


def cli_page() -> str:
    """Return the reference in Markdown."""
    root, *others = entries()
    parts = [INTRODUCTION, *(f"{each}\n" for each in ABOUT), f"{EXIT_CODES}\n"]
    parts += _markdown(root)
    for each in others:
        parts += [f"## `fledge {each.name}`\n", *_markdown(each)]
    return "\n".join(parts)


def _markdown(entry: Entry) -> Iterator[str]:
    yield f"```text\n{entry.usage}\n```\n"
    yield from (f"{_plain(each)}\n" for each in entry.paragraphs)
    lines = [f"- `{name}`: {_plain(text)}" for name, text in entry.arguments]
    for forms, text, variable in entry.options:
        lines.append(f"- `{forms}`: {_plain(text)}" + (f" (`{variable}`)" if variable else ""))
    yield "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def manual_page() -> str:
    """Return the manual page, for man(7)."""
    root, *others = entries()
    lines = [
        f'.TH FLEDGE 1 "" "fledge {__version__}" "User Commands"',
        ".SH NAME",
        f"fledge \\- {_roff(root.paragraphs[0].rstrip('.').replace('Turn', 'turn'))}",
        ".SH SYNOPSIS",
        f".B {_roff(root.usage)}",
        ".SH DESCRIPTION",
    ]
    lines += _roff_paragraphs([each.replace("`", "") for each in ABOUT])
    lines += [".SH OPTIONS", *_roff_options(root), ".SH COMMANDS"]
    for each in others:
        lines += [f".SS {_roff(each.usage)}"]
        lines += _roff_paragraphs(each.paragraphs)
        for name, text in each.arguments:
            lines += [".TP", f".I {_roff(name)}", _roff(text)]
        lines += _roff_options(each)
    lines += [".SH EXIT STATUS", _roff(EXIT_CODES.removeprefix("Exit codes: "))]
    lines += [".SH FILES", ".TP", ".I fledge.toml", "The configuration."]
    lines += [".TP", ".I fledge.lock", "The inputs that it pins."]
    return "\n".join(lines) + "\n"


def _roff_paragraphs(paragraphs: Sequence[str]) -> list[str]:
    return "\n.PP\n".join(map(_roff, paragraphs)).split("\n")


def _roff_options(entry: Entry) -> Iterator[str]:
    for forms, text, variable in entry.options:
        yield ".TP"
        yield f".B {_roff(forms)}"
        yield _roff(text + (f" ({variable})" if variable else ""))


def _roff(text: str) -> str:
    """Escape a line of text for roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
