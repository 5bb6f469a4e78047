"""Upper bounds on a GPU's speed, from the bytes that each design moves per token and the cards' memory bandwidth.

This is a model, not a measurement. Decoding is limited by memory bandwidth, so a token takes at least bytes /
bandwidth. Bytes are counted in three ways, because a driver's kernels are not documented:

    cached    the gathered copies of four experts (5 MB each) stay in the GPU's last-level cache
    moved     they do not: a gathered byte is read, written, and read again
    unfused   as moved, and DirectML's generic kernels dequantise a whole weight into memory first, as in the lab

Also computes the manifest's memory budget from the dimensions alone.

    python -m benchmarks.directml_model [--context 2048] [--json] [--picture docs/pictures/directml-memory.svg]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_convert.artifact import memory_budget
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import weights_size
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import GPT_OSS_20B, write_checkpoint
from gptoss_convert.targets.directml import TARGET
from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.machine.preflight import CONTEXTS, RESERVE

BANDWIDTH = {"RTX 4090": 1008, "RTX 4080": 717, "RTX 4060 Ti": 288, "RX 7900 XTX": 960, "RX 9070 XT": 640}  # GB/s
# llama.cpp's published decode rates for gpt-oss-20b, tok/s; two cards have none
LLAMA_CPP = {"RTX 4090": 225.0, "RTX 4060 Ti": 66.0, "RX 7900 XTX": 119.0}
INT4, INT8, FLOAT16 = 0.5 + 2 / 32, 1 + 2 / 32, 2.0  # bytes a parameter; a float16 scale for each 32
WAYS = ("cached", "moved", "unfused")


@dataclass(frozen=True)
class Model:
    """gpt-oss-20b's parameters, by what a token reads, and its cache."""

    experts: float  # of all experts
    chosen: float
    attention: float
    lm_head: float
    kv_bytes: int  # per position

    @classmethod
    def of_20b(cls) -> Model:
        """From the published dimensions."""
        c = GPT_OSS_20B
        hidden, layers = c["hidden_size"], c["num_hidden_layers"]
        heads = (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
        expert = 3 * hidden * c["intermediate_size"] * layers
        kv_bytes = 2 * layers * c["num_key_value_heads"] * c["head_dim"] * 2
        return cls(
            c["num_local_experts"] * expert,
            c["num_experts_per_tok"] * expert,
            heads * hidden * layers,
            201_088 * hidden,
            kv_bytes,
        )


def product_bytes(parameters: float, bytes_each: float, way: str) -> float:
    """Bytes of a quantised matrix product: the weight is read once, or also written and read again as float16."""
    return parameters * (bytes_each + (2 * FLOAT16 if way == "unfused" else 0))


def bytes_per_token(model: Model, design: str, preset: str, way: str, context: int) -> float:
    """Bytes per decoded token with a cache of ``context`` positions, read once to attend and three times to write."""
    dense = INT8 if preset == "balanced" else INT4
    rest = (
        product_bytes(model.attention, dense, way)
        + product_bytes(model.lm_head, dense, way)
        + 4 * model.kv_bytes * context
    )
    if design == "dense":
        return rest + product_bytes(model.experts, INT4, way)
    copied = 0.0 if way == "cached" else 2 * model.chosen * INT4
    return rest + copied + product_bytes(model.chosen, INT4, way)


def float32_bytes_per_token() -> float:
    """Bytes per token that float32 adds to float16: the values read and written between the products, by node.

    Per layer: the stream (two norms with their additions, casts, factors and biases of the updates, the experts'
    concatenation), Q, K and V from their product to the cache, the chosen experts' hidden values between the two
    products, and the weights of these nodes.
    """
    c = GPT_OSS_20B
    hidden, inner = c["hidden_size"], c["num_experts_per_tok"] * c["intermediate_size"]
    qkv = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
    values = 23 * hidden + 8 * qkv + 27 * inner
    weights = (
        2 * hidden + qkv + 2 * inner + 5 * hidden
    )  # norms, biases; factors, of which float16 has none, count twice
    return float(c["num_hidden_layers"] * 2 * (values + weights))


def compute_bounds(context: int) -> list[dict[str, Any]]:
    """Bytes per token, bounds in tok/s by card, and their ratios to llama.cpp's figures."""
    model, rows = Model.of_20b(), []
    for preset in ("balanced", "smallest"):
        for design, way in [("dense", "moved"), *(("split", way) for way in WAYS)]:
            size = bytes_per_token(model, design, preset, way, context)
            bounds = {card: bandwidth * 1e9 / size for card, bandwidth in BANDWIDTH.items()}
            ratios = {card: bounds[card] / rival for card, rival in LLAMA_CPP.items()}
            rows.append(
                {"preset": preset, "design": design, "way": way, "bytes": size, "bounds": bounds, "ratios": ratios}
            )
    return rows


def compute_budgets() -> dict[str, MemoryBudget]:
    """gpt-oss-20b's memory budgets by preset, from a checkpoint without weights."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Checkpoint.open(write_checkpoint(Path(scratch), hollow=True))
        return {
            preset: memory_budget(
                checkpoint.config, TARGET, weights_size(checkpoint, TARGET, resolve(TARGET.presets, preset))
            )
            for preset in TARGET.presets
        }


def show_speeds(rows: list[dict[str, Any]], context: int) -> None:
    """Prints the bounds."""
    print(f"gpt-oss-20b, decoding with a buffer of {context:,} positions: GB a token, then at most tok/s")
    print(" " * 24 + "GB".rjust(6) + "".join(card.rjust(13) for card in BANDWIDTH))
    for row in rows:
        bounds = "".join(f"{bound:13.0f}" for bound in row["bounds"].values())
        print(f"{row['preset']:9}{row['design']:6}{row['way']:9}{row['bytes'] / 1e9:6.2f}{bounds}")
    print("llama.cpp, published".ljust(30) + "".join(f"{LLAMA_CPP.get(card) or '-':>13}" for card in BANDWIDTH))
    smallest = min(row["bytes"] for row in rows)
    added = float32_bytes_per_token()
    print(
        f"float32 between the products adds {added / 1e6:.0f} MB to a token, {added / smallest:.1%} of the least above"
    )
    for way in WAYS:
        row = next(r for r in rows if (r["preset"], r["design"], r["way"]) == ("smallest", "split", way))
        ratios = (f"{row['ratios'][card]:12.2f}x" if card in LLAMA_CPP else "-".rjust(13) for card in BANDWIDTH)
        print(f"ratio, smallest {way}".ljust(30) + "".join(ratios))


def show_budgets(found: dict[str, MemoryBudget]) -> None:
    """Prints the memory budgets."""
    print("\nmemory, GB".ljust(18) + "weights" + "".join(f"{context:>9,}" for context in CONTEXTS) + "   most on 16 GB")
    for preset, budget in found.items():
        sizes = "".join(f"{budget.at(context) / 1e9:9.2f}" for context in CONTEXTS)
        most = budget.largest_context((16 << 30) - RESERVE)
        print(f"{preset:17}{budget.weights / 1e9:7.2f}{sizes}{most:>16,}")


def draw_budgets(found: dict[str, MemoryBudget]) -> str:
    """Bars of the budgets beside a card of 16 GB, as SVG."""
    scale, colours = 20, {"weights": "#4f6d8f", "keys, values": "#c8843c", "activations": "#8a8f4f"}
    at = 130 + (16 << 30) / 1e9 * scale
    lines, y = [], 40
    for preset in ("balanced", "smallest"):
        for context in CONTEXTS:
            budget, x = found[preset], 130.0
            cache = budget.kv_per_token * context
            parts = (budget.weights, cache, budget.at(context) - budget.weights - cache)
            lines.append(f'<text x="122" y="{y + 14}" text-anchor="end">{preset}, {context >> 10}k</text>')
            for colour, part in zip(colours.values(), parts, strict=True):
                width = part / 1e9 * scale
                lines.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>')
                x += width
            x = (at if 0 < at - x < 60 else x) + 6  # clear of the line
            lines.append(f'<text x="{x:.1f}" y="{y + 14}">{budget.at(context) / 1e9:.1f} GB</text>')
            y += 26
        y += 10
    lines.append(f'<path d="M{at:.1f} 28V{y}" stroke="#b03030" stroke-width="2" stroke-dasharray="4 3"/>')
    lines.append(f'<text x="{at + 4:.1f}" y="24" fill="#b03030">a card of 16 GiB</text>')
    for number, (name, colour) in enumerate(colours.items()):
        x = 130 + number * 110
        lines.append(f'<rect x="{x}" y="{y + 6}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 17}" y="{y + 17}">{name}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 {y + 30}" font-family="sans-serif" font-size="13">'
    )
    ground = f'<rect width="740" height="{y + 30}" fill="#ffffff"/>'
    return "\n".join([head, ground, *lines, "</svg>\n"])


def main() -> None:
    """Prints the tables of docs/directml.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=2048, help="positions of the cache's buffer")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the memory")
    options = parser.parse_args()
    rows, found = compute_bounds(options.context), compute_budgets()
    if options.picture:
        options.picture.write_text(draw_budgets(found), encoding="utf-8", newline="\n")
    if options.json:
        print(
            json.dumps(
                {
                    "speeds": rows,
                    "float32_bytes": float32_bytes_per_token(),
                    "memory": {preset: budget.model_dump() for preset, budget in found.items()},
                }
            )
        )
        return
    show_speeds(rows, options.context)
    show_budgets(found)


if __name__ == "__main__":
    main()
