"""Changes the project of the original fledge into one of this fledge."""

from __future__ import annotations

from pathlib import Path

import msgspec
import tomli

from fledge.errors import FledgeError
from fledge.host.files import PathLike
from fledge.operations.arguments import as_session
from fledge.operations.check import check
from fledge.operations.scaffold import CONFIG, Scaffold
from fledge.project import config as configs
from fledge.project import migration, toml
from fledge.project.recipes import Service
from fledge.report import Reporter
from fledge.session import Session
from fledge.tree.regular import read_regular

KEPT = "fledge.original.toml"
"""The name under which a fledge.toml is kept as it was."""


def migrate(
    original: PathLike, *, ci: Service | None = None, session: Session | None = None
) -> tuple[Path, ...]:
    """Change a config of the original fledge into a fledge.toml in the same folder.

    Each change is a note. If the config is called fledge.toml, it is kept as fledge.original.toml.
    Beside it, what `init` writes is written. The result has passed `check`; a manifest.toml needs
    no change.

    Returns the paths that were written. Raises `ConfigError` if one of them exists or if the result
    does not pass, before anything is written.
    """
    session, original = as_session(session), Path(original)
    folder = original.parent
    target, kept = folder / CONFIG, folder / KEPT
    toml.read(original, "Name the fledge.toml of the original fledge.")  # explains bad syntax
    text = read_regular(original, toml.MAX_TOML_SIZE).decode("utf-8-sig")
    new, changes = migration.migrate(text, original)
    is_in_place = target.exists() and original.samefile(target)
    with Scaffold(folder, ci) as scaffold:
        if not is_in_place:
            scaffold.check([target])
        else:
            scaffold.check([kept] if changes else [])
        for change in changes:
            session.reporter.note(change.shown(original))
        if not changes:
            session.reporter.note(f"{original} needs no change")
        try:
            config = configs.load_data(tomli.loads(new), original)
            check(config, session=msgspec.structs.replace(session, reporter=Reporter()))
        except FledgeError as error:
            hint = f"Nothing was written. Correct that in {original}, and run the command again."
            error.hint = f"{error.hint} {hint}".strip()
            raise
        if not is_in_place:
            scaffold.add(target, new.encode())
        elif changes:
            scaffold.add(kept, original.read_bytes())
            scaffold.replace(target, new.encode())
        return scaffold.write(config)
