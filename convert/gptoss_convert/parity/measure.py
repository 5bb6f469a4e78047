"""An artifact against its checkpoint: the same ids through our engine and through transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError, OutputError
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.reference import load_transformers, transformers_logits
from gptoss_convert.parity.sequences import sequences
from gptoss_runtime import Engine
from gptoss_runtime.manifest import MANIFEST, Manifest, Parity


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was compared, and how far apart it is.

    Attributes:
        model: the artifact's name.
        reference: the checkpoint's name.
        token_ids: every sequence.
        prefill: all positions at once.
        steps: the same tokens one by one through the cache; the first sequence only.
    """

    model: str
    reference: str
    token_ids: list[list[int]]
    prefill: Comparison
    steps: Comparison

    def summary(self) -> Parity:
        """For the manifest: prefill and steps together."""
        both = Comparison.joined([self.prefill, self.steps])
        return Parity(
            reference=self.reference,
            tokens=len(both.kl),
            max_abs=float(both.max_abs.max()),
            mean_kl=float(both.kl.mean()),
            top1=float(both.same_top.mean()),
        )


def measure(
    artifact: Path,
    checkpoint: Path,
    *,
    provider: str = "cpu",
    count: int = 4,
    length: int = 320,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Compares logits.

    Args:
        artifact: the artifact folder. One that gives only the last position's logits is fed token by token throughout.
        checkpoint: the checkpoint to compare with.
        provider: execution provider for the artifact.
        count: sequences.
        length: tokens in each.
        seed: of the sequences.
        progress: called with (sequences done, sequences in all).

    Raises:
        ArtifactError: the artifact cannot be loaded.
        CheckpointError: the checkpoint cannot be loaded, or has another vocabulary.
    """
    opened = Checkpoint.open(checkpoint)
    with Engine.load(artifact, provider=provider) as engine:
        if opened.config.vocab_size != engine.info.vocab_size:
            raise CheckpointError(
                f"{checkpoint} has {opened.config.vocab_size} tokens, {artifact} {engine.info.vocab_size}",
                remedy="Give the checkpoint that the artifact was made from.",
            )
        model = load_transformers(checkpoint)
        ids = sequences(engine.info.vocab_size, count=count, length=length, seed=seed)
        prefill, steps = [], []
        for number, sequence in enumerate(ids):
            expected = transformers_logits(model, sequence)
            prefill.append(compare(expected, engine.logits(sequence)))
            if number == 0:
                steps.append(compare(expected, engine.logits(sequence, stepwise=True)))
            if progress:
                progress(number + 1, len(ids))
        name = engine.info.name
    return Measurement(name, checkpoint.resolve().name, ids, Comparison.joined(prefill), Comparison.joined(steps))


def record(artifact: Path, parity: Parity) -> None:
    """Puts a result into the artifact's manifest.

    Raises:
        ArtifactError: there is no readable manifest.
        OutputError: it cannot be replaced.
    """
    manifest = Manifest.read(artifact).model_copy(update={"parity": parity})
    new = artifact / f"{MANIFEST}.new"
    try:
        try:
            new.write_bytes(manifest.to_bytes())
            new.replace(artifact / MANIFEST)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{artifact / MANIFEST}: {error.strerror or error}") from error
