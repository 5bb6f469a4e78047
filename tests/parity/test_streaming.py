"""The float32 reference, compared with transformers and OpenAI's implementation, and its use of memory."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError
from gptoss_convert.parity import streaming
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import write_checkpoint
from tests.packages import install_packages
from tools.transformers_reference import load_transformers, transformers_logits

from . import openai_oracle
from .checkpoints import overwrite
from .conftest import SMALL

LENGTHS = (300, 1, 37)  # longer than several windows, and shorter than one
ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
ROPES: dict[str, dict[str, Any]] = {
    "truncated": {**ROPE, "original_max_position_embeddings": 512, "truncate": True},
    "attention factor": {**ROPE, "original_max_position_embeddings": 4096, "attention_factor": 0.7},
    "short original": {**ROPE, "original_max_position_embeddings": 64, "factor": 4.0, "truncate": False},
    "plain": {"rope_type": "default"},
}
TINY = SMALL | {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "num_attention_heads": 2}
LONG = TINY | {"num_key_value_heads": 1, "sliding_window": 128, "max_position_embeddings": 131072}


@pytest.fixture(scope="module")
def openai_package() -> Path:
    return install_packages("openai-oracle", *openai_oracle.PACKAGE, alone=True)


def ours(folder: Path, ids: list[list[int]]) -> list[NDArray[np.float32]]:
    checkpoint = Checkpoint.open(folder)
    return [
        streaming.compute_logits(checkpoint, states).numpy()
        for states in streaming.compute_final_states(checkpoint, ids)
    ]


def random_ids(*lengths: int, vocab: int = 512) -> list[list[int]]:
    return [generate_sequences(vocab, count=1, length=length, seed=length)[0] for length in lengths]


def assert_as_transformers(folder: Path, ids: list[list[int]]) -> None:
    model = load_transformers(folder)
    for sequence, logits in zip(ids, ours(folder, ids), strict=True):
        np.testing.assert_allclose(logits, transformers_logits(model, sequence), rtol=0, atol=1e-4)


def test_every_shape_agrees_with_transformers(variant: Path) -> None:
    assert_as_transformers(variant, random_ids(*LENGTHS))


def test_float_experts_agree_with_transformers(float_checkpoint: Path) -> None:
    assert_as_transformers(float_checkpoint, random_ids(*LENGTHS))


@pytest.mark.parametrize("settings", ROPES.values(), ids=ROPES)
def test_rotary_settings_agree_with_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_as_transformers(write_checkpoint(tmp_path, SMALL | {"rope_scaling": settings}), random_ids(700))


@pytest.mark.integration
@pytest.mark.parametrize("window", [128, 5000], ids=["narrow", "wide"])
def test_beyond_the_original_context(window: int, tmp_path: Path) -> None:
    """More than the original 4,096 positions, in both kinds of layers."""
    folder = write_checkpoint(tmp_path, LONG | {"sliding_window": window})
    assert_as_transformers(folder, random_ids(5200))


@pytest.mark.integration
def test_nano_agrees_with_transformers(nano_checkpoint: Path) -> None:
    """nano was not trained on concatenated conversations: some tokens are near a router's tie (1e-3 in float32)."""
    ids = generate_sequences(201_088, count=2, length=320)
    model = load_transformers(nano_checkpoint)
    for sequence, logits in zip(ids, ours(nano_checkpoint, ids), strict=True):
        expected = transformers_logits(model, sequence)
        assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)
        assert np.quantile(np.abs(logits - expected).max(axis=1), 0.95) < 2e-4


def test_every_shape_agrees_with_openais_own(
    variant: Path, openai_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(openai_package))
    ids = random_ids(*LENGTHS)
    model = openai_oracle.load(variant, tmp_path)
    for sequence, logits in zip(ids, ours(variant, ids), strict=True):
        expected = openai_oracle.logits(model, sequence)
        assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)
        assert np.abs(logits - expected).max() < 1e-4


def test_nano_agrees_with_openais_own(
    nano_checkpoint: Path, openai_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(openai_package))
    (ids,) = generate_sequences(201_088, count=1, length=320)
    expected = openai_oracle.logits(openai_oracle.load(nano_checkpoint, tmp_path), ids)
    (logits,) = ours(nano_checkpoint, [ids])
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)


@given(
    arrays.arrays(np.uint8, (3, 2, 16)),
    arrays.arrays(np.uint8, (3, 2), elements=st.integers(0, mxfp4.LARGEST_SCALE)),
)
def test_mxfp4_is_decoded_exactly(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> None:
    values = streaming.decode_mxfp4(torch.from_numpy(blocks), torch.from_numpy(scales))
    np.testing.assert_array_equal(values.numpy(), mxfp4.decode(blocks, scales))


@pytest.mark.parametrize("window", [None, 7])
def test_attention_is_the_same_in_blocks_of_any_size(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value, sinks = torch.randn(90, 6, 16), torch.randn(90, 2, 16), torch.randn(90, 2, 16), torch.randn(6)
    results = []
    for scores in (1 << 30, 2000, 1):
        monkeypatch.setattr(streaming, "_SCORES", scores)
        blocks = list(streaming.attend(query, key, value, sinks, window))
        results.append([torch.cat(parts) for parts in zip(*blocks, strict=True)])
        assert max(len(output) for output, _ in blocks) * 6 * (window or 1) <= max(scores, 6 * (window or 1))
    assert len(blocks) == 90
    for output, largest in results[1:]:
        torch.testing.assert_close(output, results[0][0])
        torch.testing.assert_close(largest, results[0][1])


def test_one_layers_weights_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only one matrix of that layer, apart from vectors."""
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, SMALL | {"num_hidden_layers": 4, "vocab_size": 8192}))
    alive: Counter[tuple[str, int]] = Counter()
    most: list[int] = []
    load, decode = streaming._tensor, streaming.decode_mxfp4

    def keep_track(name: str, tensor: torch.Tensor) -> torch.Tensor:
        key = (name, tensor.nbytes)
        alive[key] += 1
        weakref.finalize(tensor, lambda: alive.subtract([key]))
        most.append(sum(size * count for (_, size), count in alive.items()))
        layers = {name.split(".")[2] for (name, _), count in alive.items() if count and ".layers." in name}
        assert len(layers) <= 1, alive
        return tensor

    monkeypatch.setattr(streaming, "_tensor", lambda c, name, *rows: keep_track(name, load(c, name, *rows)))
    monkeypatch.setattr(streaming, "decode_mxfp4", lambda *codes: keep_track("expert", decode(*codes)))
    monkeypatch.setattr(streaming, "_HEAD_ROWS", 256)
    for states in streaming.compute_final_states(checkpoint, random_ids(40, 60)):
        streaming.compute_logits(checkpoint, states)
    assert not any(alive.values())
    config = checkpoint.config
    largest = max(2 * config.intermediate_size, config.num_attention_heads * config.head_dim, 2 * 256)
    assert 0 < max(most) < largest * config.hidden_size * 4 + 100 * 2 * config.hidden_size * 4


def test_only_chosen_experts_and_used_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path, SMALL | {"num_local_experts": 16})
    read: Counter[str] = Counter()
    original = Checkpoint.array

    def array(self: Checkpoint, name: str, start: int = 0, end: int | None = None) -> Any:
        read[name] += (self.tensors[name].shape[0] if end is None else end) - start
        return original(self, name, start, end)

    monkeypatch.setattr(Checkpoint, "array", array)
    streaming.compute_final_states(Checkpoint.open(folder), [[7]])
    assert read["model.layers.1.mlp.experts.down_proj_blocks"] == SMALL["num_experts_per_tok"]
    assert read["model.embed_tokens.weight"] == 1
    assert read["lm_head.weight"] == 0


def test_sequences_do_not_see_each_other(float_checkpoint: Path) -> None:
    ids = random_ids(*LENGTHS)
    alone = [ours(float_checkpoint, [one])[0] for one in ids]
    for together, single in zip(ours(float_checkpoint, ids), alone, strict=True):
        np.testing.assert_allclose(together, single, rtol=0, atol=1e-4)


def test_observed_values(variant: Path) -> None:
    """Hidden states equal transformers'; the other observed values are consistent."""
    checkpoint, ids = Checkpoint.open(variant), random_ids(50)[0]
    config, seen = checkpoint.config, dict[tuple[int, str], torch.Tensor]()
    experts: Counter[tuple[int, str]] = Counter()

    def observe(layer: int, name: str, values: torch.Tensor) -> None:
        seen[layer, name] = values.clone()
        if name.startswith("expert"):
            experts[layer, name] += len(values)

    streaming.compute_final_states(checkpoint, [ids], observe=observe)
    with torch.inference_mode():
        theirs = load_transformers(variant)(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(config.num_hidden_layers):
        before, after = seen[max(layer - 1, 0), f"hidden_states.{layer}"], seen[layer, f"hidden_states.{layer + 1}"]
        largest = float(theirs[layer].abs().max())  # a massive channel, which float32 holds to seven digits
        torch.testing.assert_close(before, theirs[layer][0], rtol=0, atol=max(1e-4, 1e-6 * largest))
        residual = seen[layer, "attention_residual"]
        torch.testing.assert_close(residual, before + seen[layer, "attention_update"])
        torch.testing.assert_close(after, residual + seen[layer, "moe_output"])
        assert seen[layer, "query"].shape == (50, config.num_attention_heads, config.head_dim)
        assert seen[layer, "key"].shape == (50, config.num_key_value_heads, config.head_dim)
        if config.window(layer) is None:
            query, key = seen[layer, "query"], seen[layer, "key"]
            shared = config.num_attention_heads // config.num_key_value_heads
            scores = torch.einsum("qhd,khd->qhk", query, key.repeat_interleave(shared, 1)) / config.head_dim**0.5
            scores.masked_fill_(torch.ones(50, 50).triu(1).bool()[:, None], -torch.inf)
            torch.testing.assert_close(seen[layer, "attention_scores_max"], scores.amax(-1))
        for name in ("expert_gate_up", "expert_hidden", "expert_output"):
            assert experts[layer, name] == 50 * config.num_experts_per_tok


def test_it_can_be_interrupted_between_layers(float_checkpoint: Path) -> None:
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streaming.compute_final_states(Checkpoint.open(float_checkpoint), [[1, 2]], progress=progress)
    assert calls == [(1, 2)]


def test_hidden_states_that_are_not_finite_are_the_checkpoints_fault(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, SMALL))
    overwrite(tmp_path, "model.layers.1.input_layernorm.weight", 0, np.nan)
    with pytest.raises(CheckpointError, match="not finite after layer 1"):
        streaming.compute_final_states(checkpoint, [[1, 2]])


@pytest.mark.parametrize("ids", [[], [[]], [[1], []], [[512]], [[-1]]])
def test_invalid_sequences_are_refused(ids: list[list[int]], float_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="ids below 512"):
        streaming.compute_final_states(Checkpoint.open(float_checkpoint), ids)
