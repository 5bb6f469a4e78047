"""Renders a measurement as one HTML page, without scripts or external resources."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.parity.measure import Measurement
from gptoss_convert.parity.metrics import Comparison

_KL = ("mean", "median", "p90", "p99", "max")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}code{background:#f1f1f4;padding:0 .2rem;white-space:pre-wrap}
svg text{font:11px system-ui,sans-serif;fill:#55555c}h2{margin-top:2rem}
@media(prefers-color-scheme:dark){body{background:#18181b;color:#e8e8ea}code{background:#2a2a2f}svg text{fill:#a0a0a8}}
"""


def render(measurement: Measurement, decode: Callable[[list[int]], str]) -> str:
    """Renders the page.

    Args:
        measurement: what to show.
        decode: turns token ids into text, for the worst positions.
    """
    about = measurement.about
    title = f"Parity of {html.escape(measurement.model)} with {html.escape(about.name)}"
    ways = (("prefill", measurement.prefill), ("step by step", measurement.steps))
    heads = ("path", "positions", "max |difference|", *(f"{one} KL, nats" for one in _KL), "same top token")
    starts = [0, *np.cumsum(about.lengths)[:-1].tolist()]
    total = sum(about.lengths)
    plots = "".join(
        f"<h3>{name[0].upper()}{name[1:]}</h3>"
        + _plot([starts[sequence] + at for sequence, at in series.where], series.comparison.kl, total, f"KL, {name}")
        for name, series in ways
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>On {html.escape(about.text)}: {total} tokens in {len(about.lengths)} sequences."
        f"</p><table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"
        f"{''.join(_row(name, series.comparison) for name, series in ways)}</table>"
        f"<h2>Divergence by position</h2><p>KL of each position's next-token distribution, log scale; sequences in "
        f"order.</p>{plots}"
        f"<h2>Error by layer</h2>{_layers(measurement)}"
        f"<h2>Largest divergences</h2>{_worst_positions(measurement, decode)}</html>\n"
    )


def _row(name: str, part: Comparison) -> str:
    figures = part.figures()
    cells = (
        *(f"{figures['tokens']}", f"{figures['max_abs']:.3g}", *(f"{figures[f'{one}_kl']:.3g}" for one in _KL)),
        f"{figures['top1']:.2%}",
    )
    return f"<tr><th>{name}</th>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _layers(measurement: Measurement) -> str:
    errors = measurement.layers
    if errors is None:
        return f"<p>Not available: {html.escape(measurement.no_layers or '--layers was not given')}.</p>"
    done = np.flatnonzero(~np.isnan(errors.relative))
    note = ""
    if errors.first_non_finite is not None:
        note = f" Not finite after {errors.first_non_finite} layers; shown at the top."
    plot = _plot(
        done.tolist(), np.nan_to_num(errors.relative[done], posinf=1e300), len(errors.relative), "Error by layer"
    )
    return (
        f"<p>Relative L2 error of the residual stream over the first {errors.positions} positions, log scale, by "
        f"number of layers; the first mark is the embedding.{note}</p>{plot}"
    )


def _plot(places: Sequence[int], heights: NDArray[np.float64], places_in_all: int, label: str) -> str:
    width, height = 900, 220
    low, high = -12.0, 2.0  # powers of ten
    logs = np.clip(np.log10(np.maximum(heights, 1e-300)), low, high)
    x = 45 + np.array(places) * (width - 55) / max(places_in_all - 1, 1)
    y = 10 + (high - logs) / (high - low) * (height - 20)
    grid = "".join(
        f'<line x1="45" x2="{width - 10}" y1="{at:.1f}" y2="{at:.1f}" stroke="#8886" stroke-width=".5"/>'
        f'<text x="4" y="{at + 4:.1f}">1e{power}</text>'
        for power in range(int(low), int(high) + 1, 2)
        for at in [10 + (high - power) / (high - low) * (height - 20)]
    )
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="1.6"/>' for a, b in zip(x, y, strict=True))
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{label}"'
    return f'<svg {box}>{grid}<g fill="#3a6ee8">{dots}</g></svg>'


def _worst_positions(measurement: Measurement, decode: Callable[[list[int]], str], count: int = 12) -> str:
    where, kl = [], []
    for series in (measurement.prefill, measurement.steps):
        where += series.where
        kl += series.comparison.kl.tolist()
    rows, seen = [], set[tuple[int, int]]()
    for divergence, (sequence, at) in sorted(zip(kl, where, strict=True), key=lambda one: -one[0]):
        if (sequence, at) not in seen and len(seen) < count:  # both paths may have it
            seen.add((sequence, at))
            context = html.escape(decode(measurement.token_ids[sequence][max(0, at - 11) : at + 1]))
            rows.append(
                f'<tr><td class="n">{divergence:.3g}</td><td class="n">{sequence}, {at}</td>'
                f"<td><code>… {context}</code></td></tr>"
            )
    return f"<table><tr><th>KL</th><th>sequence, position</th><th>the text before</th></tr>{''.join(rows)}</table>"
