"""The command line: parse flags, call the library, render what it says.

Imports that take time happen in the commands that need them.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fledge import __version__
from fledge.errors import FledgeError
from fledge.tree.names import printable

if TYPE_CHECKING:
    from fledge.artifact import Opened
    from fledge.cli.lines import LineReporter
    from fledge.oci.manifest import Platform
    from fledge.operations.diff import Report
    from fledge.tree import File, Node

EXIT_CODES = (
    "Exit codes: 0 done, 1 other failure, 2 usage or config, 3 network,"
    " 4 checksum or corrupt input, 5 missing tool or privilege."
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a fledge.toml into a bootable plugin artifact for Volant microVMs.",
    epilog=EXIT_CODES,
)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration to read.")
]
MAX_DIFFERENCE = 100
"""Lines of a difference that are shown unasked."""

VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every input, and the traceback of an error.")
]
PlatformsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OS/ARCH[/VARIANT]",
        help="An image's platform; may be given several times.",
        show_default="linux on this machine",
    ),
]


@app.command(epilog=EXIT_CODES)
def build(
    config: ConfigOption = Path("fledge.toml"),
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write.",
            show_default="plugin.cpio.gz or IMAGE.img",
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="OS/ARCH[/VARIANT]",
            help="Which of an image's platforms to take.",
            show_default="linux on this machine",
        ),
    ] = None,
    verbose: VerboseOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use nothing from the network, only the cache.")
    ] = False,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse whatever fledge.lock does not pin.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the path.")
    ] = False,
) -> None:
    """Build the artifact and print its path."""
    if verbose and quiet:
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    with _explained(verbose):
        import fledge.operations.build
        import fledge.project.config
        from fledge.oci.manifest import parse_platform
        from fledge.report import Reporter
        from fledge.store.cache import Cache

        lines = None if quiet else _line_reporter()
        artifact = fledge.operations.build.build(
            fledge.project.config.load(config),
            output,
            cache=Cache.default(),
            reporter=lines or Reporter(),
            offline=offline,
            platform=parse_platform(platform) if platform else None,
            locked=locked,
        )
        if lines and verbose:
            lines.inputs(artifact)
        if lines:
            lines.summary(artifact)
        if as_json:
            from fledge.cli import views as render

            print(json.dumps(render.artifact_document(artifact), indent=2))
        else:
            print(artifact.path)


@app.command(epilog=EXIT_CODES)
def lock(
    config: ConfigOption = Path("fledge.toml"),
    platform: PlatformsOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if it would change.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Pin what the names in the configuration stand for now, in fledge.lock beside it."""
    with _explained(verbose):
        import fledge.project.config
        from fledge.net.fetch import Fetcher
        from fledge.operations import lock as resolve
        from fledge.store.cache import Cache

        update = resolve.check if check else resolve.update
        fetcher = Fetcher(Cache.default(), _line_reporter())
        print(update(fledge.project.config.load(config), _platforms(platform), fetcher))


@app.command(epilog=EXIT_CODES)
def fetch(
    config: ConfigOption = Path("fledge.toml"),
    platform: PlatformsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Get all that fledge.lock pins into the cache, for builds with --offline."""
    with _explained(verbose):
        import fledge.project.config
        from fledge.net.fetch import Fetcher
        from fledge.operations import lock as resolve
        from fledge.store.cache import Cache

        fetcher = Fetcher(Cache.default(), _line_reporter())
        resolve.fetch(fledge.project.config.load(config), _platforms(platform), fetcher)


@app.command(epilog=EXIT_CODES)
def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", show_default=False)],
    config: ConfigOption = Path("fledge.toml"),
    verbose: VerboseOption = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use nothing from the network, only the cache.")
    ] = False,
) -> None:
    """Build an artifact again from what its provenance records, and compare; 1 if it differs."""
    with _explained(verbose):
        import tempfile

        import fledge.project.config
        from fledge.cli import views as render
        from fledge.net.fetch import Fetcher
        from fledge.operations.diff import diff
        from fledge.operations.verify import verify
        from fledge.store.cache import Cache

        fetcher = Fetcher(Cache.default(), _line_reporter(), offline)
        with tempfile.TemporaryDirectory(prefix="fledge-") as folder:
            again = Path(folder, artifact.name)
            verdict = verify(artifact, fledge.project.config.load(config), again, fetcher)
            for line in render.verdict(artifact, verdict):
                print(printable(line))
            if verdict.artifact != verdict.rebuilt:
                try:
                    _print_difference(diff(artifact, again), verbose)
                except FledgeError as error:
                    print(printable(f"  what differs cannot be told: {error.message}"))
    if not verdict.equal:
        raise typer.Exit(1)


@app.command(epilog=EXIT_CODES)
def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", show_default=False)],
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]", help="In the artifact: a file to print, or a folder to list."
        ),
    ] = None,
    as_list: Annotated[
        bool, typer.Option("--list", "-l", help="List all that is in it, or below PATH.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same, and the summary, as one JSON object.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what is in an artifact, fledge's or not: an initramfs or an ext2, ext3 or ext4 image."""
    if as_list and as_json:
        raise typer.BadParameter("--list and --json exclude each other")
    with _explained(verbose), _piped():
        from fledge import artifact as artifacts
        from fledge.cli import views as render
        from fledge.operations import inspect as inspection
        from fledge.tree import Directory, File

        inside = os.fsencode(path or "/")
        with artifacts.opened(artifact) as opened:
            top = inspection.find(opened, inside, follow=not (as_list or as_json))
            if as_json:
                _print_json(opened, inside, top)
            elif as_list:
                for name, node in inspection.below(inside, top):
                    print(render.listed(opened, b"/" + name, node))
                for name in inspection.sockets_below(opened, inside):
                    print(render.listed_socket(b"/" + name))
            elif path is None:
                for line in render.summary(opened, inspection.summarize(opened)):
                    print(printable(line))
            elif isinstance(top, File):
                _print_content(top)
            elif isinstance(top, Directory):
                for name, node in sorted(top.children.items()):
                    print(render.listed(opened, name, node))
            else:
                print(render.listed(opened, inside, top))


@app.command(epilog=EXIT_CODES)
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B", show_default=False)],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all lines.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as one JSON object.")] = False,
) -> None:
    """Explain how two artifacts differ; 0 if not a byte does, 1 if they do."""
    with _explained(verbose), _piped():
        import fledge.operations.diff
        from fledge.cli import views as render

        report = fledge.operations.diff.diff(before, after)
        if as_json:
            print(json.dumps(render.difference_document(report), indent=2))
        else:
            _print_difference(report, verbose)
    if not report.same_bytes:
        raise typer.Exit(1)


@app.command(epilog=EXIT_CODES)
def check(config: ConfigOption = Path("fledge.toml"), verbose: VerboseOption = False) -> None:
    """Validate the configuration and the files it names; download and write nothing."""
    with _explained(verbose):
        import fledge.project.config

        fledge.project.config.load(config)
        print(f"{config} is valid")


cache_app = typer.Typer(
    invoke_without_command=True, help="Show what the cache holds, verify it, make room in it."
)
app.add_typer(cache_app, name="cache")


@cache_app.callback(epilog=EXIT_CODES)
def show_cache(context: typer.Context) -> None:
    """Show what the cache holds."""
    if context.invoked_subcommand:
        return
    with _explained(verbose=False):
        from fledge.cli import views as render
        from fledge.store import housekeeping
        from fledge.store.cache import Cache
        from fledge.store.housekeeping import Amount

        cache = Cache.default()
        contents = housekeeping.contents(cache)
        print(cache.root)
        total = sum(contents.values(), Amount())
        for kind, amount in {**contents, "all together": total}.items():
            print(f"  {kind:<22}{render.counted(amount)}")


@cache_app.command("verify", epilog=EXIT_CODES)
def verify_cache(verbose: VerboseOption = False) -> None:
    """Read all that the cache holds; remove and list what is damaged."""
    with _explained(verbose):
        from fledge.cli import views as render
        from fledge.store import housekeeping
        from fledge.store.cache import Cache

        sound = housekeeping.verify(Cache.default(), _line_reporter())
        print(f"sound: {render.counted(sound)}")


@cache_app.command("prune", epilog=EXIT_CODES)
def prune_cache(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what was not used for so long: 30d.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Remove the longest unused until this is left: 5GiB."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Make room in the cache. Nothing goes that a running build uses."""
    if older_than is None and max_size is None:
        raise typer.BadParameter("say what may go with --older-than or --max-size")
    with _explained(verbose):
        from fledge.cli import views as render
        from fledge.cli.units import parse_duration, parse_size
        from fledge.store import housekeeping
        from fledge.store.cache import Cache

        pruned = housekeeping.prune(
            Cache.default(),
            None if older_than is None else parse_duration(older_than),
            None if max_size is None else parse_size(max_size),
        )
        print(f"removed: {render.counted(pruned.removed)}")
        if pruned.in_use.files:
            print(f"in use: {render.counted(pruned.in_use)}")
        print(f"left: {render.counted(pruned.left)}")


@app.command()
def version() -> None:
    """Print the version."""
    print(f"fledge {__version__}")


def main() -> None:
    """Entry point of the ``fledge`` command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What is ignored stays so: nohup means it.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if not sys.stderr:
        # It is closed. Nothing else that is opened shall take its place.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    # Only cycles need it, and of those a whole build makes some hundred objects. To look for them
    # took a twentieth of a build, and as long at the end, where Python looks once more.
    gc.disable()
    atexit.register(gc.freeze)
    # Threads that digest need the interpreter often, and shortly: by default each time up to 5 ms
    # too late.
    sys.setswitchinterval(0.0005)
    app()


@contextmanager
def _explained(verbose: bool) -> Iterator[None]:
    """End the process with a message and an exit code instead of a traceback."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        # One that came while a block was entered or left has kept its clean-up from running.
        traceback.clear_frames(interrupt.__traceback__)
        _fail("interrupted; nothing was written")
        _die_of(interrupt.args[0] if interrupt.args else signal.SIGINT)
    except FledgeError as error:
        if verbose:
            traceback.print_exc()
        _fail(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except Exception as error:
        if verbose:
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        _fail(f"fledge itself failed: {reason}", "Run again with -v and report what it shows.")
        raise typer.Exit(1) from None


def _line_reporter() -> LineReporter:
    if not sys.stderr.isatty():
        from fledge.cli.lines import LineReporter

        return LineReporter()
    from fledge.cli.terminal import TerminalReporter

    return TerminalReporter()


def _fail(message: str, hint: str = "") -> None:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    lines = message.splitlines() + ([f"  {hint}"] if hint else [])
    for line in lines:
        typer.echo(printable(line), err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _die_of(number: int) -> None:
    """Let the signal do what it would have done, so that the shell sees it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def _piped() -> Iterator[None]:
    """End as other programs do when who reads the output has had enough: ``| head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _die_of(signal.SIGPIPE)


def _print_content(file: File) -> None:
    """The bytes; for a terminal, what it would obey is escaped."""
    from codecs import getincrementaldecoder

    from fledge.tree.content import read_content

    if not sys.stdout.isatty():
        for piece in read_content(file.content):
            sys.stdout.buffer.write(piece)
        return
    decoder = getincrementaldecoder("utf-8")("backslashreplace")
    for piece in read_content(file.content):
        for line in decoder.decode(piece).splitlines(keepends=True):
            text = line.rstrip("\n")
            print("\t".join(map(printable, text.split("\t"))), end=line[len(text) :])
    print(decoder.decode(b"", final=True), end="")


def _print_json(opened: Opened, path: bytes, top: Node) -> None:
    """Entry by entry, for there may be many."""
    from fledge.operations import inspect as inspection

    facts = inspection.describe(opened, inspection.summarize(opened))
    print(json.dumps(facts, indent=2).removesuffix("\n}"), end=',\n  "entries": [')
    separator = "\n    "
    for entry in inspection.describe_entries(opened, path, top):
        print(separator, json.dumps(entry), sep="", end="")
        separator = ",\n    "
    print("\n  ]\n}")


def _platforms(names: list[str] | None) -> list[Platform]:
    from fledge.oci.manifest import host_platform, parse_platform

    return [parse_platform(name) for name in names or ()] or [host_platform()]


def _print_difference(report: Report, verbose: bool) -> None:
    from fledge.cli import views as render

    lines = list(render.difference(report))
    shown = lines if verbose else lines[:MAX_DIFFERENCE]
    for line in shown:
        print(printable(line))
    if left := len(lines) - len(shown):
        print(f"… and {left} lines more; -v or --json shows all")
