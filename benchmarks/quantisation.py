"""What each preset costs on nano: SNR of the weights, KL divergence of logits, and exact answers by skill.

    python -m benchmarks.quantisation [-n 40]

The rivals are the checkpoint itself, in transformers and float32, and the int4 of onnxruntime-genai's model builder.
Prints the table of docs/conversion.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import builder
from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano import materialise
from gptoss_convert.nano.skills import SKILLS, Sample, held_out
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.smoke import feed
from gptoss_runtime import load_engine
from tools.nano_training.evaluate import answers_exactly
from tools.transformers_reference import load_transformers, transformers_logits

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
Texts = Sequence[tuple[Sequence[int], NDArray[np.float32]]]  # token ids, and the checkpoint's logits
GROUPS = ("attention", "experts", "lm_head")  # those that presets differ in


def load_logits(model: Path) -> Logits:
    """Loads a graph that returns all positions' logits; the result computes float32 [tokens, vocab] in one prefill."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        inputs = feed(session, len(ids), {"input_ids": np.array([ids])})
        result: NDArray[np.float32] = session.run(["logits"], inputs)[0][0]
        return result

    return logits


def measure_exact(logits: Logits, samples: list[Sample]) -> float:
    """The share of samples whose answer greedy decoding gives exactly."""
    right = 0
    for sample in samples:
        rows = logits(sample.prompt_ids + sample.answer_ids[:-1])[len(sample.prompt_ids) - 1 :]
        right += rows.argmax(axis=-1).tolist() == sample.answer_ids
    return right / len(samples)


def format_row(
    logits: Logits, nbytes: int, noise: Mapping[str, float | None], expected: Texts, samples: list[Sample]
) -> str:
    """A row of the table, from the third column on."""
    apart = Comparison.concatenate([compare(row, logits(ids)) for ids, row in expected])
    ratios = ["exact" if noise[group] is None else f"{noise[group]:.1f}" for group in GROUPS]
    apartness = [f"{apart.max_abs.max():.2g}", f"{apart.kl.mean():.2g}", f"{apart.same_top.mean():.1%}"]
    return " | ".join([f"{nbytes / 1e6:.0f} MB", *ratios, *apartness, f"{measure_exact(logits, samples):.1%} |"])


def main() -> None:
    """Measures every preset of every target, and the builder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=40, help="held-out samples a skill")
    samples = [sample for skill in SKILLS for sample in held_out(skill, parser.parse_args().n)]
    texts = generate_sequences(201_088, count=2, length=400)
    heads = ["target", "preset", "weights", *(f"{group}, dB" for group in GROUPS)]
    heads += ["max abs", "mean KL (nats)", "same top token", "skills exact"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        checkpoint = Checkpoint.open(materialise(Path(temporary) / "nano"))
        model = load_transformers(checkpoint.path)
        expected = [(ids, transformers_logits(model, ids)) for ids in texts]
        print(
            f"| checkpoint in transformers {'| ' * 8}| {sum(answers_exactly(model, samples)) / len(samples):.1%} |",
            flush=True,
        )
        for target in filter(lambda one: one.runs_on_cpu, map(targets.load, targets.names())):
            for preset in target.presets:
                folder = Path(temporary) / f"{target.name}-{preset}"
                folder.mkdir()
                made = export(checkpoint, target, resolve(target.presets, preset), folder, logits="all")
                noise = {group: made.weights.groups[group].snr_db for group in GROUPS}
                row = format_row(load_logits(made.model), made.weights.nbytes, noise, expected, samples)
                print(f"| `{target.name}` | {preset} | {row}", flush=True)
        rival = builder.build(checkpoint.path, Path(temporary) / "builder")
        nbytes, noise = builder.weights_file(rival).stat().st_size, dict(builder.measure_snr(checkpoint, rival))
        with load_engine(rival.parent) as engine:  # genai manages its sliding layers' cache
            row = format_row(engine.logits, nbytes, noise, expected, samples)
        print(f"| genai's builder | int4 | {row}", flush=True)


if __name__ == "__main__":
    main()
