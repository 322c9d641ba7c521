"""Learning curves as an SVG: a panel an algorithm, a line a seed, all on one scale from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Of an algorithm: its seeds' points (step, share).
Curves = Mapping[str, Sequence[Sequence[tuple[int, float]]]]

COLUMNS = 4
PANEL = (170, 110)
# Between panels: room for the name above, and for numbers left and below.
GAP = (44, 46)
# Readable on white and on black.
INK, GRID, LINES = "#888", "#8886", ("#1f77b4", "#d95f02", "#1b9e77")


def draw(curves: Curves, level: float) -> str:
    """`level` is drawn as a dashed line in every panel."""
    rows = -(-len(curves) // COLUMNS)
    width, height = (COLUMNS * (PANEL[0] + GAP[0]) + 8, rows * (PANEL[1] + GAP[1]) + 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="10" fill="{INK}">'
    ]
    for place, (name, seeds) in enumerate(curves.items()):
        left = GAP[0] + place % COLUMNS * (PANEL[0] + GAP[0])
        top = 22 + place // COLUMNS * (PANEL[1] + GAP[1])
        parts.append(f'<g transform="translate({left},{top})">')
        parts += _panel(name, seeds, level)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, seeds: Sequence[Sequence[tuple[int, float]]], level: float) -> list[str]:
    steps = [step for points in seeds for step, _ in points]
    first, last = min(steps), max(steps)

    def at(step: int, share: float) -> str:
        return f"{(step - first) / max(1, last - first) * PANEL[0]:.1f},{(1 - share) * PANEL[1]:.1f}"

    parts = [f'<text x="{PANEL[0] / 2}" y="-8" text-anchor="middle" font-size="12">{name}</text>']
    for share in (0, 0.5, 1):
        y = (1 - share) * PANEL[1]
        parts.append(f'<path d="M0,{y:.1f}H{PANEL[0]}" stroke="{GRID}"/>')
        parts.append(f'<text x="-5" y="{y + 3:.1f}" text-anchor="end">{share:g}</text>')
    y = (1 - level) * PANEL[1]
    parts.append(f'<path d="M0,{y:.1f}H{PANEL[0]}" stroke="{INK}" stroke-dasharray="3"/>')
    for step, anchor in ((first, "start"), (last, "end")):
        x = 0 if step == first else PANEL[0]
        parts.append(f'<text x="{x}" y="{PANEL[1] + 13}" text-anchor="{anchor}">step {step}</text>')
    for colour, points in zip(LINES * len(seeds), seeds, strict=False):
        way = " ".join(at(*point) for point in points)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    return parts
