"""Draws curves as an SVG that is readable on light and on dark backgrounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 70, 40, 50
"""Room around the area of the curves, for the texts."""
GREY = "#848d97"
COLOURS = ("#2f81f7", "#d9730d")
STEPS = 4
"""Horizontal lines above that of zero."""


@dataclass(frozen=True)
class Curve:
    """One quantity; each has an axis of its own, the first at the left, the second at the right."""

    title: str
    values: Sequence[float]


def draw(xs: Sequence[int], x_title: str, curves: tuple[Curve, Curve]) -> str:
    """Return an SVG of two curves over the same places, whose axis is logarithmic."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="sans-serif" font-size="13" fill="{GREY}">'
    ]
    for x in xs:
        parts.append(_text(_across(x, xs), HEIGHT - BOTTOM + 20, f"{x:,}", "middle"))
    parts.append(_text(WIDTH / 2, HEIGHT - 8, x_title, "middle"))
    for step in range(STEPS + 1):
        y = _up(step / STEPS)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" opacity="0.4"/>')
    for curve, colour, edge, anchor in zip(
        curves, COLOURS, (LEFT - 8, WIDTH - RIGHT + 8), ("end", "start"), strict=True
    ):
        top = _round_up(max(curve.values))
        for step in range(STEPS + 1):
            value = f"{top * step / STEPS:,g}"
            parts.append(_text(edge, _up(step / STEPS) + 4, value, anchor, colour))
        inward = "start" if anchor == "end" else "end"
        parts.append(_text(edge, TOP - 18, curve.title, inward, colour))
        points = [
            (_across(x, xs), _up(value / top)) for x, value in zip(xs, curve.values, strict=True)
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return "\n".join([*parts, "</svg>\n"])


def _across(x: int, xs: Sequence[int]) -> float:
    share = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
    return LEFT + 20 + share * (WIDTH - LEFT - RIGHT - 40)


def _up(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _round_up(value: float) -> float:
    """Return the next number that the lines divide into short ones: 1, 2, 4 or 8, and zeros."""
    power: float = 10 ** math.floor(math.log10(value))
    return next(power * first for first in (1, 2, 4, 8, 10) if power * first >= value)


def _text(x: float, y: float, text: str, anchor: str, colour: str = GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
