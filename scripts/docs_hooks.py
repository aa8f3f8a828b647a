"""Hooks of MkDocs: adds the pages at the top of the repository and of the examples to the site.

Links lead from file to file, as GitHub follows them. In the site these pages lie beside those of
``docs/``, so links between the two lose or gain a part. A link to the folder of an example leads to
its README.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOP = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages."""
    folder = Path(config.config_file_path).parent
    for name in TOP:
        files.append(File.generated(config, name, abs_src_path=str(folder / name)))
    for path in sorted(folder.glob("examples/*/README.md")):
        name = path.relative_to(folder).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links between pages of the two folders."""
    name = page.file.src_uri
    if name in TOP:
        return markdown.replace("](docs/", "](")
    if name.startswith("examples/"):
        return re.sub(r"\]\(\.\./([\w-]+)\)", r"](../\1/README.md)", markdown)
    if name == "examples.md":
        markdown = re.sub(r"\]\(\.\./(examples/[\w-]+)\)", r"](\1/README.md)", markdown)
    depth = name.count("/")
    top = "|".join(map(re.escape, TOP))
    return re.sub(rf"\]\({'../' * (depth + 1)}(?=(?:{top})[#)])", f"]({'../' * depth}", markdown)
