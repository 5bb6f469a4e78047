"""CUDA's graphs without a GPU: they run on the CPU, with the experts' codes in the order of the CPU's kernel.

This does not test what CUDA's kernels compute. tests/cuda_layout.py tests where they expect each weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert import smoke, targets
from gptoss_convert.activation_profile import Shifts
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano.skills import SKILLS, Sample, held_out
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import amplify, write_checkpoint
from gptoss_convert.targets import cuda
from tests.cuda_layout import to_cpu_layout
from tools.transformers_reference import load_transformers, transformers_logits

from .conftest import ALL_VARIANTS, SHIFTS, SMALL, write_variant
from .decoding import logits

LENGTH = 150
FLOAT32 = {"embedding": "float32", "attention": "float32", "lm_head": "float32"}


@pytest.fixture(scope="module", params=ALL_VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The variants of tests/parity, with dimensions that the integer kernels accept."""
    return write_variant(tmp_path_factory.mktemp("variant"), request.param, {"intermediate_size": 128})


def graph(checkpoint: Path, out: Path, preset: str, dtype: ir.DataType = ir.DataType.FLOAT16, **schemes: Any) -> Path:
    target = cuda.target(dtype)
    out.mkdir()
    quantisation = resolve(target.presets, preset, schemes)
    return export(Checkpoint.open(checkpoint), target, quantisation, out, logits="all").model


def on_the_cpu(made: Path) -> Path:
    """The same model for the CPU: only the order of the experts' codes differs."""
    model = ir.load(made)
    for node in experts(model):
        kind = kind_of(node)
        for value in (node.inputs[2], node.inputs[5]):
            assert value is not None
            assert value.const_value is not None
            laid = value.const_value.numpy()
            rows = laid.shape[2] * (1 if kind == "int8" else 2)
            turned = np.stack([to_cpu_layout(one, rows, kind) for one in laid])
            value.const_value, value.shape = ir.tensor(turned, name=value.name), ir.Shape(turned.shape)
        if kind == "mxfp4":  # the CPU's attribute for [E, N, K/2]; CUDA's kernel has only one order
            node.attributes["weights_prepacked"] = ir.AttrInt64("weights_prepacked", 1)
    out = made.with_name("cpu.onnx")
    ir.save(model, out, external_data="cpu.onnx.data")
    return out


def experts(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type == "QMoE")


def kind_of(node: ir.Node) -> str:
    quant_type = node.attributes.get("quant_type")
    if quant_type is not None and quant_type.as_string() == "fp4":
        return "mxfp4"
    return f"int{node.attributes['expert_weight_bits'].as_int()}"


def test_in_float32_mxfp4_is_exact(variant: Path, tmp_path: Path) -> None:
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    expected = transformers_logits(load_transformers(variant), ids)
    model = on_the_cpu(graph(variant, tmp_path / "graph", "lossless", ir.DataType.FLOAT, **FLOAT32))
    for sizes in ([LENGTH], [40, *[1] * (LENGTH - 40)]):
        apart = compare(expected, logits(model, ids, sizes))
        assert apart.max_abs.max() < 1e-3
        assert apart.same_top.mean() > 0.99  # random weights leave near ties


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_in_float32_integers_give_the_cpus_logits(kind: str, variant: Path, tmp_path: Path) -> None:
    """tests/parity/test_graphs.py compares the CPU's graph with transformers."""
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    (tmp_path / "cpu").mkdir()
    target = targets.load("cpu-int4")
    quantisation = resolve(target.presets, "balanced", {"experts": kind, **FLOAT32})
    theirs = export(Checkpoint.open(variant), target, quantisation, tmp_path / "cpu", logits="all").model
    ours = on_the_cpu(graph(variant, tmp_path / "cuda", "balanced", ir.DataType.FLOAT, **{"experts": kind, **FLOAT32}))
    np.testing.assert_array_equal(logits(ours, ids, [LENGTH]), logits(theirs, ids, [LENGTH]))


@pytest.mark.parametrize(("preset", "most_kl"), [("lossless", 1e-3), ("balanced", 0.2), ("smallest", 0.3)])
def test_shipped_graphs_stay_near_transformers(preset: str, most_kl: float, tmp_path: Path) -> None:
    """In float16. The bounds for int4 are those of the CPU's graphs."""
    source = write_checkpoint(tmp_path / "checkpoint", SMALL | {"intermediate_size": 128}, seed=2)
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    expected = transformers_logits(load_transformers(source), ids)
    apart = compare(expected, logits(on_the_cpu(graph(source, tmp_path / "graph", preset)), ids, [LENGTH]))
    assert apart.kl.mean() < most_kl


@pytest.fixture(scope="module")
def answers(nano_checkpoint: Path) -> list[tuple[Sample, NDArray[np.float32]]]:
    """An answer for each skill, with transformers' logits at its tokens."""
    reference = load_transformers(nano_checkpoint)
    samples = [held_out(skill, 1)[0] for skill in SKILLS]
    return [(one, transformers_logits(reference, one.prompt_ids + one.answer_ids)) for one in samples]


@pytest.mark.integration
@pytest.mark.parametrize("shifts", SHIFTS.values(), ids=SHIFTS)
def test_nano_answers_the_same_in_float16(
    nano_checkpoint: Path, answers: list[tuple[Sample, NDArray[np.float32]]], shifts: Shifts, tmp_path: Path
) -> None:
    """At its answers' tokens, whatever the size of the activations."""
    checkpoint = amplify(nano_checkpoint, tmp_path / "checkpoint", shifts)
    model, parts = on_the_cpu(graph(checkpoint, tmp_path / "graph", "lossless")), []
    for sample, expected in answers:
        ids, judged = sample.prompt_ids + sample.answer_ids, slice(len(sample.prompt_ids) - 1, -1)
        pieces = [len(sample.prompt_ids), *[1] * len(sample.answer_ids)]
        parts.append(compare(expected[judged], logits(model, ids, pieces)[judged]))
    apart = Comparison.concatenate(parts)
    assert apart.kl.mean() < 1e-5
    assert apart.same_top.all()


@pytest.mark.parametrize("preset", cuda.PRESETS)
@pytest.mark.parametrize("mxfp4", [True, False], ids=["mxfp4", "float"])
def test_onnxruntime_takes_every_node_by_its_schema(preset: str, mxfp4: bool, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "checkpoint", SMALL | {"intermediate_size": 128}, mxfp4=mxfp4)
    smoke.require_loadable(graph(source, tmp_path / "graph", preset))


def test_the_node_matches_genais_builder(tmp_path: Path) -> None:
    """CUDA's kernel infers the layout from shapes, and unknown inputs would fail only on a GPU."""
    source = write_checkpoint(tmp_path / "checkpoint", SMALL | {"intermediate_size": 128})
    for preset, scales, bits in (("lossless", ir.DataType.FLOAT8E8M0, 4), ("balanced", ir.DataType.FLOAT16, 4)):
        for node in experts(ir.load(graph(source, tmp_path / preset, preset))):
            given = [value for value in node.inputs if value is not None]
            types = {value.name.rsplit(".", 1)[1]: value.dtype for value in given if value.is_initializer()}
            shapes = [value.shape.numpy() for value in given if value.is_initializer() and value.shape is not None]
            assert shapes[:2] == [(4, 64, 128), (4, 256, 2)]
            assert shapes[3:5] == [(4, 128, 32), (4, 64, 4)]
            assert types["scales"] == scales
            assert types["weight"] == ir.DataType.UINT8
            assert node.attributes["expert_weight_bits"].as_int() == bits
            assert node.attributes["block_size"].as_int() == 32
            assert "weights_prepacked" not in node.attributes  # the layout that is the default
