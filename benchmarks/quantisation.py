"""What each preset costs on nano: divergence of logits, and skills still answered exactly.

    python benchmarks/quantisation.py [-n 40]

The rival is the checkpoint itself, in transformers and float32. Prints the table of docs/conversion.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano import materialise
from gptoss_convert.nano.evaluate import exact
from gptoss_convert.nano.skills import SKILLS, Sample, held_out
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.reference import load_transformers, transformers_logits
from gptoss_convert.parity.sequences import sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.smoke import first_inputs

Logits = Callable[[Sequence[int]], NDArray[np.float32]]


def runner(model: Path) -> Logits:
    """Logits [tokens, vocab] of a graph that gives all positions, in one prefill."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(["logits"], first_inputs(session, ids))[0][0]
        return result

    return logits


def share_exact(logits: Logits, samples: list[Sample]) -> float:
    """Share of samples whose every answer token is the most likely one after those before it."""
    right = 0
    for sample in samples:
        rows = logits(sample.prompt_ids + sample.answer_ids[:-1])[len(sample.prompt_ids) - 1 :]
        right += rows.argmax(axis=-1).tolist() == sample.answer_ids
    return right / len(samples)


def main() -> None:
    """Measure every preset of every target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=40, help="held-out samples a skill")
    samples = [sample for skill in SKILLS for sample in held_out(skill, parser.parse_args().n)]
    texts = sequences(201_088, count=2, length=400)
    print("| target | preset | weights | max abs | mean KL (nats) | same top token | skills exact |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        checkpoint = Checkpoint.open(materialise(Path(temporary) / "nano"))
        model = load_transformers(checkpoint.path)
        expected = [transformers_logits(model, ids) for ids in texts]
        share = sum(exact(model, samples)) / len(samples)
        print(f"| checkpoint in transformers | | | | | | {share:.1%} |", flush=True)
        for target in map(targets.load, targets.names()):
            for preset in target.presets:
                folder = Path(temporary) / f"{target.name}-{preset}"
                folder.mkdir()
                made = export(checkpoint, target, resolve(target.presets, preset), folder, logits="all")
                logits = runner(made.model)
                apart = Comparison.joined([compare(r, logits(i)) for r, i in zip(expected, texts, strict=True)])
                cells = [
                    f"`{target.name}`",
                    preset,
                    f"{made.weights.nbytes / 1e6:.0f} MB",
                    f"{apart.max_abs.max():.2g}",
                ]
                cells += [f"{apart.kl.mean():.2g}", f"{apart.same_top.mean():.1%}"]
                print("|", " | ".join(cells), f"| {share_exact(logits, samples):.1%} |", flush=True)


if __name__ == "__main__":
    main()
