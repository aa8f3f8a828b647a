"""Runs the command ``fledge cache`` and its subcommands."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import typer

from fledge.cli.failures import explained
from fledge.cli.reporters import reported
from fledge.cli.units import parse_duration, parse_size, path_text
from fledge.errors import ConfigError
from fledge.host.settings import Settings
from fledge.host.work import open_folder, remove_abandoned
from fledge.report import counted, human_size
from fledge.store import housekeeping
from fledge.store.cache import Cache
from fledge.store.housekeeping import Amount, Pruned


def show(verbose: bool) -> None:
    """Show the content of the cache."""
    with explained(verbose):
        cache = _cache()
        contents = housekeeping.contents(cache)
        print(path_text(cache.root))
        total = sum(contents.values(), Amount())
        for kind, amount in {**contents, "all together": total}.items():
            print(f"  {kind:<22}{_amount_text(amount)}")


def verify(verbose: bool) -> None:
    """Verify all files in the cache; remove and list damaged ones."""
    with reported(verbose) as reporter:
        sound = housekeeping.verify(_cache(), reporter)
        print(f"sound: {_amount_text(sound)}")


def prune(
    older_than: str | None, max_size: str | None, registry: str | None, verbose: bool
) -> None:
    """Remove files from the cache."""
    if older_than is None and max_size is None:
        raise typer.BadParameter("give --older-than, --max-size or both")
    with explained(verbose):
        age = None if older_than is None else parse_duration(older_than)
        size = None if max_size is None else parse_size(max_size)
        if registry is not None:
            # Imported late, because nothing else here needs the network.
            from fledge.operations import shared_cache  # noqa: PLC0415

            removed, left = shared_cache.prune(registry, age, size)
            print(f"removed: {_builds_text(removed)}")
            print(f"left: {_builds_text(left)}")
            return
        _print_pruned(housekeeping.prune(_cache(), age, size))
        if abandoned := _remove_abandoned(Path(), Path(tempfile.gettempdir())):
            print(f"of killed builds: {counted(abandoned, 'folder')} removed")


def clear(yes: bool, verbose: bool) -> None:
    """Remove all files that no build uses from the cache."""
    with explained(verbose):
        cache = _cache()
        total = sum(housekeeping.contents(cache).values(), Amount())
        if not yes and total.files:
            question = f"Remove {_amount_text(total)} from {path_text(cache.root)}?"
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise ConfigError(
                    f"there is no terminal on which to ask: {question}", "Say --yes to remove them."
                )
            if not typer.confirm(question, err=True):
                raise typer.Exit(1)
        _print_pruned(housekeeping.prune(cache, None, 0))
        cache.forget_names()


def show_folder(verbose: bool) -> None:
    """Print the folder of the cache."""
    with explained(verbose):
        print(path_text(_cache().root))


def _print_pruned(pruned: Pruned) -> None:
    print(f"removed: {_amount_text(pruned.removed)}")
    if pruned.in_use.files:
        print(f"in use: {_amount_text(pruned.in_use)}")
    print(f"left: {_amount_text(pruned.left)}")


def _remove_abandoned(*places: Path) -> int:
    """Remove what killed builds have left in these folders, and return how many there were."""
    removed = 0
    for place in places:
        folder = open_folder(place)
        try:
            removed += remove_abandoned(folder)
        finally:
            os.close(folder)
    return removed


def _cache() -> Cache:
    return Cache(Settings.from_environment().cache_folder)


def _builds_text(amount: Amount) -> str:
    return f"{counted(amount.files, 'build')}, {human_size(amount.size)}"


def _amount_text(amount: Amount) -> str:
    return f"{counted(amount.files, 'file')}, {human_size(amount.size)}"
