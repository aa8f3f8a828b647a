"""Releases of the agent, as GitHub's API returns them."""

import json

from tests.support import project
from tests.support.httpd import Server, content, status
from tests.support.images import sha256

KESTREL = project.program(body=b"kestrel for amd64")
KESTREL_ARM64 = project.program(183, body=b"kestrel for arm64")
RELEASES = "/repos/volantvm/volant/releases"


def publish(
    server: Server,
    assets: dict[str, bytes],
    *,
    tag: str = "v1.2.3",
    checksums: str | None = "",
) -> None:
    """Make a release. Its checksums.txt: correct if empty, missing if None."""
    if checksums == "":
        checksums = "".join(f"{sha256(data)}  {name}\n" for name, data in assets.items())
    files = dict(assets) if checksums is None else {**assets, "checksums.txt": checksums.encode()}
    listed = []
    for name, data in files.items():
        path = f"/download/{tag}/{name}"
        server.answers[path] = content(data)
        listed.append({"name": name, "browser_download_url": server.url(path)})
    answer = status(200, json.dumps({"tag_name": tag, "assets": listed}).encode())
    server.answers[f"{RELEASES}/latest"] = server.answers[f"{RELEASES}/tags/{tag}"] = answer
