"""Puts variables of the environment into a parsed fledge.toml: ``version = "${AGENT}"``.

Only keys whose declaration says ``extra={"variables": True}`` take them: names and versions that
pipelines choose. Provenance records the value. A variable anywhere else is refused, because the
text itself would go into the artifact.
"""

from __future__ import annotations

import re

from fledge.host.settings import Settings
from fledge.project.schema import Schema, Table
from fledge.project.toml import Document
from fledge.project.toml import Table as Data

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand(document: Document, schema: Schema, settings: Settings) -> None:
    """Replace the variables in the values that a file sets.

    Reports one that is unset or where no key takes it. The table of the plugin manifest is left as
    it is: the shell of a guest may expand it.
    """
    for name in _with_variables(document.top.data):
        if isinstance(document.top.data[name], str):
            _refuse(document.top, name, schema)
    for table in schema.tables:
        if isinstance(document.top.data.get(table.name), dict):
            _expand_table(document.top.table(table.name), table, schema, settings)


def _expand_table(data: Data, table: Table, schema: Schema, settings: Settings) -> None:
    keys = {} if table.entries else table.by_name()
    for name in _with_variables(data.data):
        path, value = (*data.keys, name), data.data[name]
        if path in data.document.origins:
            continue  # a command line says what it means
        if not (name in keys and keys[name][0].variables and isinstance(value, str)):
            _refuse(data, name, schema)
            continue
        used = VARIABLE.findall(value)
        missing = [each for each in used if settings.environment.get(each) is None]
        if missing:
            _report(data, name, f"the variable {missing[0]} is not set; set it, or use --set")
        elif "${" in VARIABLE.sub("", value):
            _report(data, name, "a variable is written ${NAME}")
        else:
            data.data[name] = VARIABLE.sub(lambda each: settings.environment[each[1]], value)
            data.document.variables[path] = used


def _refuse(data: Data, name: str, schema: Schema) -> None:
    takers = [
        f"[{table.name}] {key.name}"
        for table in schema.tables
        for keys in table.by_name().values()
        for key in keys
        if key.variables
    ]
    where = ", ".join(takers)
    _report(data, name, f"variables are expanded only in {where}; write the value, or use --set")


def _report(data: Data, name: str, message: str) -> None:
    data.report_value(name, message)
    data.document.settled.add((*data.keys, name))


def _with_variables(data: dict[str, object]) -> list[str]:
    """Return the keys whose values have a variable in them."""
    return [name for name, value in data.items() if _has_variable(value)]


def _has_variable(value: object) -> bool:
    waiting = [value]  # tables may be nested deeper than Python may recurse
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and "${" in each:
            return True
        if isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return False
