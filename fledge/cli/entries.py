"""Prints entries of an artifact: as lines like those of ``ls -l``, or the bytes of one file."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from datetime import datetime, timedelta, timezone
from stat import filemode

from fledge.formats import Opened
from fledge.operations.entries import sockets_below, walk_below
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink
from fledge.tree.content import read_content
from fledge.tree.names import printable

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def print_below(opened: Opened, path: bytes, top: Node) -> None:
    """Print the entry at ``path`` and all below it."""
    for name, node in walk_below(path, top):
        print(entry_line(opened, b"/" + name, node))
    for name in sockets_below(opened, path):
        print(socket_line(b"/" + name))


def print_node(opened: Opened, path: bytes, top: Node) -> None:
    """Print the bytes of a file, the entries of a directory, or an entry of another type."""
    if isinstance(top, File):
        _print_content(top)
    elif isinstance(top, Directory):
        for name, node in sorted(top.children.items()):
            print(entry_line(opened, name, node))
    else:
        print(entry_line(opened, path, top))


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


def entry_line(opened: Opened, path: bytes, node: Node) -> str:
    """Format a node like ``ls -l``, with its time in UTC."""
    stat = opened.contents.stat(node)
    size = f"{node.major}, {node.minor}" if isinstance(node, Device) else str(stat.size)
    arrow = f" -> {printable(node.target)}" if isinstance(node, Symlink) else ""
    return (
        f"{filemode(node.file_type | node.mode)} {stat.links:>3} {node.uid:>5}"
        f" {node.gid:>5} {size:>10} {second(node.mtime_ns)} {printable(path)}{arrow}"
    )


def socket_line(path: bytes) -> str:
    """Format a socket like `entry_line`. Only its path is known."""
    unknown = f"{'?':>3} {'?':>5} {'?':>5} {'?':>10} {'?':>19}"
    return f"s????????? {unknown} {printable(path)}"


def second(time_ns: int) -> str:
    """Format a time as date and time in UTC, to the second."""
    return f"{_EPOCH + timedelta(0, time_ns // NANOSECONDS):%Y-%m-%d %H:%M:%S}"
