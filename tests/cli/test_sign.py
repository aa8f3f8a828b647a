"""The commands that sign and check signatures, and what they never show."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import project, screen
from tests.support.project import Fledge

pytestmark = pytest.mark.slow

ARTIFACT = "x.gz"
FLEDGE = [sys.executable, "-m", "fledge"]
PASSPHRASE = "correct horse"  # noqa: S105


@pytest.fixture
def folder(fledge: Fledge, tmp_path: Path) -> Path:
    """An artifact and two keys."""
    project.make(tmp_path)
    assert fledge("build", "-q", "-o", ARTIFACT).code == 0
    assert fledge("keygen", "-o", "alice").code == 0
    assert fledge("keygen", "-o", "bob", "--type", "ed25519").code == 0
    return tmp_path


def secrets(*private: Path) -> list[str]:
    """What must not be shown: the lines of a key, and the key without its encoding."""
    lines = [line for file in private for line in file.read_text().splitlines()[1:-1]]
    raw = [base64.b64decode(line + "=" * (-len(line) % 4)) for line in lines]
    return [*lines, *(each.hex() for each in raw), *(each.hex(":") for each in raw), PASSPHRASE]


def test_sign_and_verify(fledge: Fledge, folder: Path) -> None:
    done = fledge("sign", ARTIFACT, "--key", "alice.key")
    assert (done.code, done.out) == (0, f"{ARTIFACT}.provenance.dsse.json\n")
    assert fledge("sign", ARTIFACT, "--key", "bob.key").code == 0
    signed = f"signed: {ARTIFACT} and its provenance, by alice.pub, bob.pub\n"
    options = "--key", "alice.pub", "--key", "bob.pub"
    done = fledge("verify", ARTIFACT, "--no-rebuild", *options)
    assert (done.code, done.out) == (0, signed)
    done = fledge("verify", ARTIFACT, *options)
    equal = f"equal: {ARTIFACT} matches its provenance and a new build\n"
    assert (done.code, done.out) == (0, signed + equal)
    # It is also another build that is compared.
    (folder / "payload/webserver.yaml").write_text("port: 81\n")
    done = fledge("verify", ARTIFACT, *options)
    assert done.code == 1
    assert done.out.startswith(signed + "different:")
    assert fledge("verify", ARTIFACT, "--no-rebuild", *options).code == 0


def test_exit_codes(fledge: Fledge, folder: Path) -> None:
    key = "--key", "alice.pub"
    done = fledge("verify", ARTIFACT, "--no-rebuild", *key)
    assert (done.code, done.out) == (2, "")
    assert f"{ARTIFACT}.provenance.dsse.json does not exist" in done.err
    assert fledge("sign", ARTIFACT, "--key", "bob.key").code == 0
    done = fledge("verify", ARTIFACT, "--no-rebuild", *key)
    assert (done.code, done.out) == (4, "")
    assert "is signed by none of the keys, and 1 of 1 must have signed it" in done.err
    assert "not by alice.pub, sha256:" in done.err
    bob = "--key", "bob.pub"
    for options, code, problem in (
        ((*key, *bob, "--threshold", "1"), 0, ""),
        ((*key, *bob, "--threshold", "2"), 4, "signed only by bob.pub, and 2 of 2"),
        ((*key, *bob, "--threshold", "3"), 2, "the threshold is 3"),
        ((*bob, "--builder", "https://b.example"), 4, "the policy asks for https://b.example"),
        ((*bob, "--source", "docker.io/*"), 4, "without an image, and the policy asks for"),
        (("--threshold", "1"), 2, "--threshold says what a signed artifact must be, but no key"),
        (("--policy", "p.toml", *bob), 2, "--policy and --key cannot be combined"),
        (("--policy", "p.toml", "--source", "x"), 2, "--policy and --source cannot be"),
        (("--policy", "p.toml"), 2, "p.toml: no such file"),
        ((), 2, "with --no-rebuild there is nothing to check"),
    ):
        done = fledge("verify", ARTIFACT, "--no-rebuild", *options)
        assert done.code == code, (options, done.err)
        assert problem in done.err
        assert "Traceback" not in done.err
    (folder / "p.toml").write_text('keys = ["alice.pub", "bob.pub"]\nthreshold = 1\n')
    assert fledge("verify", ARTIFACT, "--policy", "p.toml").code == 0
    with (folder / "p.toml").open("a") as file:
        file.write("expires = 2020-01-01T00:00:00Z\n")
    done = fledge("verify", ARTIFACT, "--no-rebuild", "--policy", "p.toml")
    assert done.code == 2
    assert "p.toml expired at 2020-01-01" in done.err


def test_the_passphrase_from_the_environment(
    fledge: Fledge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_KEY_PASSPHRASE", PASSPHRASE)
    done = fledge("keygen", "-o", "team")
    assert (done.code, done.out) == (0, "team.key\nteam.pub\n")
    assert "is not encrypted" not in done.err
    assert "ENCRYPTED" in (folder / "team.key").read_text()
    assert fledge("sign", ARTIFACT, "--key", "team.key").code == 0
    monkeypatch.setenv("FLEDGE_KEY_PASSPHRASE", "wrong")
    done = fledge("sign", ARTIFACT, "--key", "team.key")
    assert done.code == 2
    assert "team.key cannot be decrypted" in done.err
    monkeypatch.delenv("FLEDGE_KEY_PASSPHRASE")
    done = fledge("sign", ARTIFACT, "--key", "team.key")
    assert done.code == 2
    assert "there is no terminal to ask for its passphrase" in done.err
    assert "is not encrypted: whoever can read it can sign" in fledge("keygen", "-o", "b").err


@pytest.mark.parametrize("arguments", [("-v",), ()])
def test_a_key_is_never_shown(folder: Path, arguments: tuple[str, ...]) -> None:
    """Not of a good key, nor of a damaged one, wherever it is and whatever goes wrong."""
    environment = {**os.environ, "FLEDGE_KEY_PASSPHRASE": PASSPHRASE}
    subprocess.run([*FLEDGE, "keygen", "-o", "team"], cwd=folder, env=environment, check=True)
    alice, team = (folder / f"{name}.key" for name in ("alice", "team"))
    shown = secrets(alice, team)
    text = alice.read_text()
    body = text.splitlines()[1]
    damaged = {
        "cut": text[:-40],
        "short": text.replace(body, body[:-8]),
        "bits": text.replace(body, body.swapcase()),
        "label": text.replace("PRIVATE KEY", "EC PRIVATE KEY"),
        "encrypted": text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
        "other": text.replace("PRIVATE KEY", "OPENSSH PRIVATE KEY"),
        "bare": body,
    }
    sources = {"alice.key": 0, "team.key": 0, "env:GOOD": 0, "env:MULTI": 2, text: 2}
    environment |= {"GOOD": text, "MULTI": text * 2}
    for name, content in damaged.items():
        (folder / name).write_text(content)
        sources |= {name: 2, f"env:{name.upper()}": 2}
        environment[name.upper()] = content
    for source, code in sources.items():
        command = [*FLEDGE, "sign", ARTIFACT, "--key", source, *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (source, done.stderr)
        told = done.stdout + done.stderr
        assert "internal error" not in told
        assert not [each for each in (*shown, body[:-8], body.swapcase()) if each in told], source
    written = (folder / f"{ARTIFACT}.provenance.dsse.json").read_text()
    assert not [each for each in shown if each in written]


def processes() -> dict[int, str]:
    """The command lines of all processes."""
    found = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                found[int(each.name)] = (each / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    return found


def test_a_key_is_in_no_list_of_processes(folder: Path) -> None:
    """The command that signs waits, so that it and its parent can be looked at."""
    alice = folder / "alice.key"
    shutil.copy(alice, folder / "hsm.key")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom fledge.host.settings import Settings\n"
        "from fledge.project.keys import load_signer\n"
        "message = sys.stdin.buffer.read()\nPath('waiting').touch()\n"
        "while not Path('go').exists(): time.sleep(0.01)\n"
        "key = load_signer('hsm.key', None, input, Settings())\n"
        "sys.stdout.buffer.write(key.sign(message))\n"
    )
    (folder / "hsm.py").write_text(script)
    environment = {**os.environ, "FLEDGE_KEY_PASSPHRASE": PASSPHRASE, "KEY": alice.read_text()}
    source = f"exec:{sys.executable} hsm.py"
    process = subprocess.Popen(
        [*FLEDGE, "sign", ARTIFACT, "-v", "--key", source, "--public-key", "alice.pub"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = processes()
    (folder / "go").touch()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert process.pid in lines
    assert any(line.endswith("hsm.py\0") and "--key" not in line for line in lines.values())
    for secret in secrets(alice):
        assert not [line for line in lines.values() if secret in line]
        assert secret not in told


def type_on_terminal(folder: Path, answers: list[str], *arguments: str) -> screen.Shown:
    """Run the command on a terminal, and type an answer whenever it asks."""
    return screen.run([*FLEDGE, *arguments], folder, answers=answers)


def test_a_person_is_asked(folder: Path) -> None:
    done = type_on_terminal(folder, [PASSPHRASE, PASSPHRASE], "keygen", "-o", "team")
    assert done.code == 0, done.text
    assert "new passphrase (empty for none): " in done.text
    assert PASSPHRASE not in done.text
    private = folder / "team.key"
    assert "ENCRYPTED" in private.read_text()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    done = type_on_terminal(folder, [PASSPHRASE], "sign", ARTIFACT, "--key", "team.key")
    assert done.code == 0, done.text
    assert "passphrase of the private key: " in done.text
    assert PASSPHRASE not in done.text
    done = type_on_terminal(folder, ["wrong"], "sign", ARTIFACT, "--key", "team.key")
    assert done.code == 2
    assert "team.key cannot be decrypted" in done.text
    done = type_on_terminal(folder, ["one", "two"], "keygen", "-o", "other")
    assert done.code == 2
    assert "the two passphrases differ" in done.text
    assert not (folder / "other.key").exists()
    done = type_on_terminal(folder, [""], "keygen", "-o", "open")
    assert done.code == 0
    assert "open.key is not encrypted" in done.text
