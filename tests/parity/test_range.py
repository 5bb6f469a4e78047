"""Float16 graphs with the activations of real checkpoints, on the CPU; tests/directml runs them on DirectML.

The CPU rounds to float16 where a graph says so and computes in float32 in between: it shows what leaves float16's
range, and not what a kernel squares inside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert import smoke, targets
from gptoss_convert.activation_profile import Profile, Shifts
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.demo import open_chats
from gptoss_convert.export import export
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.parity.metrics import compare
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import amplify, write_checkpoint
from gptoss_convert.targets import directml
from gptoss_convert.workflow import Options, convert
from gptoss_runtime.chat.conversation import ContentDelta, ToolCall
from tests.tiers import mostly_integration
from tools.transformers_reference import load_transformers, transformers_logits

from . import test_cuda
from .checkpoints import overwrite
from .conftest import PROFILES, SHIFTS, SMALL, write_variant
from .decoding import logits

LENGTH = 100
IDS = generate_sequences(512, count=1, length=LENGTH)[0]
PIECES = [60, *[1] * 40]
DIMENSIONS = {"intermediate_size": 128, "num_hidden_layers": 4}  # as CUDA's integer kernels require


def directml_logits(checkpoint: Path, folder: Path, preset: str) -> NDArray[np.float32]:
    target = directml.target(limit=Limit(1 << 16))
    folder.mkdir()
    quantisation = resolve(target.presets, preset)
    model = export(Checkpoint.open(checkpoint), target, quantisation, folder, logits="all").model
    return logits(model, IDS, PIECES, max_length=LENGTH + 1)


def cuda_logits(checkpoint: Path, folder: Path, preset: str) -> NDArray[np.float32]:
    return logits(test_cuda.on_the_cpu(test_cuda.graph(checkpoint, folder, preset)), IDS, PIECES)


GRAPHS: dict[str, tuple[Callable[[Path, Path, str], NDArray[np.float32]], str]] = {
    "directml best": (directml_logits, "best"),
    "directml balanced": (directml_logits, "balanced"),
    "directml smallest": (directml_logits, "smallest"),
    "cuda lossless": (cuda_logits, "lossless"),
    "cuda balanced": (cuda_logits, "balanced"),
}
NAMES = mostly_integration(GRAPHS, fast={"directml balanced", "cuda lossless"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), SMALL | DIMENSIONS, seed=7)


@pytest.mark.parametrize("name", NAMES)
def test_activation_sizes_change_no_bit(name: str, plain: Path, tmp_path: Path) -> None:
    """All factors are powers of two and the stream's sums are float32, so sizes cause no rounding."""
    run, preset = GRAPHS[name]
    expected = run(plain, tmp_path / "plain", preset)
    shifts = [Shifts(stream=shift) for shift in (-6, 12, 20)]  # 2e-1, 5e4, 1e7
    shifts += [
        Shifts(value=shift) for shift in (-12, 14)
    ]  # o_proj 16,384 times smaller: its int8 scales underflow in float16
    shifts += [Shifts(query=shift) for shift in (-9, 17)]
    for number, shift in enumerate(shifts):
        checkpoint = amplify(plain, tmp_path / f"checkpoint {number}", shift)
        np.testing.assert_array_equal(run(checkpoint, tmp_path / f"graph {number}", preset), expected, str(shift))


@pytest.mark.parametrize("name", NAMES)
def test_unused_massive_channels_cost_no_precision(name: str, plain: Path, tmp_path: Path) -> None:
    """They dominate the stream's length; all other channels are small in comparison."""
    run, preset = GRAPHS[name]
    reference = transformers_logits(load_transformers(plain), IDS)
    expected = compare(reference, run(plain, tmp_path / "plain", preset)).kl.mean()
    checkpoint = amplify(plain, tmp_path / "checkpoint", Shifts(copies=(10,)))
    assert compare(reference, run(checkpoint, tmp_path / "graph", preset)).kl.mean() < 1.25 * expected + 1e-6


@pytest.mark.integration
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["directml best", "cuda lossless"])
def test_massive_channels(name: str, profile: str, tmp_path: Path) -> None:
    run, preset = GRAPHS[name]
    checkpoint = write_variant(tmp_path / "checkpoint", profile, DIMENSIONS, seed=3)
    apart = compare(transformers_logits(load_transformers(checkpoint), IDS), run(checkpoint, tmp_path / "g", preset))
    if profile == "sharp attention":  # scores of 30 are rounded to 1/64, whatever computes them in float16
        assert np.median(apart.kl) < 1e-4
        assert np.quantile(apart.kl, 0.95) < 3e-3  # a near tie in routing moves a whole position
        return
    assert np.median(apart.kl) < 1e-6
    assert apart.kl.mean() < 1e-5


@pytest.mark.parametrize("name", ["directml best", "cuda lossless"])
def test_an_offset_of_all_router_logits_changes_nothing(name: str, plain: Path, tmp_path: Path) -> None:
    """A bias of 1,000 for every expert, where float16 has steps of 1/2."""
    run, preset = GRAPHS[name]
    found = []
    for bias in (0.0, 1000.0):
        checkpoint = tmp_path / f"{bias}"
        shutil.copytree(plain, checkpoint)
        for layer in range(DIMENSIONS["num_hidden_layers"]):
            overwrite(checkpoint, f"model.layers.{layer}.mlp.router.bias", slice(None), bias)
        found.append(run(checkpoint, tmp_path / f"graph {bias}", preset))
    assert compare(*found).kl.mean() < 1e-5


def test_an_experts_product_beyond_float16(tmp_path: Path) -> None:
    """Before the routing weight makes it small again, and with an equally large bias."""
    profile = Profile(maxima=((0.0, 3e5), (1.0, 3e6)), channels=1)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", SMALL | DIMENSIONS, seed=3, profile=profile)
    expected = transformers_logits(load_transformers(checkpoint), IDS)
    for name in ("directml best", "cuda lossless"):
        run, preset = GRAPHS[name]
        assert np.median(compare(expected, run(checkpoint, tmp_path / name, preset)).kl) < 1e-5


@pytest.mark.parametrize(("target", "preset"), [("directml", "balanced"), ("directml", "best"), ("cuda", "lossless")])
def test_the_stream_is_float32(target: str, preset: str, plain: Path, tmp_path: Path) -> None:
    """onnxruntime requires one type for all of a norm's inputs."""
    chosen = targets.load(target)
    model = export(Checkpoint.open(plain), chosen, resolve(chosen.presets, preset), tmp_path).model
    smoke.require_loadable(model)
    graph = onnx.load(model, load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    norms = [node for node in graph.node if node.op_type.endswith("SimplifiedLayerNormalization")]
    assert len(norms) == 2 * DIMENSIONS["num_hidden_layers"] + 1
    assert {types[norm.input[-1]] for norm in norms} == {onnx.TensorProto.FLOAT}
    sums = [node.output[3] for node in norms if len(node.output) == 4]
    assert sums[1::2] == [f"hidden_states.{layer}" for layer in range(1, DIMENSIONS["num_hidden_layers"] + 1)]


@pytest.mark.integration
@pytest.mark.parametrize("target", ["cpu", "cpu-int4"])
@pytest.mark.parametrize("shifts", SHIFTS.values(), ids=SHIFTS)
def test_the_demos_questions_are_answered_right(
    target: str, shifts: Shifts, nano_checkpoint: Path, tmp_path: Path
) -> None:
    """DirectML's answers are in tests/directml, CUDA's graph in test_cuda.py."""
    checkpoint = amplify(nano_checkpoint, tmp_path / "checkpoint", shifts)
    artifact = tmp_path / "gptoss-nano"
    convert(checkpoint, artifact, target=target, options=Options())
    answers: list[Any] = []
    with open_chats(artifact) as asked:
        for question, chat in asked:
            events = list(chat.stream(question.text))
            calls = [event.arguments for event in events if isinstance(event, ToolCall)]
            text = "".join(event.text for event in events if isinstance(event, ContentDelta))
            answers.append((calls, text))
    assert answers == [
        ([], "27 + 45 = 72"),
        ([], '{"name":"Tom","age":34,"city":"Oslo"}'),
        (['{"city":"Paris"}'], "It is 21 degrees and sunny in Paris."),
    ]


def test_a_masked_score_stays_masked_beside_very_negative_ones(tmp_path: Path) -> None:
    """With scores of about -10,000: the value that masks a slot must be lower than any real score."""
    profile = Profile(maxima=((0.0, 1.0), (1.0, 2.0)), channels=1, value_shift=0, query_gain=500.0)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", SMALL | DIMENSIONS, seed=3, profile=profile)
    target = directml.target(dtype=ir.DataType.FLOAT, limit=Limit(1 << 16))
    (tmp_path / "graph").mkdir()
    schemes = {"embedding": "float32", "attention": "float32", "lm_head": "float32"}
    quantisation = resolve(target.presets, "best", schemes)
    model = export(Checkpoint.open(checkpoint), target, quantisation, tmp_path / "graph", logits="all").model
    expected = transformers_logits(load_transformers(checkpoint), IDS)
    found = logits(model, IDS, PIECES, max_length=LENGTH + 1)
    assert np.median(compare(expected, found).max_abs) < 1e-2
