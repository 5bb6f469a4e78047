"""A parity measurement as one HTML page without scripts or outside resources. Knows Measurement and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.parity.measure import Measurement
from gptoss_convert.parity.metrics import Comparison

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}code{background:#f1f1f4;padding:0 .2rem;white-space:pre-wrap}
svg text{font:11px system-ui,sans-serif;fill:#55555c}h2{margin-top:2rem}
@media(prefers-color-scheme:dark){body{background:#18181b;color:#e8e8ea}code{background:#2a2a2f}svg text{fill:#a0a0a8}}
"""


def render(measurement: Measurement, decode: Callable[[list[int]], str]) -> str:
    """The page.

    Args:
        measurement: what to show.
        decode: token ids to text, for the worst positions.
    """
    title = f"Parity of {html.escape(measurement.model)} with {html.escape(measurement.reference)}"
    rows = "".join(
        _row(name, part) for name, part in (("prefill", measurement.prefill), ("step by step", measurement.steps))
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><table><tr><th>path</th><th>tokens</th><th>max |difference|</th><th>mean KL (nats)</th>"
        f"<th>median KL</th><th>same top token</th></tr>{rows}</table>"
        f"<h2>Divergence by position</h2><p>KL of each position's next-token distribution, log scale; one mark a "
        f"token, sequence after sequence.</p>{_plot(measurement.prefill.kl)}"
        f"<h2>Largest divergences</h2>{_worst(measurement, decode)}</html>\n"
    )


def _row(name: str, part: Comparison) -> str:
    cells = (
        str(len(part.kl)), f"{part.max_abs.max():.3g}", f"{part.kl.mean():.3g}", f"{np.median(part.kl):.3g}",
        f"{part.same_top.mean():.2%}",
    )  # fmt: skip
    return f"<tr><th>{name}</th>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _plot(kl: NDArray[np.float64], width: int = 900, height: int = 220) -> str:
    low, high = -12.0, 2.0  # powers of ten
    logs = np.clip(np.log10(np.maximum(kl, 1e-300)), low, high)
    x = 45 + np.arange(len(kl)) * (width - 55) / max(len(kl) - 1, 1)
    y = 10 + (high - logs) / (high - low) * (height - 20)
    grid = "".join(
        f'<line x1="45" x2="{width - 10}" y1="{at:.1f}" y2="{at:.1f}" stroke="#8886" stroke-width=".5"/>'
        f'<text x="4" y="{at + 4:.1f}">1e{power}</text>'
        for power in range(int(low), int(high) + 1, 2)
        for at in [10 + (high - power) / (high - low) * (height - 20)]
    )
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="1.6"/>' for a, b in zip(x, y, strict=True))
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="KL by position"'
    return f'<svg {box}>{grid}<g fill="#3a6ee8">{dots}</g></svg>'


def _worst(measurement: Measurement, decode: Callable[[list[int]], str], count: int = 12) -> str:
    flat = [(sequence, at) for sequence in measurement.token_ids for at in range(len(sequence))]
    rows = []
    for index in np.argsort(-measurement.prefill.kl)[:count]:
        sequence, at = flat[index]
        context = html.escape(decode(sequence[max(0, at - 11) : at + 1]))
        rows.append(
            f'<tr><td class="n">{measurement.prefill.kl[index]:.3g}</td><td class="n">{at}</td>'
            f"<td><code>… {context}</code></td></tr>"
        )
    return f"<table><tr><th>KL</th><th>position</th><th>the text before</th></tr>{''.join(rows)}</table>"
