"""Measures artifacts: every target, prefill and steps, hidden states, and logits that are not finite."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError, NonFiniteLogits
from gptoss_convert.parity import measure as parities
from gptoss_convert.parity.checkpoint_reference import CheckpointReference
from gptoss_convert.parity.layers import LayerErrors, measure_layer_errors
from gptoss_convert.parity.measure import Measurement, measure
from gptoss_convert.parity.report import render
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.parity.session import Session
from gptoss_convert.workflow import Options, convert
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.errors import ArtifactError, BackendError, BackendUnavailable, ContextOverflow, InvalidRequest
from tests.convert.conftest import write_tiny

from .conftest import SMALL

CHANGES = SMALL | {"intermediate_size": 128, "max_position_embeddings": 512}  # that every target takes
LENGTHS = (200, 30)
# Largest mean KL of each target's most exact preset on random weights, which lose more than trained ones.
MOST_KL = {"cpu": 1e-6, "cpu-int4": 0.3, "directml": 1e-3, "cuda": 1e-3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "small", CHANGES, seed=3)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> CheckpointReference:
    ids = [generate_sequences(512, count=1, length=length)[0] for length in LENGTHS]
    made = CheckpointReference(Checkpoint.open(checkpoint), ids, "random ids")
    made.compute(layers=True)
    return made


@pytest.fixture(scope="module")
def lossless(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lossless") / "small"
    convert(checkpoint, out, options=Options(preset="lossless"))
    return out


@dataclass
class Made:
    """A decoder that returns its reference's logits, changed by (tokens fed, whether it is a step, logits)."""

    reference: CheckpointReference
    change: Callable[[int, bool, NDArray[np.float32]], None] = lambda end, stepping, rows: None
    gives_all: bool = False
    fed: list[tuple[int, int]] = field(default_factory=list)

    def iter_logits(self, token_ids: Sequence[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        self.fed.append((len(token_ids), steps))
        sequence = next(n for n, ids in enumerate(self.reference.token_ids) if ids[: len(token_ids)] == token_ids)
        prompt = len(token_ids) - steps
        sizes = [*(min(64, prompt - at) for at in range(0, prompt, 64)), *[1] * steps]
        for number, end in enumerate(accumulate(sizes)):
            first = end - sizes[number] if self.gives_all else end - 1
            rows = self.reference.distributions_at([(sequence, position) for position in range(first, end)]).logits
            self.change(end, end > prompt, rows)
            yield end, rows


@pytest.fixture
def made(reference: CheckpointReference, monkeypatch: pytest.MonkeyPatch) -> Made:
    decoder = Made(reference)
    monkeypatch.setattr(parities, "_decoder", lambda *_: nullcontext(decoder))
    return decoder


def named(folder: Path, out: Path, change: Callable[[ir.Graph, dict[int, ir.Value]], None] | None = None) -> Path:
    """A copy of an artifact whose graph names its residual stream."""
    shutil.copytree(folder, out)
    model = ir.load(out / "model.onnx")
    norms = [node for node in model.graph if node.op_type == "SkipSimplifiedLayerNormalization"]
    stream = [norms[0].inputs[1], *(node.outputs[3] for node in norms[1::2])]
    values = {number: value for number, value in enumerate(stream) if value is not None}
    for number, value in values.items():
        value.name = f"hidden_states.{number}"
    if change:
        change(model.graph, values)
    ir.save(model, out / "model.onnx")
    return out


@pytest.mark.parametrize("target", targets.names())
@pytest.mark.parametrize("logits", ["last", "all"])
def test_every_target_that_the_cpu_can_read(
    target: str, logits: Any, checkpoint: Path, reference: CheckpointReference, tmp_path: Path
) -> None:
    presets = targets.load(target).presets
    preset = next((one for one in ("lossless", "best") if one in presets), None)
    convert(checkpoint, tmp_path / "out", target=target, options=Options(preset=preset, logits=logits))
    if not targets.load(target).runs_on_cpu:
        with pytest.raises(InvalidRequest, match=f"have the layout of {target}, which the CPU cannot"):
            measure(tmp_path / "out", reference)
        return
    found = measure(tmp_path / "out", reference, prefills=4, steps=150)
    assert found.same_source
    assert found.mean_kl < MOST_KL[target]
    every = [(sequence, at) for sequence, length in enumerate(LENGTHS) for at in range(length)]
    some = [(0, 49), (0, 99), (0, 149), (0, 199), (1, 7), (1, 14), (1, 21), (1, 29)]
    assert found.prefill.where == (every if logits == "all" else some)
    assert found.steps.where == [(0, at) for at in range(50, 200)]
    assert len(found.prefill.comparison.kl) == len(found.prefill.where)
    assert found.summary().tokens == len(found.prefill.where) + 150


@pytest.mark.parametrize("gives_all", [False, True])
def test_prefill_and_steps_are_two_measurements(
    gives_all: bool, made: Made, reference: CheckpointReference, lossless: Path
) -> None:
    """A fault in one does not affect the other, and each prompt starts with an empty cache."""
    made.gives_all = gives_all

    def wrong_steps(end: int, stepping: bool, rows: NDArray[np.float32]) -> None:
        rows[:, 0] += 5 * stepping

    def wrong_prompts(end: int, stepping: bool, rows: NDArray[np.float32]) -> None:
        rows[:, 0] += 5 * (not stepping)

    for change, (prefill, steps) in ((wrong_steps, (0, 5)), (wrong_prompts, (5, 0))):
        made.change = change
        found = measure(lossless, reference, prefills=2, steps=9)
        assert found.prefill.comparison.max_abs.min() == pytest.approx(prefill, abs=1e-4)
        assert found.steps.comparison.max_abs.min() == pytest.approx(steps, abs=1e-4)
    prompts = [(200, 0), (30, 0)] if gives_all else [(100, 0), (200, 0), (15, 0), (30, 0)]
    assert made.fed[-len(prompts) - 1 :] == [*prompts, (200, 9)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("gives_all", [False, True])
def test_logits_that_are_not_finite_are_named(
    value: float, gives_all: bool, made: Made, reference: CheckpointReference, lossless: Path
) -> None:
    made.gives_all = gives_all

    def break_step(end: int, stepping: bool, rows: NDArray[np.float32]) -> None:
        if stepping and end == 196:
            rows[-1, 7] = value

    def break_prompt(end: int, stepping: bool, rows: NDArray[np.float32]) -> None:
        if not stepping and end == 200:
            rows[-1, :] = value

    made.change = break_step
    with pytest.raises(NonFiniteLogits, match="after token 195 of sequence 0, step by step") as step:
        measure(lossless, reference, steps=9)
    assert step.value.where == {"path": "steps", "sequence": 0, "position": 195, "layers": None}
    made.change = break_prompt
    with pytest.raises(NonFiniteLogits, match="after token 199 of sequence 0, prefill"):
        measure(lossless, reference)


def test_progress_counts_tokens(made: Made, reference: CheckpointReference, lossless: Path) -> None:
    calls: list[tuple[int, int]] = []
    measure(lossless, reference, prefills=2, steps=300, progress=lambda *call: calls.append(call))
    assert [total for _, total in calls] == [545] * len(calls)  # 100 + 200 + 15 + 30 and 200 steps
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (545, 545)


def test_hidden_states_layer_by_layer(lossless: Path, reference: CheckpointReference, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.iterdir())
    artifact = named(lossless, tmp_path / "named")
    files = {file.name: file.stat().st_mtime_ns for file in artifact.iterdir()}
    found = measure(artifact, reference, prefills=1, steps=1, layers=True)
    assert found.layers is not None
    assert found.layers.positions == 200
    assert found.layers.relative.shape == (SMALL["num_hidden_layers"] + 1,)
    assert found.layers.relative.max() < 1e-5
    assert found.layers.first_non_finite is None
    assert [one["layers"] for one in found.figures()["layers"]] == [0, 1, 2]
    assert {file.name: file.stat().st_mtime_ns for file in artifact.iterdir()} == files
    assert sorted(tmp_path.parent.iterdir()) == before


def test_hidden_states_of_another_model_differ(lossless: Path, reference: CheckpointReference, tmp_path: Path) -> None:
    """A graph that names only some hidden states is measured at those."""

    def rename_one(graph: ir.Graph, values: dict[int, ir.Value]) -> None:
        values[1].name = "something else"

    artifact = named(lossless, tmp_path / "named", rename_one)
    assert reference.hidden_states is not None
    others = np.roll(reference.hidden_states, 1, axis=1)
    errors = measure_layer_errors(artifact / "model.onnx", reference.token_ids[0], others)
    assert errors is not None
    assert np.isnan(errors.relative).tolist() == [False, True, False]
    assert errors.relative[[0, 2]].min() > 0.5
    assert errors.median[[0, 2]].min() > 0.5


def test_where_hidden_states_stop_being_finite(lossless: Path, reference: CheckpointReference, tmp_path: Path) -> None:
    """An overflow in one layer's stream: the artifact fails, and the error names the layer."""

    def overflow(graph: ir.Graph, values: dict[int, ir.Value]) -> None:
        stream = values[1]
        (producer,) = [node for node in graph if stream in node.outputs]
        users = list(stream.uses())
        huge = ir.Value(name="huge", const_value=ir.tensor(np.float32(3e38), name="huge"))
        graph.initializers["huge"] = huge
        grown = ir.node("Mul", [stream, huge])
        product = ir.node("Mul", [grown.outputs[0], huge])
        stream.name, grown.outputs[0].name, product.outputs[0].name = "calm", "grown", "hidden_states.1"
        graph.insert_after(producer, [grown, product])
        for node, index in users:
            node.replace_input_with(index, product.outputs[0])

    artifact = named(lossless, tmp_path / "named", overflow)
    with pytest.raises(NonFiniteLogits, match="hidden states are not after 1 layers") as failure:
        measure(artifact, reference, layers=True)
    assert failure.value.where["layers"] == 1
    assert failure.value.figures()["type"] == "NonFiniteLogits"


def test_missing_layers_are_explained(
    lossless: Path, reference: CheckpointReference, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(using: Any) -> str | None:
        found = measure(lossless, using, prefills=1, steps=1, layers=True)
        assert found.layers is None
        return found.no_layers

    monkeypatch.setattr(parities, "measure_layer_errors", lambda *_, **__: None)
    assert reason(reference) == "the graph does not name its hidden states"
    bare = CheckpointReference(Checkpoint.open(checkpoint), [[1, 2, 3]], "")
    assert reason(bare) == "the reference has no hidden states; save it with --layers"


def test_figures_of_layers_are_json() -> None:
    errors = LayerErrors(np.array([0.5, np.nan, np.inf]), np.array([0.25, np.nan, np.inf]), 3)
    assert errors.figures() == [
        {"layers": 0, "relative": 0.5, "median": 0.25, "finite": True},
        {"layers": 2, "relative": None, "median": None, "finite": False},
    ]
    assert errors.first_non_finite == 2


def test_mismatches_are_refused_before_anything_is_computed(lossless: Path, checkpoint: Path, tmp_path: Path) -> None:
    def of(ids: list[list[int]], folder: Path = checkpoint) -> CheckpointReference:
        return CheckpointReference(Checkpoint.open(folder), ids, "")

    other = write_tiny(tmp_path / "other", CHANGES | {"vocab_size": 96})
    refusals: list[tuple[type[Exception], str, CheckpointReference, dict[str, Any]]] = [
        (CheckpointError, "other has a vocabulary of 96 tokens", of([[1, 2]], other), {}),
        (ContextOverflow, "a sequence has 513 tokens", of([[1] * 513]), {}),
        (BackendUnavailable, "WebGPU", of([[1, 2]]), {"provider": "webgpu"}),
    ]
    for kind, words, reference, options in refusals:
        with pytest.raises(kind, match=words):
            measure(lossless, reference, **options)
        assert reference._states is None
    with pytest.raises(ArtifactError, match="not an artifact"):
        measure(checkpoint, of([[1, 2]]))


def test_a_graph_that_does_not_run_on_the_cpu(
    checkpoint: Path, reference: CheckpointReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's errors name the model; other errors are not attributed to it."""
    convert(checkpoint, tmp_path / "out", target="directml")
    monkeypatch.setattr(parities, "compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(tmp_path / "out", reference)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "iter_logits", lambda *_, **__: iter(lambda: 1 / 0, None))
        with pytest.raises(BackendError, match=r"running .*model\.onnx on the CPU"):
            measure(tmp_path / "out", reference)
    model = ir.load(tmp_path / "out" / "model.onnx")
    next(iter(model.graph)).op_type = "Nonsense"
    ir.save(model, tmp_path / "out" / "model.onnx")
    with pytest.raises(BackendError, match=r"loading .*model\.onnx on the CPU"):
        measure(tmp_path / "out", reference)


def test_the_longest_sequence_fits(lossless: Path, checkpoint: Path) -> None:
    ids = generate_sequences(512, count=1, length=512)
    found = measure(lossless, CheckpointReference(Checkpoint.open(checkpoint), ids, ""), prefills=1, steps=3)
    assert found.prefill.where == [(0, 511)]
    assert found.mean_kl < 1e-6


def test_a_reference_of_another_checkpoint_is_reported(lossless: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", CHANGES | {"rms_norm_eps": 1e-4}, seed=3)
    found = measure(lossless, CheckpointReference(Checkpoint.open(other), [[1, 2, 3]], ""), steps=1)
    assert found.same_source is False
    (lossless / "manifest.json").rename(tmp_path / "manifest.json")
    try:
        assert Artifact.open(lossless).manifest is None
        found = measure(lossless, CheckpointReference(Checkpoint.open(other), [[1, 2, 3]], ""), steps=1)
        assert found.same_source is None
    finally:
        (tmp_path / "manifest.json").rename(lossless / "manifest.json")


def test_the_page(lossless: Path, reference: CheckpointReference, tmp_path: Path) -> None:
    artifact = named(lossless, tmp_path / "named")
    found = measure(artifact, reference, prefills=2, steps=5, layers=True)

    def page(measurement: Measurement) -> str:
        return render(measurement, lambda ids: f"<{len(ids)}>")

    shown = page(found)
    assert shown.count("<circle") == 4 + 5 + 3
    for words in ("prefill", "step by step", "p99 KL, nats", "Error by layer", "&lt;12&gt;", "random ids: 230 tokens"):
        assert words in shown
    assert "Not available: --layers was not given" in page(replace(found, layers=None))
    broken = LayerErrors(np.array([0.0, np.inf, np.inf]), np.zeros(3), 5)
    assert "Not finite after 1 layers; shown at the top" in page(replace(found, layers=broken))
