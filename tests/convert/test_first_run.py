"""The first run measures every layer; a model out of range, or that computes something else, is not published."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_convert import targets
from gptoss_convert.activation_profile import Profile, Shifts
from gptoss_convert.check_prompt import check_positions, check_prompt
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import CheckpointError, ConversionError, MemoryLimitTooLow, RangeError
from gptoss_convert.export import export
from gptoss_convert.first_run import FirstRun, Parts, first_run
from gptoss_convert.graph import moe_composed
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.nano.folder import write_tokenizer
from gptoss_convert.nano.vocabulary import SPECIAL
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import amplify, write_checkpoint
from gptoss_convert.workflow import convert
from gptoss_runtime.artifact.manifest import Manifest
from gptoss_runtime.artifact.reference_logits import ReferenceLogits
from tests.parity.checkpoints import overwrite
from tests.parity.decoding import logits
from tests.tiers import mostly_integration
from tools.transformers_reference import load_transformers, transformers_logits

SMALL: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"sliding_window": 32, "max_position_embeddings": 1024, "eos_token_id": 1, "pad_token_id": 0},
}
ALL = ("cpu", "cpu-int4", "directml", "cuda")
EXACT = {"cpu": "lossless", "cpu-int4": "balanced", "directml": "best", "cuda": "lossless"}


def run(checkpoint: Path, folder: Path, name: str, preset: str | None = None, **changes: Any) -> FirstRun:
    target = replace(targets.load(name), **changes)
    folder.mkdir()
    opened, quantisation = Checkpoint.open(checkpoint), resolve(target.presets, preset or target.default_preset)
    written = export(opened, target, quantisation, folder)
    return first_run(Parts(opened, target, quantisation, folder, written.weights.extents))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), SMALL, seed=4)


@pytest.mark.parametrize("name", mostly_integration(ALL, fast={"cpu", "directml"}))
def test_layer_by_layer_gives_the_checkpoints_logits(name: str, plain: Path, tmp_path: Path) -> None:
    """Logits of the layers, run one after the other, compared with transformers' on the same prompt."""
    found = run(plain, tmp_path / name, name, EXACT[name])
    ids = found.reference.token_ids
    expected = transformers_logits(load_transformers(plain), ids)
    divergences = [one.divergence(expected[one.position]) for one in found.reference.positions]
    assert len(ids) == 512
    assert np.mean(divergences) < (0.3 if name == "cpu-int4" else 1e-3)
    assert [layer.layer for layer in found.range.layers] == [0, 1, 2]


@pytest.mark.parametrize("name", ["cpu", "cpu-int4", "directml"])
def test_layers_give_the_same_as_the_whole_graph(name: str, plain: Path, tmp_path: Path) -> None:
    """The layers give the same as the artifact's graph, in the target's float type.

    Not for CUDA: the CPU cannot read its experts, and tests/parity/test_cuda.py puts them back in order.
    """
    found = run(plain, tmp_path / name, name)
    target = targets.load(name)
    (tmp_path / "whole").mkdir()
    quantisation = resolve(target.presets, target.default_preset)
    model = export(Checkpoint.open(plain), target, quantisation, tmp_path / "whole", logits="all").model
    ids = found.reference.token_ids
    static = {"max_length": len(ids) + 1} if name == "directml" else {}
    whole = logits(model, ids, [len(ids)], **static)
    for one in found.reference.positions:
        assert one.divergence(whole[one.position]) < 1e-4
        np.testing.assert_allclose(one.logits, whole[one.position][list(one.token_ids)], atol=0.05)


def test_the_stream_is_measured(plain: Path, tmp_path: Path) -> None:
    import torch

    found = run(plain, tmp_path / "graph", "cpu", "lossless").range
    model = load_transformers(plain)
    ids = check_prompt(Checkpoint.open(plain).config)
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
    assert found.embedding == pytest.approx(float(states[0].abs().max()), rel=1e-4)
    for layer, state in zip(found.layers, states[1:-1], strict=False):
        assert layer.stream == pytest.approx(float(state.abs().max()), rel=1e-4)
    assert found.dtype == "float32"
    assert found.tightest is None


@pytest.mark.parametrize("name", ["directml", "cuda"])
def test_headroom_does_not_depend_on_sizes(name: str, plain: Path, tmp_path: Path) -> None:
    """float16 values come from a norm, or from weight rows scaled to a common size."""
    before = run(plain, tmp_path / "before", name).range
    shifts = Shifts(stream=12, value=17, query=-9)
    after = run(amplify(plain, tmp_path / "checkpoint", shifts), tmp_path / "after", name).range
    assert after.dtype == "float16"
    assert after.widest.stream == pytest.approx(4096 * before.widest.stream, rel=1e-6)
    assert [layer.headroom for layer in after.layers] == [layer.headroom for layer in before.layers]
    assert after.tightest is not None
    assert after.tightest.headroom is not None
    assert after.tightest.headroom > 8


NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.mark.parametrize("name", ["directml", "cuda"])
def test_a_layer_out_of_range_is_named(name: str, plain: Path, tmp_path: Path) -> None:
    """A norm's output is float16, and no scaling compensates a weight of 100,000."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(plain, checkpoint)
    overwrite(checkpoint, NORM, slice(None), 1e5)
    with pytest.raises(RangeError, match=r"layer 1: .*experts_input"):
        run(checkpoint, tmp_path / "graph", name)
    assert np.isfinite(run(checkpoint, tmp_path / "cpu", "cpu").range.widest.stream)  # float32 holds it


def test_too_little_headroom_is_out_of_range(plain: Path, tmp_path: Path) -> None:
    """The limit is half of float16's range, because another prompt may reach twice as far."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(plain, checkpoint)
    overwrite(checkpoint, NORM, slice(None), 1024)
    found = run(checkpoint, tmp_path / "graph", "directml").range.tightest
    assert found is not None
    assert (found.layer, found.tightest) == (1, "experts_input")
    assert found.headroom is not None
    overwrite(checkpoint, NORM, slice(None), 1024 * 2 ** math.floor(found.headroom))
    with pytest.raises(RangeError, match=r"layer 1: experts_input reaches [\d,]+, and float16 ends at 65,504"):
        run(checkpoint, tmp_path / "nearer", "directml")


def test_a_graph_that_computes_something_else_is_not_published(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph that ships is compared with the one that the first run uses, one layer per kind of attention."""

    def wrong(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        return g.op("Mul", moe_composed.moe_grouped(g, layer, x), g.constant(1.2, np.float32))

    target = targets.load("directml")

    def compose(quantisation: Any, chosen: Any) -> Any:
        return replace(target.compose(quantisation, chosen), moe=wrong)

    with pytest.raises(ConversionError, match="layer 0: the graph for directml differs by"):
        run(plain, tmp_path / "graph", "directml", compose=compose)


def test_the_range_is_in_the_artifact(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", SMALL, profile=Profile())
    write_tokenizer(checkpoint)
    steps: list[tuple[int, int]] = []
    manifest = convert(
        checkpoint, tmp_path / "out", target="directml", check_progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert manifest == Manifest.read(tmp_path / "out")
    assert manifest.range is not None
    assert manifest.range.widest.stream > 65504
    assert manifest.range.widest.layer == 2
    reference = ReferenceLogits.read(tmp_path / "out")
    assert reference is not None
    assert reference.to_bytes() == (tmp_path / "out" / "reference_logits.json").read_bytes()
    assert json.loads(reference.to_bytes())["token_ids"] == reference.token_ids
    assert "reference_logits.json" in manifest.files


def test_the_prompt_is_harmony_and_does_not_change(nano_checkpoint: Path) -> None:
    config = GptOssConfig.read(nano_checkpoint)
    ids = check_prompt(config)
    assert len(ids) == 512
    assert ids[0] == SPECIAL["<|start|>"]
    assert {SPECIAL[name] for name in ("<|channel|>", "<|message|>", "<|end|>", "<|call|>")} <= set(ids)
    assert sum(ids) == 12_684_442  # another prompt would make earlier artifacts' figures mean something else
    assert check_positions(512) == [31, 127, 255, 503, *range(504, 512)]
    assert len(check_prompt(replace(config, max_position_embeddings=100))) == 99
    assert len(check_prompt(replace(config, max_position_embeddings=1))) == 1
    assert check_positions(3) == [0, 1, 2]
    assert check_positions(1) == [0]


def test_weights_that_only_the_cpu_needs_keep_within_the_memory_allowed(plain: Path, tmp_path: Path) -> None:
    """CUDA's experts are computed again in the CPU's order, and removed afterwards."""
    target, opened = targets.load("cuda"), Checkpoint.open(plain)
    (tmp_path / "graph").mkdir()
    quantisation = resolve(target.presets, "balanced")
    written = export(opened, target, quantisation, tmp_path / "graph")
    parts = Parts(opened, target, quantisation, tmp_path / "graph", written.weights.extents, memory=1000)
    with pytest.raises(MemoryLimitTooLow):
        first_run(parts)
    first_run(replace(parts, memory=None))
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


BAD = {
    "NaN in a norm": ("model.layers.1.input_layernorm.weight", np.nan),
    "infinity in the embedding": ("model.embed_tokens.weight", np.inf),
    "NaN in the head": ("lm_head.weight", np.nan),
    "infinity in a router": ("model.layers.0.mlp.router.weight", -np.inf),
    "NaN in a bias": ("model.layers.2.self_attn.q_proj.bias", np.nan),
    "NaN in an expert's bias": ("model.layers.2.mlp.experts.down_proj_bias", np.nan),
    "NaN in sinks": ("model.layers.0.self_attn.sinks", np.nan),
    "infinity in o_proj": ("model.layers.0.self_attn.o_proj.weight", np.inf),
    "scale byte 255": ("model.layers.1.mlp.experts.down_proj_scales", 255),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", BAD)
def test_non_finite_weights_are_refused_by_name(bad: str, name: str, plain: Path, tmp_path: Path) -> None:
    tensor, value = BAD[bad]
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(plain, checkpoint)
    overwrite(checkpoint, tensor, 0, value)
    with pytest.raises(CheckpointError, match=r"not finite|no finite scale"):
        run(checkpoint, tmp_path / "graph", name)


@pytest.mark.parametrize("name", mostly_integration(["cpu", "directml", "cuda"], fast={"cuda"}))
def test_tiny_and_zero_weights_are_converted_right(name: str, plain: Path, tmp_path: Path) -> None:
    """Zero scales, denormal norms, an expert of zeros: correct answers, within the precision of the weights' type."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(plain, checkpoint)
    for tensor, value in (
        ("model.layers.0.mlp.experts.down_proj_scales", 0),
        ("model.layers.1.mlp.experts.gate_up_proj_scales", 3),
        ("model.layers.1.self_attn.o_proj.weight", 1e-39),
        ("model.layers.2.self_attn.v_proj.weight", 0.0),
        ("model.layers.2.mlp.experts.down_proj_bias", 1e-40),
    ):
        overwrite(checkpoint, tensor, slice(None), value)
    found = run(checkpoint, tmp_path / "graph", name, EXACT[name])
    expected = transformers_logits(load_transformers(checkpoint), found.reference.token_ids)
    assert np.mean([one.divergence(expected[one.position]) for one in found.reference.positions]) < 1e-3
