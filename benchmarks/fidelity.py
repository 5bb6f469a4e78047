"""How close each target and preset is to the checkpoint in float32: on nano, with large activations, at real width.

    python -m benchmarks.fidelity [--json] [--wide DIR] [--pictures docs/pictures]

Each checkpoint is converted and compared on the CPU with the float32 reference (gptoss_convert.parity): at nano's
answers, and at all positions of random models' sequences. ``--wide DIR`` adds two layers of gpt-oss-20b's dimensions
with the activations published for the 120b, which takes 8 GB in DIR and some minutes. tests/directml measures DirectML
itself, and benchmarks/float_types.py CUDA's graph.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.activation_profile import Profile, Shifts
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.nano import materialise
from gptoss_convert.nano.skills import SKILLS, held_out
from gptoss_convert.parity.checkpoint_reference import CheckpointReference
from gptoss_convert.parity.measure import Measurement, measure
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import amplify, write_convertible
from gptoss_convert.workflow import Options, convert

PRESETS = {
    "cpu": ("lossless", "balanced", "smallest"),
    "cpu-int4": ("balanced", "smallest"),
    "directml": ("best", "balanced", "smallest"),
}
DEEP: dict[str, Any] = {
    **{"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 12, "head_dim": 64, "vocab_size": 4096},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 4},
    **{"sliding_window": 64, "max_position_embeddings": 1024, "eos_token_id": 1, "pad_token_id": 0},
}
COLOURS = ("#3a6ee8", "#c8843c", "#4f8f5d", "#b03030", "#8a5fb0", "#5f8fa0", "#8a8f4f", "#60606a")


@dataclass(frozen=True)
class Case:
    """A checkpoint, its sequences, and the first position of each sequence to compare."""

    name: str
    checkpoint: Path
    token_ids: list[list[int]]
    starts: list[int]


def make_cases(folder: Path, wide: Path | None) -> list[Case]:
    """Writes the checkpoints to measure."""
    nano = materialise(folder / "nano")
    samples = [held_out(skill, 1)[0] for skill in SKILLS]
    answers = [sample.prompt_ids + sample.answer_ids for sample in samples]
    starts = [len(sample.prompt_ids) - 1 for sample in samples]
    large = amplify(nano, folder / "large", Shifts(stream=3, copies=(9,), value=10, query=5))
    found = [Case("nano", nano, answers, starts), Case("nano, stream of 1e6", large, answers, starts)]
    for name, profile in {"random, 12 layers": None, "the same, massive channels": Profile()}.items():
        checkpoint = write_convertible(folder / name, DEEP, profile=profile)
        found.append(Case(name, checkpoint, generate_sequences(DEEP["vocab_size"], count=1, length=300), [0]))
    if wide is not None:
        dimensions = {"num_hidden_layers": 2}
        checkpoint = write_convertible(wide / "checkpoint", dimensions, profile=Profile())
        found.append(
            Case("20b's width, massive channels", checkpoint, generate_sequences(201_088, count=1, length=128), [0])
        )
    return found


def measure_case(case: Case, folder: Path) -> list[tuple[str, Measurement]]:
    """Measures every target and preset with one checkpoint."""
    ids = case.token_ids
    reference = CheckpointReference(Checkpoint.open(case.checkpoint), ids, case.name)
    reference.compute(layers=True)
    found = []
    for target, presets in PRESETS.items():
        for preset in presets:
            artifact = folder / "artifact"
            convert(case.checkpoint, artifact, target=target, options=Options(preset=preset, logits="all"))
            found.append((f"{target} {preset}", measure(artifact, reference, steps=1, layers=True)))
            shutil.rmtree(artifact)
    return found


def select_positions(case: Case, measurement: Measurement) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """KL divergence and same top token at the positions to compare."""
    series = measurement.prefill
    chosen = [index for index, (sequence, at) in enumerate(series.where) if at >= case.starts[sequence]]
    return series.comparison.kl[chosen], series.comparison.same_top[chosen]


def draw_lines(title: str, series: dict[str, NDArray[np.float64]], label: str) -> str:
    """Draws lines on a log scale, as SVG."""
    width, height, left = 760, 300, 60
    values = np.concatenate([part[np.isfinite(part)] for part in series.values()])
    low, high = np.floor(np.log10(max(values[values > 0].min(), 1e-12))), np.ceil(np.log10(values.max()))
    count = max(len(part) for part in series.values())

    def to_point(index: int, value: float) -> str:
        x = left + index * (width - left - 180) / max(count - 1, 1)
        y = 30 + (high - np.log10(max(value, 10.0**low))) / (high - low) * (height - 70)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<text x="{left}" y="18">{title}</text>', f'<text x="{left}" y="{height - 8}">{label}</text>']
    for power in range(int(low), int(high) + 1):
        y = 30 + (high - power) / (high - low) * (height - 70)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 180}" stroke="#ccc"/>')
        parts.append(f'<text x="8" y="{y + 4:.1f}">1e{power}</text>')
    for number, (name, part) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(to_point(at, float(value)) for at, value in enumerate(part) if np.isfinite(value))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{width - 170}" y="{44 + 18 * number}" fill="{colour}">{name}</text>')
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>\n"])


def smooth(values: NDArray[np.float64], window: int = 15) -> NDArray[np.float64]:
    """Running medians."""
    return np.array([np.median(values[max(0, at - window) : at + window + 1]) for at in range(len(values))])


def main() -> None:
    """Prints the table of docs/fidelity.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--wide", type=Path, metavar="DIR", help="two layers of the 20b's width as well, in DIR")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw errors by layer and by position")
    options, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as scratch:
        for case in make_cases(Path(scratch), options.wide):
            found = measure_case(case, options.wide or Path(scratch))
            for name, measurement in found:
                kl, same = select_positions(case, measurement)
                rows.append({"checkpoint": case.name, "artifact": name, "positions": len(kl)})
                rows[-1] |= {"mean_kl": float(kl.mean()), "median_kl": float(np.median(kl)), "top1": float(same.mean())}
                if not options.json:
                    print(
                        f"{case.name:30} {name:18} {len(kl):4} positions  mean KL {kl.mean():8.1e}  "
                        f"median {np.median(kl):8.1e}  same top {same.mean():7.2%}",
                        flush=True,
                    )
            if options.pictures and case.name == "the same, massive channels":
                layers = {name: m.layers.median for name, m in found if m.layers is not None}
                positions = {name: smooth(m.prefill.comparison.kl) for name, m in found}
                title = "median relative error of the residual stream after each layer"
                (options.pictures / "fidelity-layers.svg").write_text(draw_lines(title, layers, "layers"), "utf-8")
                title = "KL to the checkpoint by position, running median, nats"
                (options.pictures / "fidelity-positions.svg").write_text(
                    draw_lines(title, positions, "position"), "utf-8"
                )
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
