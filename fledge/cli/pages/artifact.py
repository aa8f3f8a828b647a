"""The page of ``fledge inspect --html``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from pathlib import Path

from fledge.cli.pages.areas import Area, as_json
from fledge.cli.pages.page import Column, Page, Row, Table, shown_name, shown_path
from fledge.operations.analyze import MIN_DUPLICATE, Analysis
from fledge.report import counted, human_size
from fledge.tree.names import printable

MAX_COMMAND = 200
"""Maximum characters of the command that made a layer."""

MAX_LARGEST = 100
"""Maximum files among the largest."""

MAX_NAMES = 6
"""Maximum paths of equal files in one row."""

PATH = Column("Path", "path")
SIZE = Column("Size", "size")


def artifact_page(found: Analysis, path: Path) -> Page:
    """Return the page of an artifact; ``path`` is where it is."""
    areas = [Area(file.path, file.owner, (file.size,)) for file in found.files]
    groups = [
        (owner.name, shown_name(owner.detail.encode(errors="replace"), MAX_COMMAND))
        for owner in found.owners
    ]
    return Page(
        title=printable(path.name),
        facts=_facts(found),
        notes=tuple(_notes(found)),
        map=as_json(areas, groups, "owner"),
        tables=tuple(_tables(found)),
    )


def _facts(found: Analysis) -> list[tuple[str, str]]:
    summary = found.summary
    content = summary.content_size
    names = ", ".join(counted(count, kind) for kind, count in summary.names.items() if count)
    return [
        ("Kind", found.kind),
        ("Artifact", f"{human_size(found.size)} ({counted(found.size, 'byte')})"),
        ("Content", f"{human_size(content)} ({counted(content, 'byte')})"),
        ("Names", names),
        ("Image", printable(summary.image or "none known")),
        ("Provenance", "valid for these bytes" if summary.has_provenance else "none"),
    ]


def _notes(found: Analysis) -> Iterator[str]:
    if not found.summary.has_provenance:
        yield (
            "No provenance for these bytes is beside the artifact, so it is not known where its"
            " files come from."
        )
    elif found.has_image and found.layers is None:
        yield (
            "The layers of the image are not in the cache, so files of the image are shown without"
            " their layer. fledge fetch gets the layers; then make this page again."
        )
    elif found.layers is not None:
        yield (
            "Files are attributed to a layer by path, size and time, and to other inputs by the"
            " SHA-256 digest in the provenance."
        )
    if not found.all_compared:
        yield "The files are too large to compare all of them: there may be more duplicates."


def _tables(found: Analysis) -> Iterator[Table]:
    yield Table(
        "Sources",
        "Where the content comes from.",
        (Column("Source"), Column("Files", "count"), SIZE, Column("Made by")),
        _owner_rows(found),
    )
    largest = nsmallest(MAX_LARGEST, found.files, key=lambda file: (-file.size, file.path))
    yield Table(
        "Largest files",
        "A file with several names counts once.",
        (PATH, SIZE, Column("Source")),
        (
            (shown_path(file.path), file.size, found.owners[file.owner].name)
            for file in largest
            if file.size
        ),
    )
    if found.layers is not None:
        yield Table(
            "Layers",
            "What each layer adds, what it replaces or removes of the layers below, and how much of"
            " it the layers above replace or remove again. That is transferred with the image for"
            " nothing; the artifact does not have it.",
            (
                *(Column("Layer"), Column("Files", "count"), Column("Adds", "size")),
                *(Column("Replaces or removes", "size"), Column("Wasted", "size")),
                Column("diff_id"),
            ),
            (
                (
                    str(number),
                    *(each.files, each.added, each.hidden, each.wasted),
                    each.diff_id.short,
                )
                for number, each in enumerate(found.layers, start=1)
            ),
        )
        yield Table(
            "Wasted in layers",
            "Files that a later layer replaces or removes.",
            (PATH, SIZE, Column("In"), Column("Hidden by")),
            (
                (
                    *(shown_path(each.path), each.size),
                    *(f"layer {each.layer + 1}", f"layer {each.hidden_by + 1}"),
                )
                for each in found.hidden
            ),
        )
    yield Table(
        "Duplicates",
        f"Files of at least {human_size(MIN_DUPLICATE)} with equal contents, which are not links to"
        " each other.",
        (Column("Paths", "path"), Column("Each", "size"), Column("Too much", "size")),
        (
            (_joined([shown_path(path) for path in each.paths]), each.size, each.wasted)
            for each in found.duplicates
        ),
    )
    yield Table(
        "Privileged files",
        "Files with setuid, setgid or capabilities.",
        (PATH, Column("Mode"), Column("Owner"), Column("Capabilities")),
        (
            (shown_path(each.path), f"{each.mode:04o}", f"{each.uid}:{each.gid}", each.capabilities)
            for each in found.privileged
        ),
    )
    packages = found.packages
    problems = f" Not all could be read: {packages.problems[0]}" if packages.problems else ""
    yield Table(
        "Packages",
        f"What the databases of packages and the programs' own metadata list.{problems}",
        (Column("Package"), Column("Version"), Column("Kind"), Column("Licence"), PATH),
        (
            (
                *(
                    shown_name(text.encode(errors="replace"), MAX_COMMAND)
                    for text in (each.name, each.version, each.kind, each.licence)
                ),
                shown_path(each.path),
            )
            for each in packages.packages
        ),
    )


def _owner_rows(found: Analysis) -> Iterator[Row]:
    sizes, files = Counter[int](), Counter[int]()
    for file in found.files:
        sizes[file.owner] += file.size
        files[file.owner] += 1
    for number, owner in enumerate(found.owners):
        made_by = shown_name(owner.detail.encode(errors="replace"), MAX_COMMAND)
        yield owner.name, files[number], sizes[number], made_by


def _joined(paths: list[str]) -> str:
    """Return paths with a line for each."""
    more = [f"and {len(paths) - MAX_NAMES} more"] if len(paths) > MAX_NAMES else []
    return "\n".join(paths[:MAX_NAMES] + more)
