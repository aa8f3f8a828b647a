"""Lets variables of the environment set options: ``FLEDGE_OFFLINE=1`` is ``--offline``."""

from __future__ import annotations

from typing import Any

from typer._click.globals import get_current_context

PREFIX = "FLEDGE_"

OWN = frozenset(
    {
        *(("sign", "--key"), ("sign", "--certificate"), ("sign", "--public-key")),
        *(("keygen", "--output"), ("keygen", "--type"), ("pull", "--output")),
        *(("boot", "--memory"), ("boot", "--timeout"), ("cache prune", "--registry")),
    }
)
"""Options that mean something else in other commands, or that say too little alone: the variable
has the name of the command, too, as in FLEDGE_SIGN_KEY."""

UNBOUND = frozenset({"--help", "--kernel", "--set"})
"""Options without a variable: FLEDGE_KERNEL is a setting of its own, with a lower rank than
[target] kernel, and values of --set may have blanks, which separate values in a variable."""


def bind(command: Any, name: str) -> None:
    """Give each option of a command and its subcommands a variable, and list them in its help."""
    bound = []
    for option in command.params:
        long = long_name(option)
        if option.param_type_name == "option" and long not in UNBOUND:
            option.envvar = variable(name, long)
            option.show_envvar = False  # all are listed together
            bound.append(option.envvar)
    if command.epilog:
        command.epilog = f"{_listing(bound)}\n\n{command.epilog}"
    for child, each in getattr(command, "commands", {}).items():
        bind(each, f"{name} {child}")


def variable(command: str, option: str) -> str:
    """Return the variable of an option of a command, such as ``("cache prune", "--max-size")``."""
    words = [option.removeprefix("--")]
    if (command, option) in OWN:
        words.insert(0, command)
    return PREFIX + "_".join(words).upper().replace("-", "_").replace(" ", "_")


def long_name(option: Any) -> str:
    """Return the long form of an option, such as ``--output``."""
    return max(option.opts, key=len, default="")


def used() -> list[str]:
    """Return the variables that have set options of the command that runs."""
    context = get_current_context(silent=True)
    if context is None:
        return []
    return [str(option.envvar) for option in context.command.params if is_from(context, option)]


def is_from(context: Any, option: Any) -> bool:
    """Return whether the value of an option comes from its variable."""
    source = context.get_parameter_source(option.name)
    return source is not None and source.name == "ENVIRONMENT"


def _listing(names: list[str]) -> str:
    return (
        f"Environment: {', '.join(names)} set the options of these names. Blanks separate several"
        " values, and colons several paths."
    )
