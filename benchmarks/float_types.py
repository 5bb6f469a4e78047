"""float16 or bfloat16 for CUDA, and for the residual stream: divergence from float32 at small and large activations.

    python -m benchmarks.float_types [--json]

CUDA's graph runs on the CPU, with its experts in the CPU's layout. Ours runs as it ships; the others run in float32
with those values rounded that a graph of that type would store in it: inputs and outputs of products and, for a stream
of that type, the stream. Rounding inside kernels is not modelled. Experts are native MXFP4 and other weights floats, so
the results differ only by the activations' type.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert.activation_profile import Profile, Shifts
from gptoss_convert.nano import materialise
from gptoss_convert.nano.skills import SKILLS, held_out
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import amplify, write_checkpoint
from tests.parity import decoding
from tests.parity.test_cuda import FLOAT32, graph, on_the_cpu

FLOAT16, BFLOAT16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
OURS = "float16, stream float32 (ours)"
VARIANTS = {
    "bfloat16, stream float32": (BFLOAT16, None),
    "bfloat16, stream bfloat16": (BFLOAT16, BFLOAT16),
    "float16, stream float16": (FLOAT16, FLOAT16),
}
DIMENSIONS: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 6, "head_dim": 64},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 4},
    **{"sliding_window": 32, "max_position_embeddings": 1024, "eos_token_id": 1, "pad_token_id": 0},
}
Judged = tuple[list[int], int]  # token ids, and the position from which logits are compared
_PRODUCTS = {"MatMul", "MatMulNBits", "GroupQueryAttention", "QMoE"}
_NORMS = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}


def round_graph(model: Path, out: Path, kind: ir.DataType, stream: ir.DataType | None) -> Path:
    """Writes the float32 graph with its values rounded as in a graph of another type."""
    loaded = ir.load(model)
    for node in list(loaded.graph):
        if node.op_type in _PRODUCTS and "router" not in (node.outputs[0].name or ""):
            _round(loaded.graph, node, node.outputs[0], kind)
        if node.op_type in _NORMS:
            _round(loaded.graph, node, node.outputs[0], kind)
        if stream is not None and node.op_type in _NORMS and len(node.outputs) == 4:
            _round(loaded.graph, node, node.outputs[3], stream)
    ir.save(loaded, out)
    return out


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    uses = list(value.uses())
    if not uses:
        return
    narrow = ir.node("Cast", [value], {"to": kind})
    wide = ir.node("Cast", [narrow.outputs[0]], {"to": ir.DataType.FLOAT})
    narrow.outputs[0].name, wide.outputs[0].name = f"{value.name}.narrow", f"{value.name}.wide"
    graph.insert_after(node, [narrow, wide])
    for user, index in uses:
        user.replace_input_with(index, wide.outputs[0])


def measure_divergence(model: Path, exact: Path, ids: list[Judged]) -> Comparison:
    """Compares a graph's logits with the exact graph's; logits that are not numbers count as 0."""
    parts = []
    for sequence, start in ids:
        expected, found = (np.nan_to_num(_logits(file, sequence)[start:], nan=0.0) for file in (exact, model))
        parts.append(compare(expected, found))
    return Comparison.concatenate(parts)


def _logits(model: Path, ids: list[int]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        return decoding.logits(model, ids, [len(ids)])


def make_checkpoints(folder: Path) -> dict[str, tuple[Path, list[Judged]]]:
    """Writes the checkpoints; returns them by name, with sequences. nano is compared at its answers only."""
    nano = materialise(folder / "nano")
    samples = [held_out(skill, 1)[0] for skill in SKILLS]
    answers = [(sample.prompt_ids + sample.answer_ids, len(sample.prompt_ids) - 1) for sample in samples]
    found = {"nano, 5e2": (nano, answers)}
    found["nano, 1e5"] = (amplify(nano, folder / "large", Shifts(stream=8)), answers)
    ids = [(sequence, 0) for sequence in generate_sequences(DIMENSIONS["vocab_size"], count=2, length=150)]
    for name, profile in {
        "random, 3e1": None,
        "random, 9e4": Profile(),
        "random, 1e6": Profile().scale_to(1e6),
    }.items():
        found[name] = (write_checkpoint(folder / name, DIMENSIONS, seed=3, profile=profile), ids)
    return found


def main() -> None:
    """Prints the table of docs/fidelity.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json, rows = parser.parse_args().json, []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, (checkpoint, ids)) in enumerate(make_checkpoints(Path(scratch)).items()):
            exact = on_the_cpu(graph(checkpoint, Path(scratch) / str(number), "lossless", ir.DataType.FLOAT, **FLOAT32))
            models = {OURS: on_the_cpu(graph(checkpoint, Path(scratch) / f"{number} ours", "lossless"))}
            for variant, (kind, stream) in VARIANTS.items():
                models[variant] = round_graph(exact, exact.with_name(f"{variant}.onnx"), kind, stream)
            for variant, model in models.items():
                apart = measure_divergence(model, exact, ids)
                rows.append({"checkpoint": name, "variant": variant, "mean_kl": float(apart.kl.mean())})
                rows[-1] |= {"median_kl": float(np.median(apart.kl)), "top1": float(apart.same_top.mean())}
                if not as_json:
                    print(
                        f"{name:12} {variant:32} mean KL {apart.kl.mean():9.2e}  median {np.median(apart.kl):9.2e}  "
                        f"same top {apart.same_top.mean():7.2%}",
                        flush=True,
                    )
    if as_json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
