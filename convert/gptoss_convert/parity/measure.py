"""Measures an artifact against a reference: the same token ids through both, as a prefill and step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gptoss_convert import targets
from gptoss_convert.errors import CheckpointError, NonFiniteLogits, OutputError
from gptoss_convert.parity.checkpoint_reference import ROWS
from gptoss_convert.parity.layers import LayerErrors, measure_layer_errors
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.reference_file import About, Reference
from gptoss_convert.parity.session import Session, is_available
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.artifact.manifest import MANIFEST, Manifest, Parity
from gptoss_runtime.engine.genai import GenaiEngine
from gptoss_runtime.errors import BackendError, ContextOverflow, InvalidRequest

PathName = Literal["prefill", "steps"]


@dataclass(frozen=True, eq=False)
class Series:
    """The comparison on one path: prefill or step by step.

    Attributes:
        where: (sequence, position in it) of each position compared.
        comparison: the differences at each of them.
    """

    where: list[tuple[int, int]]
    comparison: Comparison


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of comparing an artifact with a reference.

    Attributes:
        model: the artifact's name.
        about: describes the reference.
        same_source: whether the artifact's manifest names the reference's checkpoint; None if it names none.
        token_ids: the sequences.
        prefill: after prompts computed from an empty cache: every position of every sequence if the graph returns all
            logits, else some positions, each the last of a prompt of its own.
        steps: after the last tokens of the first sequence, fed one by one.
        layers: errors of the hidden states, if requested and available.
        no_layers: why they are not available.
    """

    model: str
    about: About
    same_source: bool | None
    token_ids: list[list[int]]
    prefill: Series
    steps: Series
    layers: LayerErrors | None = None
    no_layers: str | None = None

    @property
    def mean_kl(self) -> float:
        """The larger of the two paths' mean KL divergences, in nats."""
        return max(float(series.comparison.kl.mean()) for series in (self.prefill, self.steps))

    def summary(self) -> Parity:
        """Both paths together, for the manifest."""
        both = Comparison.concatenate([self.prefill.comparison, self.steps.comparison]).figures()
        shown = {name: both[name] for name in ("max_abs", "mean_kl", "top1")}
        return Parity(reference=self.about.name, tokens=len(self.prefill.where) + len(self.steps.where), **shown)

    def figures(self) -> dict[str, Any]:
        """For JSON, with finite numbers only."""
        return {
            **self.summary().model_dump(),
            "model": self.model,
            "same_source": self.same_source,
            "text": self.about.text,
            "sequences": len(self.token_ids),
            "prefill": self.prefill.comparison.figures(),
            "steps": self.steps.comparison.figures(),
            "layers": self.layers.figures() if self.layers else None,
            "no_layers": self.no_layers,
        }


class Decoder(Protocol):
    """A loaded artifact; GenaiEngine and Session implement it."""

    def iter_logits(self, token_ids: Sequence[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields (tokens fed, logits of the last of them) after each chunk of the prompt and after each step."""


def measure(
    artifact: Path,
    reference: Reference,
    *,
    provider: str = "cpu",
    prefills: int = 8,
    steps: int = 256,
    layers: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Compares an artifact's logits with a reference's.

    Args:
        artifact: the artifact folder.
        reference: what to compare with; both compute its sequences.
        provider: execution provider for the artifact.
        prefills: prompts per sequence, if the graph returns only the last position's logits.
        steps: the last tokens of the first sequence to feed one by one, at most.
        layers: compare hidden states as well, if the reference has them.
        progress: called with (tokens fed, tokens in total).

    Raises:
        ArtifactError: the artifact cannot be loaded.
        InvalidRequest: the provider cannot run it, or a sequence is longer than its context.
        CheckpointError: the reference has another vocabulary, or cannot be read.
        BackendError: the provider is missing or failed.
        NonFiniteLogits: a logit of the artifact is infinite or not a number.
    """
    opened, ids = check_compatible(artifact, reference.about, provider), reference.token_ids
    errors, reason = _measure_layers(opened, reference, provider) if layers else (None, None)
    with _decoder(opened, provider) as decoder:
        has_all_logits = len(next(decoder.iter_logits(ids[0][:2]))[1]) > 1
        each = 1 if has_all_logits else prefills
        prompts = [(number, tokens[:end]) for number, tokens in enumerate(ids) for end in _prompt_lengths(tokens, each)]
        steps = min(steps, len(ids[0]))
        prefill, by_steps = (
            _RunningComparison("prefill", reference, errors),
            _RunningComparison("steps", reference, errors),
        )
        done, total = 0, sum(len(tokens) for _, tokens in prompts) + len(ids[0])
        for number, tokens in prompts:
            for end, rows in decoder.iter_logits(tokens):
                if has_all_logits or end == len(tokens):  # each chunk of a prompt gives its last
                    prefill.add(number, end, rows if has_all_logits else rows[-1:])
                if progress:
                    progress(done + end, total)
            done += len(tokens)
        for end, rows in decoder.iter_logits(ids[0], steps=steps):
            if end > len(ids[0]) - steps:
                by_steps.add(0, end, rows[-1:])
            if progress:
                progress(done + end, total)
    return Measurement(
        model=opened.name,
        about=reference.about,
        same_source=_same_source(opened, reference),
        token_ids=ids,
        prefill=prefill.series(),
        steps=by_steps.series(),
        layers=errors,
        no_layers=reason,
    )


def _prompt_lengths(tokens: list[int], prefills: int) -> list[int]:
    """Evenly spaced lengths of the prompts made from one sequence; the last is the whole sequence."""
    return sorted({round(len(tokens) * part / prefills) or 1 for part in range(1, prefills + 1)})


@dataclass
class _RunningComparison:
    """Compares an artifact's logits in batches, as they are computed."""

    path: PathName
    reference: Reference
    layers: LayerErrors | None
    where: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Comparison] = field(default_factory=list)
    waiting: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, sequence: int, end: int, rows: NDArray[np.float32]) -> None:
        """Adds the logits of the last ``len(rows)`` positions before ``end``.

        Raises:
            NonFiniteLogits: a logit is infinite or not a number.
        """
        finite = np.isfinite(rows).all(axis=-1)
        first = end - len(rows)
        if not finite.all():
            layer = self.layers.first_non_finite if self.layers else None
            raise NonFiniteLogits(
                path=self.path, sequence=sequence, position=first + int(np.argmin(finite)), layer=layer
            )
        self.where += [(sequence, position) for position in range(first, end)]
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= ROWS:
            self._compare()

    def series(self) -> Series:
        """The comparison of everything added."""
        self._compare()
        return Series(self.where, Comparison.concatenate(self.parts))

    def _compare(self) -> None:
        if not self.waiting:
            return
        rows, self.waiting = np.concatenate(self.waiting), []
        where = self.where[-len(rows) :]
        for at in range(0, len(rows), ROWS):
            self.parts.append(compare(self.reference.distributions_at(where[at : at + ROWS]), rows[at : at + ROWS]))


class _CpuDecoder:
    """Runs another provider's graph on the CPU, with onnxruntime alone.

    On the CPU, genai's cache grows with the tokens fed, but the graph may need a cache of fixed size.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        with _native_errors(f"loading {model} on the CPU"):
            self._session = Session(model)

    def iter_logits(self, token_ids: Sequence[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See :class:`Decoder`."""
        with _native_errors(f"running {self._model} on the CPU"):
            yield from self._session.iter_logits(token_ids, steps=steps)


@contextmanager
def _decoder(artifact: Artifact, provider: str) -> Iterator[Decoder]:
    """Loads the artifact as the runtime does, if possible."""
    if provider == "cpu" and artifact.provider != "cpu":
        yield _CpuDecoder(_model(artifact))
        return
    with GenaiEngine(artifact, provider=provider) as engine:
        yield engine


def _model(artifact: Artifact) -> Path:
    file: str = artifact.config["model"]["decoder"]["filename"]
    return artifact.path / file


def _measure_layers(artifact: Artifact, reference: Reference, provider: str) -> tuple[LayerErrors | None, str | None]:
    """Errors by layer, or why they are not available."""
    expected = reference.hidden_states
    if expected is None:
        return None, "the reference has no hidden states; save it with --layers"
    if not is_available(provider):
        return None, f"onnxruntime has no {provider} here"
    model = _model(artifact)
    with _native_errors(f"running {model} for its hidden states"):
        errors = measure_layer_errors(model, reference.token_ids[0], expected, provider=provider)
    return errors, None if errors else "the graph does not name its hidden states"


@contextmanager
def _native_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no other base class
        raise BackendError(f"{doing}: {error}", remedy="gptoss inspect checks the folder.") from error


def check_compatible(folder: Path, about: About, provider: str) -> Artifact:
    """Opens an artifact and checks, before anything is computed, that it can be compared with a reference.

    Args:
        folder: the artifact.
        about: describes the reference.
        provider: execution provider for the artifact.

    Raises:
        ArtifactError: there is no artifact, or it is damaged.
        CheckpointError: the reference has another vocabulary.
        InvalidRequest: the provider cannot run it, or a sequence is longer than its context.
    """
    artifact = Artifact.open(folder)
    if about.vocab_size != artifact.vocab_size:
        raise CheckpointError(
            f"{about.name} has a vocabulary of {about.vocab_size} tokens, {folder} one of {artifact.vocab_size}",
            remedy="Give the checkpoint that the artifact was made from.",
        )
    if max(about.lengths) > artifact.context_length:
        raise ContextOverflow(
            f"a sequence has {max(about.lengths)} tokens, but the context of {folder} is {artifact.context_length}",
            remedy="Give a smaller --length.",
        )
    if provider == "cpu" and artifact.target in targets.names() and not targets.load(artifact.target).runs_on_cpu:
        raise InvalidRequest(
            f"{folder}: its weights have the layout of {artifact.target}, which the CPU cannot read",
            remedy=f"Use --provider {artifact.provider} on a machine that has it.",
        )
    return artifact


def _same_source(artifact: Artifact, reference: Reference) -> bool | None:
    files = artifact.manifest.source.files if artifact.manifest else {}
    entry = files.get("config.json")
    return None if entry is None else entry.sha256 == reference.about.config_sha256


def record_parity(artifact: Path, parity: Parity) -> None:
    """Writes a result into the artifact's manifest.

    Raises:
        ArtifactError: there is no readable manifest.
        OutputError: the manifest cannot be replaced.
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
