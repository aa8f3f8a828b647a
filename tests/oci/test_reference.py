"""References of images, and messages about invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import ConfigError
from fledge.oci.reference import (
    DaemonReference,
    DockerArchive,
    Name,
    OciArchive,
    OciLayout,
    Reference,
    RegistryReference,
    default_name,
    parse,
)
from fledge.tree.digest import Digest

HERE = Path("/project")
HEX = "0123456789abcdef" * 4
DIGEST = Digest(HEX)
NGINX = Name("docker.io", "library/nginx", "alpine")


@pytest.mark.parametrize(
    ("text", "reference", "name"),
    [
        ("nginx:alpine", NGINX, "nginx"),
        ("nginx", Name("docker.io", "library/nginx", "latest"), "nginx"),
        ("docker.io/nginx:alpine", NGINX, "nginx"),
        ("index.docker.io/library/nginx:alpine", NGINX, "nginx"),
        ("grafana/loki", Name("docker.io", "grafana/loki", "latest"), "loki"),
        ("ghcr.io/a/b-c/d__e:V1.2", Name("ghcr.io", "a/b-c/d__e", "V1.2"), "d__e"),
        ("reg:5000/app", Name("reg:5000", "app", "latest"), "app"),
        ("localhost/app:1", Name("localhost", "app", "1"), "app"),
        ("localhost:5000/team/app", Name("localhost:5000", "team/app", "latest"), "app"),
        ("[::1]:5000/app", Name("[::1]:5000", "app", "latest"), "app"),
        (f"nginx@sha256:{HEX}", Name("docker.io", "library/nginx", None, DIGEST), "nginx"),
        (f"r.io/app:1@sha256:{HEX}", Name("r.io", "app", "1", DIGEST), "app"),
        ("docker://nginx:alpine", RegistryReference(NGINX), "nginx"),
        ("docker-daemon:nginx:alpine", DaemonReference(NGINX), "nginx"),
        ("oci:image", OciLayout(HERE / "image", None), "image"),
        ("oci:/srv/image:v1:2", OciLayout(Path("/srv/image"), "v1:2"), "image"),
        ("oci:.", OciLayout(HERE, None), "project"),
        (f"oci:DIR@sha256:{HEX}", OciLayout(HERE / "DIR", f"sha256:{HEX}"), "DIR"),
        ("podman:5000/app", Name("podman:5000", "app", "latest"), "app"),
        ("podman", Name("docker.io", "library/podman", "latest"), "podman"),
        ("oci:DIR:@0", OciLayout(HERE / "DIR", "@0"), "DIR"),
        ("oci-archive:a/image.tar:v1", OciArchive(HERE / "a/image.tar", "v1"), "image"),
        ("docker-archive:b.tar:r:1", DockerArchive(HERE / "b.tar", "r:1"), "b"),
    ],
)
def test_what_a_text_names(text: str, reference: Reference, name: str) -> None:
    assert parse(text, HERE) == reference
    assert default_name(reference) == name


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "empty", "nginx:alpine"),
        ("docker://", "empty", "nginx:alpine"),
        ("a//b", "empty", "nginx:alpine"),
        ("r.io/", "empty", "nginx:alpine"),
        ("Nginx:alpine", "lower case", "Write nginx:alpine"),
        ("ghcr.io/Team/app", "lower case", "Write ghcr.io/team/app"),
        ("nginx:", "tag after the colon is empty", "128"),
        ("nginx:.a", "'.a' is not a tag", "128"),
        ("nginx:" + "a" * 129, "not a tag", "128"),
        ("nginx@sha256:abc", "not a sha256 digest", "64"),
        (f"nginx@sha512:{HEX}{HEX}", "not a sha256 digest", "64"),
        ("nginx@", "not a sha256 digest", "64"),
        ("my app", "'my app' cannot be part", "lower-case"),
        ("app\n", "cannot be part", "lower-case"),
        ("a/../b", "'..' cannot be part", "lower-case"),
        ("-r.io/app", "not a host", "HOST:PORT"),
        ("r.io:port/app", "not a host", "HOST:PORT"),
        ("r.io/" + "a" * 251, "more than 255", "Check"),
        ("oci:", "empty", "oci:PATH"),
        ("oci-archive:a.tar:", "empty", "oci-archive:PATH:TAG"),
        ("https://r.io/app", "https: is a transport of other", "Write docker://r.io/app."),
        ("https://hub.docker.com/_/nginx", "web page about an image", "Write nginx."),
        ("hub.docker.com/r/team/my-app/tags", "web page about an image", "Write team/my-app."),
        ("docker-image://nginx", "docker-image: is a transport", "Write docker://nginx."),
        ("podman:app:v1", "podman: is a transport of other", "Write docker-daemon:app:v1 while"),
        ("podman://app", "podman: is a transport of other", "oci-archive -o FILE app`"),
        ("podman:", "podman: is a transport of other", "Write docker-daemon:NAME while"),
        ("containers-storage:localhost/app", "containers-storage: is", "docker-daemon:localhost/a"),
        ("dir:a/b", "dir: is a transport", "Run `skopeo copy dir:a/b oci:FOLDER`"),
        ("ostree:app@/repo", "ostree: is a transport", "`skopeo copy ostree:app@/repo oci:"),
        ("oci-dir:a/b:v1", "oci-dir: is a transport", "Write oci:a/b:v1."),
        ("oci-layout://a/b", "oci-layout: is a transport", "Write oci:a/b."),
        ("podman:\x1b[2J", "podman:", "docker-daemon:\\x1b[2J"),
        ("ftp://r.io/app", "does not know that transport", "docker://"),
    ],
)
def test_what_names_nothing(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, HERE)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "Dockerfile",
            "a recipe for an image",
            'dockerfile = "Dockerfile"',
        ),
        ("build/Dockerfile.dev", "a recipe for an image", 'dockerfile = "build/Dockerfile.dev"'),
        ("app.Containerfile", "a recipe for an image", 'dockerfile = "app.Containerfile"'),
        ("Layout", "that is a folder", "write oci:Layout."),
        ("./Layout:v1", "that is a folder", "write oci:./Layout:v1."),
        ("./saved.tar", "that is a file", "write oci-archive:./saved.tar or docker-archive:./sav"),
        ("Saved", "must be in lower case", "Write saved."),
    ],
)
def test_a_path_without_a_transport(tmp_path: Path, text: str, message: str, hint: str) -> None:
    (tmp_path / "Layout").mkdir()
    (tmp_path / "saved.tar").touch()
    with pytest.raises(ConfigError) as caught:
        parse(text, tmp_path)
    assert message in caught.value.message
    assert hint in caught.value.hint


@given(st.text(alphabet="aB1./:@-_[] \n", max_size=40))
def test_what_is_read_is_written_the_same(text: str) -> None:
    try:
        reference = parse(text, HERE)
    except ConfigError:
        return
    if isinstance(reference, Name):
        assert parse(str(reference), HERE) == reference
