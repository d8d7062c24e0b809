"""Start times as a picture: one bar for each way to run /bin/true, in one SVG without any library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .measure import Row, Sample

WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 720, 210, 90, 46, 26, 14
COLOURS = {"capsule": "#2563eb", "bare spawn": "#9ca3af"}
OTHERS = "#f59e0b"


def plot(row: Row, about: Mapping[str, str]) -> str:
    """The SVG of a row: medians as bars, 95th percentiles as lines.

    Raises:
        ValueError: the row was not measured.
    """
    if not row.samples:
        raise ValueError(f"{row.name} was not measured: {row.skipped}")
    most = max(sample.p95 for sample in row.samples.values())
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + len(row.samples) * (BAR + GAP) + 30
    title = f"{row.title}: milliseconds"
    words = ", ".join(f"{name} {about[name]}" for name in ("kernel", "python", "uid", "date"))
    foot = f"medians, lines to the 95th percentile; {words}"
    size = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13"'
    bars = [
        _bar(name, sample, TOP + number * (BAR + GAP), scale)
        for number, (name, sample) in enumerate(row.samples.items())
    ]
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" {size}>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="24" font-size="15" font-weight="bold">{_text(title)}</text>
{"".join(bars)}<text x="10" y="{height - 10}" font-size="11" fill="#6b7280">{_text(foot)}</text>
</svg>
"""


def _bar(name: str, sample: Sample, top: int, scale: float) -> str:
    length, end = sample.median * scale, LEFT + sample.p95 * scale
    colour, middle = COLOURS.get(name, OTHERS), top + BAR / 2
    return f"""\
<text x="{LEFT - 10}" y="{middle + 5:g}" text-anchor="end">{_text(name)}</text>
<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>
<path d="M{LEFT + length:.1f} {middle:g}H{end:.1f}" stroke="#111827" stroke-width="1.5"/>
<text x="{end + 8:.1f}" y="{middle + 5:g}">{sample.median * 1e3:.2f}</text>
"""


def _text(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
