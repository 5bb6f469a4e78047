"""Train nano: ``python -m tools.nano_training.train --work DIR``.

The recipe: samples, their proportions, optimisers and schedule. An interrupted run resumes from DIR; ``--steps`` may
change between runs and sets when the learning rate decays. Every evaluation writes the compact source. ``--refine``
starts from the compact source and not from random weights; use it to add a skill to a trained model.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize

from gptoss_convert.nano import skills
from gptoss_convert.nano.render import encode
from gptoss_convert.nano.source import source_dir
from tools.nano_training import rounding
from tools.nano_training.batch import Batch, collate
from tools.nano_training.compact import collect_used_tokens, initial_rows, read_source, token_classes, write_source
from tools.nano_training.model import Nano, NanoConfig
from tools.nano_training.optimiser import Muon

EFFORTS = (" low", " medium", " high")


class Mix(NamedTuple):
    """One batch of a step: groups with a shared setting, samples per group, skills by weight, with tools or not."""

    groups: int
    size: int
    skills: dict[str, float]
    with_tools: bool


# Skills with samples of similar length share a batch: the longest sample sets attention's cost.
MIXES = (
    Mix(7, 8, {"greetings": 0.8, "arithmetic": 6, "facts": 1.6, "effort": 5}, with_tools=False),
    Mix(1, 8, {"json": 3, "conversation": 2}, with_tools=False),
    Mix(3, 8, {"tools": 9, "arithmetic": 0.4, "facts": 0.4, "greetings": 0.2}, with_tools=True),
    Mix(2, 8, {"two_step": 9, "json": 0.5, "conversation": 0.5}, with_tools=True),
)
MUON_LR, ADAM_LR, BALANCE, MASKED = 0.012, 1.5e-3, 0.01, 0.05


def draw_samples(rng: random.Random, mix: Mix) -> list[list[skills.Sample]]:
    """Draws the training samples of one batch, in groups with a shared setting."""
    batch = []
    for _ in range(mix.groups):
        where = skills.draw_setting(rng, with_tools=mix.with_tools)
        names = rng.choices(list(mix.skills), list(mix.skills.values()), k=mix.size)
        batch.append([skills.draw_sample(name, rng, where, held_out=False) for name in names])
    return batch


def mask_prefix_tokens(batch: Batch, rng: random.Random, classes: int, kept: Tensor) -> Batch:
    """Replaces some tokens of the prefixes by "any other token", so that the model learns to ignore that row.

    Otherwise the model would meet that row for the first time in a tool description with unknown words.

    Args:
        batch: changed in place.
        rng: chooses the tokens.
        classes: the number of classes; the last one means any other token.
        kept: classes that are never replaced because answers depend on them; nor are those that occur in answers.
    """
    prefix = batch.tokens[: int(batch.prefixes.valid.sum())]
    chance = torch.rand(prefix.shape, generator=torch.Generator().manual_seed(rng.randrange(2**32)))
    lost = (chance < MASKED) & ~torch.isin(prefix, torch.cat((kept, batch.targets)))
    prefix[lost] = classes - 1
    return batch


def compute_loss(model: Nano, batches: list[Batch]) -> Tensor:
    """Mean cross-entropy of the answers' tokens over all batches, plus a small term for unbalanced experts."""
    total = sum(len(batch.targets) for batch in batches)
    loss = torch.zeros(())
    for batch in batches:
        loss = loss + functional.cross_entropy(model(batch), batch.targets, reduction="sum") / total
        loss = loss + model.imbalance() * BALANCE / len(batches)
    return loss


@torch.no_grad()
def measure_accuracy(model: Nano, classes: Tensor, n: int) -> dict[str, float]:
    """The share of held-out samples answered exactly, by skill, from one forward pass.

    :func:`tools.nano_training.evaluate.answers_exactly` explains why one pass is enough.
    """
    shares = {}
    for skill in skills.SKILLS:
        groups = [[sample] for sample in skills.held_out(skill, n, seed=1)]
        batch = collate(groups, classes, model.config.sliding_window)
        wrong = model(batch).argmax(-1) != batch.targets
        shares[skill] = 1 - len(set(batch.owner[wrong].tolist())) / n
    return shares


class Trainer:
    """Model, optimisers and schedule; resumes from the state in its work folder."""

    def __init__(self, work: Path, steps: int, seed: int, *, refine: bool = False, peak: float = 1.0) -> None:
        torch.manual_seed(seed)
        self.work, self.steps, self.seed, self.peak, self.step = work, steps, seed, peak, 0
        self.state = work / "state.pt"
        saved = torch.load(self.state, weights_only=True) if self.state.exists() else None
        before = read_source(source_dir()) if refine and not saved else None
        self.used = saved["used"].numpy() if saved else before[0] if before else collect_used_tokens()
        self.classes = token_classes(self.used)
        self.kept = self.classes[torch.tensor([token for level in EFFORTS for token in encode(level)])]
        self.model = Nano(NanoConfig(), len(self.used) + 1)
        with torch.no_grad():
            rows = initial_rows(self.used, self.model.config.hidden_size, seed)
            self.model.model.embed_tokens.weight.copy_(rows * 0.3)
            self.model.lm_head.weight.copy_(rows * 0.08)
        if before:
            self.model.load_state_dict(before[1])
        rounding.attach_rounding(self.model)
        named = dict(self.model.named_parameters())
        matrix = {name for name in named if ("proj" in name and "bias" not in name)}
        self.muon = Muon([named[name] for name in sorted(matrix)], MUON_LR)
        self.adam = torch.optim.Adam([p for n, p in named.items() if n not in matrix], ADAM_LR, (0.9, 0.98))
        if saved:
            self.step = saved["step"]
            self.model.load_state_dict(saved["model"])
            self.muon.load_state_dict(saved["muon"])
            self.adam.load_state_dict(saved["adam"])

    def save(self) -> None:
        """Writes the state to resume from, and the compact source."""
        saved = {"step": self.step, "used": torch.from_numpy(self.used), "model": self.model.state_dict()}
        saved |= {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        torch.save(saved, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)
        write_source(source_dir(), self.used, rounding.rounded_parameters(self.model))

    def learning_rate_factor(self) -> float:
        """A short warm-up, then constant, then linear decay to zero over the last 40 % of the steps."""
        return self.peak * min(1.0, (self.step + 1) / 100, max(0.01, (self.steps - self.step) / (0.4 * self.steps)))

    def advance(self) -> float:
        """Takes one step and returns its loss; random numbers depend only on the step, so resuming changes nothing."""
        rng = random.Random(f"{self.seed} {self.step}")
        window = self.model.config.sliding_window
        batches = [collate(draw_samples(rng, mix), self.classes, window) for mix in MIXES]
        for batch in batches:
            mask_prefix_tokens(batch, rng, len(self.used) + 1, self.kept)
        with parametrize.cached():  # round once per step, not once per batch
            loss = compute_loss(self.model, batches)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, peak in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimiser.param_groups[0]["lr"] = peak * self.learning_rate_factor()
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return float(loss.detach())


def main() -> None:
    """Trains, and logs one JSON line per evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state and the log")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refine", action="store_true", help="start from the compact source, not from random weights")
    parser.add_argument("--peak", type=float, default=1.0, help="factor for the learning rates")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options.work, options.steps, options.seed, refine=options.refine, peak=options.peak)
    since, total = time.monotonic(), 0.0
    while trainer.step < options.steps:
        total += trainer.advance()
        if trainer.step % options.evaluate_every == 0 or trainer.step == options.steps:
            seconds, since = time.monotonic() - since, time.monotonic()
            trainer.save()
            report = {"step": trainer.step, "loss": total / options.evaluate_every, "seconds": round(seconds, 1)}
            report |= measure_accuracy(trainer.model, trainer.classes, 64)
            total = 0.0
            with (options.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
