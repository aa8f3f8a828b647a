"""Runs the command ``fledge inspect``."""

from __future__ import annotations

import os
import sys
from codecs import getincrementaldecoder
from contextlib import ExitStack
from pathlib import Path

import typer

from fledge.cli import views
from fledge.cli.jsonwriter import ObjectWriter
from fledge.cli.reporters import reported
from fledge.formats import Opened, open_artifact
from fledge.operations.inspect import (
    Summary,
    describe,
    describe_entries,
    find_node,
    sockets_below,
    summarize,
    walk_below,
)
from fledge.tree import Directory, File, Node
from fledge.tree.content import read_content
from fledge.tree.names import printable


def run(artifact: Path, path: str | None, as_list: bool, as_json: bool, verbose: bool) -> None:
    """Show the content of an artifact."""
    if as_list and as_json:
        raise typer.BadParameter("--list and --json exclude each other")
    inside = os.fsencode(path or "/")
    everything = as_list or as_json or path is None
    summary = None
    with reported(verbose) as reporter, ExitStack() as stack:
        # The display has to end before anything is printed.
        with reporter.work(f"reading {artifact.name}") as progress:
            opened = stack.enter_context(open_artifact(artifact, None if everything else inside))
            top = find_node(opened, inside, follow=not (as_list or as_json))
            if as_json or (path is None and not as_list):
                summary = summarize(opened, progress)
        if summary and as_json:
            _print_json(opened, summary, inside, top)
        elif summary:
            for line in views.summary_lines(opened, summary):
                print(printable(line))
        elif as_list:
            _print_below(opened, inside, top)
        else:
            _print_node(opened, inside, top)
    if summary and summary.seal and not summary.seal.is_intact:
        raise typer.Exit(1)


def _print_json(opened: Opened, summary: Summary, path: bytes, top: Node) -> None:
    facts = describe(opened, summary)
    with ObjectWriter(sys.stdout) as writer:
        for name, value in facts.items():
            writer.member(name, value)
        writer.items("entries", describe_entries(opened, path, top))


def _print_below(opened: Opened, path: bytes, top: Node) -> None:
    for name, node in walk_below(path, top):
        print(views.entry_line(opened, b"/" + name, node))
    for name in sockets_below(opened, path):
        print(views.socket_line(b"/" + name))


def _print_node(opened: Opened, path: bytes, top: Node) -> None:
    if isinstance(top, File):
        _print_content(top)
    elif isinstance(top, Directory):
        for name, node in sorted(top.children.items()):
            print(views.entry_line(opened, name, node))
    else:
        print(views.entry_line(opened, path, top))


def _print_content(file: File) -> None:
    """Print the bytes. On a terminal, escape control characters."""
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
