"""What a GPU could do at most: bytes that each design moves for a token, by the cards' memory bandwidth.

A model, not a measurement. Decoding is bound by memory, so time for a token is at least bytes over bandwidth. Three
ways of counting, because nobody can tell from outside what a driver's kernels do:

    cached    the gathered copies of four experts (5 MB each) stay in the GPU's last-level cache
    moved     they do not: a gathered byte is read, written, and read again
    unfused   and DirectML's generic kernels dequantise a whole weight into memory first, as they do in the lab

    python benchmarks/directml_model.py [--context 2048] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from gptoss_convert.synthetic import GPT_OSS_20B

BANDWIDTH = {"RTX 4090": 1008, "RTX 4080": 717, "RTX 4060 Ti": 288, "RX 7900 XTX": 960, "RX 9070 XT": 640}  # GB/s
# llama.cpp's published decode rates for gpt-oss-20b, tok/s; two cards have none
LLAMA_CPP = {"RTX 4090": 225.0, "RTX 4060 Ti": 66.0, "RX 7900 XTX": 119.0}
INT4, INT8, FLOAT16 = 0.5 + 2 / 32, 1 + 2 / 32, 2.0  # bytes a parameter; a float16 scale for each 32
WAYS = ("cached", "moved", "unfused")


@dataclass(frozen=True)
class Model:
    """gpt-oss-20b's parameters by what is read of them for a token, and its cache."""

    experts: float  # all of them
    chosen: float
    attention: float
    lm_head: float
    kv_bytes: int  # of one position

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


def product(parameters: float, bytes_each: float, way: str) -> float:
    """Bytes of a quantised matrix product: the weight once, or also written and read again as float16."""
    return parameters * (bytes_each + (2 * FLOAT16 if way == "unfused" else 0))


def bytes_a_token(model: Model, design: str, preset: str, way: str, context: int) -> float:
    """Of decoding one token with a buffer of ``context`` positions: read once to attend, and thrice to be written."""
    dense = INT8 if preset == "balanced" else INT4
    rest = product(model.attention, dense, way) + product(model.lm_head, dense, way) + 4 * model.kv_bytes * context
    if design == "dense":
        return rest + product(model.experts, INT4, way)
    copied = 0.0 if way == "cached" else 2 * model.chosen * INT4
    return rest + copied + product(model.chosen, INT4, way)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=2048, help="positions of the cache's buffer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model, rows = Model.of_20b(), []
    for preset in ("balanced", "smallest"):
        for design, way in [("dense", "moved"), *(("split", way) for way in WAYS)]:
            size = bytes_a_token(model, design, preset, way, options.context)
            bounds = {card: bandwidth * 1e9 / size for card, bandwidth in BANDWIDTH.items()}
            ratios = {card: bounds[card] / rival for card, rival in LLAMA_CPP.items()}
            rows.append(
                {"preset": preset, "design": design, "way": way, "bytes": size, "bounds": bounds, "ratios": ratios}
            )
    if options.json:
        print(json.dumps(rows))
        return
    print(f"gpt-oss-20b, decoding with a buffer of {options.context:,} positions: GB a token, then at most tok/s")
    print(" " * 24 + "GB".rjust(6) + "".join(card.rjust(13) for card in BANDWIDTH))
    for row in rows:
        bounds = "".join(f"{bound:13.0f}" for bound in row["bounds"].values())
        print(f"{row['preset']:9}{row['design']:6}{row['way']:9}{row['bytes'] / 1e9:6.2f}{bounds}")
    print("llama.cpp, published".ljust(30) + "".join(f"{LLAMA_CPP.get(card) or '-':>13}" for card in BANDWIDTH))
    for way in WAYS:
        row = next(r for r in rows if (r["preset"], r["design"], r["way"]) == ("smallest", "split", way))
        print(
            f"ratio, smallest {way}".ljust(30)
            + "".join(f"{row['ratios'][card]:12.2f}x" if card in LLAMA_CPP else "-".rjust(13) for card in BANDWIDTH)
        )


if __name__ == "__main__":
    main()
