"""WWW-Authenticate headers, as registries send them and as RFC 9110 allows them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.oci.challenges import Challenge, parse_challenges

REALM = "https://auth.example/token"
BEARER = Challenge("bearer", {"realm": REALM, "service": "s"})


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        (f'Bearer realm="{REALM}",service="s"', [BEARER]),
        (f"Bearer realm={REALM},service=s", [BEARER]),
        (f"bearer Realm={REALM} , SERVICE = s", [BEARER]),
        (f'BEARER  realm = "{REALM}" ,\t, service="s",', [BEARER]),
        (f'Bearer realm="{REALM}" service="s"', [BEARER]),
        (f'Bearer,realm="{REALM}",service="s",service="other"', [BEARER]),
        (
            f'Bearer realm="{REALM}",service="s",scope="",error="invalid_token"',
            [
                Challenge(
                    "bearer",
                    {"realm": REALM, "service": "s", "scope": "", "error": "invalid_token"},
                )
            ],
        ),
        (
            f'Basic realm="Bearer realm=x, y", Bearer realm="{REALM}",service=s',
            [Challenge("basic", {"realm": "Bearer realm=x, y"}), BEARER],
        ),
        (r'Basic realm="a \"b\" \\"', [Challenge("basic", {"realm": 'a "b" \\'})]),
        ("Negotiate", [Challenge("negotiate", {})]),
        (f"Negotiate YWJj==, Bearer realm={REALM},service=s", [Challenge("negotiate", {}), BEARER]),
        ("Bearer realm=", [Challenge("bearer", {"realm": ""})]),
        ("realm=x", []),
        ('Bearer realm="open', [Challenge("bearer", {})]),
        ("", []),
        (" , ,", []),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


@pytest.mark.parametrize(
    "piece", ["a=", 'a="\\', "Bearer ", '"', "a ", ",", "a=b", "\\", " =", "\0"]
)
def test_hostile_header_costs_little_time(piece: str) -> None:
    begun = time.thread_time()
    parse_challenges(piece * 100_000)
    parse_challenges("Bearer realm=" + piece * 100_000)
    assert time.thread_time() - begun < 1


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=8)
VALUES = st.text(st.characters(max_codepoint=0xFF), max_size=20)
CHALLENGES = st.builds(Challenge, NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


@pytest.mark.slow
@given(st.lists(CHALLENGES, max_size=4))
def test_any_list_of_challenges(challenges: list[Challenge]) -> None:
    header = ", ".join(
        f"{each.scheme} "
        + ", ".join(f"{name}={quoted(value)}" for name, value in each.parameters.items())
        for each in challenges
    )
    assert parse_challenges(header) == challenges


@given(st.text(st.sampled_from('ab=", \\\t\n~/é'), max_size=60))
def test_any_header(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme
