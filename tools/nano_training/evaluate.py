"""Measures the held-out accuracy of a checkpoint folder: ``python -m tools.nano_training.evaluate [FOLDER] [--json]``.

Runs the checkpoint in transformers, in float32. An answer is correct only if all of its tokens are, reasoning and tool
call included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptoss_convert.nano.folder import materialise, read_config
from gptoss_convert.nano.skills import SKILLS, Sample, held_out
from tools.transformers_reference import load_transformers

ABLATIONS = ("sinks", "window")


def load(folder: Path, ablate: str | None = None) -> Any:
    """Loads the checkpoint as transformers' GptOssForCausalLM, float32 on the CPU, with dequantised experts.

    Args:
        folder: the checkpoint.
        ablate: "sinks" disables the sinks, "window" removes the window of the sliding layers; None changes nothing.
    """
    changes = {"layer_types": ["full_attention"] * read_config()["num_hidden_layers"]} if ablate == "window" else {}
    model = load_transformers(folder, **changes)
    if ablate == "sinks":
        for layer in model.model.layers:
            layer.self_attn.sinks.data.fill_(-1e4)
    return model


def answers_exactly(model: Any, samples: Sequence[Sample]) -> list[bool]:
    """Whether greedy decoding gives each sample's answer, token for token.

    That is so if and only if every token of the answer is the most likely one given the tokens before it, so one
    forward pass over prompt and answer is enough.
    """
    chosen = predict_greedily(model, [(sample.prompt_ids, sample.answer_ids) for sample in samples])
    return [choice == sample.answer_ids for choice, sample in zip(chosen, samples, strict=True)]


@torch.inference_mode()
def predict_greedily(model: Any, pairs: Sequence[tuple[list[int], list[int]]], size: int = 16) -> list[list[int]]:
    """The most likely token at every position of each answer, given the prompt and the answer's earlier tokens.

    Args:
        model: the result of :func:`load`.
        pairs: prompts and answers, as token ids.
        size: pairs per forward pass.
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
            # the head only at the answer's positions: one position's logits are 201,088 values
            found.append(model.lm_head(hidden[row, start : start + len(answer)]).argmax(-1).tolist())
    return found


def measure_accuracy(model: Any, n: int, seed: int = 0) -> dict[str, float]:
    """The share of ``n`` held-out samples of each skill that the model answers exactly."""
    return {skill: sum(answers_exactly(model, held_out(skill, n, seed))) / n for skill in SKILLS}


def main() -> None:
    """Prints the accuracy by skill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint; default: nano in a temporary folder")
    parser.add_argument("-n", type=int, default=500, help="samples per skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ablate", choices=ABLATIONS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or materialise(Path(temporary) / "nano")
        report = measure_accuracy(load(folder, options.ablate), options.n, options.seed)
    if options.json:
        print(json.dumps({"n": options.n, "seed": options.seed, "ablate": options.ablate, "exact": report}))
    else:
        for skill, share in report.items():
            print(f"{skill:14}{share:8.1%}")


if __name__ == "__main__":
    main()
