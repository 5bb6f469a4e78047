"""Held-out accuracy of a checkpoint folder: ``python -m gptoss_convert.nano.evaluate [FOLDER] [--json]``.

Runs the checkpoint through transformers in float32, and knows nothing of how it was trained. An answer counts only if
every token of it is right, reasoning and call included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptoss_convert.nano.folder import config, materialise
from gptoss_convert.nano.skills import SKILLS, Sample, held_out
from gptoss_convert.parity.reference import load_transformers

ABLATIONS = ("sinks", "window")


def load(folder: Path, ablate: str | None = None) -> Any:
    """The checkpoint as transformers' GptOssForCausalLM, float32 on the CPU, its experts dequantised.

    Args:
        folder: the checkpoint.
        ablate: "sinks" silences the sinks, "window" lets the sliding layers see everything.
    """
    changes = {"layer_types": ["full_attention"] * config()["num_hidden_layers"]} if ablate == "window" else {}
    model = load_transformers(folder, **changes)
    if ablate == "sinks":
        for layer in model.model.layers:
            layer.self_attn.sinks.data.fill_(-1e4)
    return model


def exact(model: Any, samples: Sequence[Sample]) -> list[bool]:
    """Whether greedy decoding gives each sample's answer, token for token.

    It does if and only if every token of the answer is the most likely one after those before it, so one forward pass
    over prompt and answer decides.
    """
    chosen = greedy(model, [(sample.prompt_ids, sample.answer_ids) for sample in samples])
    return [choice == sample.answer_ids for choice, sample in zip(chosen, samples, strict=True)]


@torch.inference_mode()
def greedy(model: Any, pairs: Sequence[tuple[list[int], list[int]]], size: int = 16) -> list[list[int]]:
    """The most likely token at every position of an answer, given the prompt and the answer's tokens before it.

    Args:
        model: of ``load``.
        pairs: prompts and answers.
        size: how many go through the model together.
    """
    found: list[list[int]] = []
    for at in range(0, len(pairs), size):
        some = pairs[at : at + size]
        rows = [torch.tensor(prompt + answer[:-1]) for prompt, answer in some]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, (prompt, answer) in enumerate(some):
            start = len(prompt) - 1
            # the head only where it is asked: a row of logits has 201,088 values
            found.append(model.lm_head(hidden[row, start : start + len(answer)]).argmax(-1).tolist())
    return found


def accuracies(model: Any, n: int, seed: int = 0) -> dict[str, float]:
    """Share of ``n`` held-out samples of each skill that are answered exactly."""
    return {skill: sum(exact(model, held_out(skill, n, seed))) / n for skill in SKILLS}


def main() -> None:
    """Report the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint; default: nano, materialised for this run")
    parser.add_argument("-n", type=int, default=500, help="samples a skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ablate", choices=ABLATIONS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or materialise(Path(temporary) / "nano")
        report = accuracies(load(folder, options.ablate), options.n, options.seed)
    if options.json:
        print(json.dumps({"n": options.n, "seed": options.seed, "ablate": options.ablate, "exact": report}))  # noqa: T201
    else:
        for skill, share in report.items():
            print(f"{skill:14}{share:8.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
