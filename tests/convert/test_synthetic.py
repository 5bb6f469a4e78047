"""Checkpoints with the activations of real ones, checked with transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert.activation_profile import Profile, Shifts
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError
from gptoss_convert.quantise import quantise
from gptoss_convert.synthetic import amplify, write_checkpoint
from tools.transformers_reference import load_transformers, transformers_logits

SMALL: dict[str, Any] = {
    **{"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"sliding_window": 8, "max_position_embeddings": 256, "eos_token_id": 1, "pad_token_id": 0},
}
IDS = [int(n) for n in np.random.default_rng(0).integers(0, 256, 40)]


def stream(model: Any) -> NDArray[np.float64]:
    """Largest value of the residual stream after each layer but the last, which transformers norms."""
    import torch

    with torch.inference_mode():
        states = model(input_ids=torch.tensor([IDS]), use_cache=False, output_hidden_states=True).hidden_states
    return np.array([float(state.abs().max()) for state in states[1:-1]])


@pytest.mark.integration
@pytest.mark.parametrize("mxfp4", [True, False], ids=["mxfp4", "float"])
def test_shifts_change_no_answer(mxfp4: bool, tmp_path: Path) -> None:
    source = load_transformers(write_checkpoint(tmp_path / "source", SMALL, mxfp4=mxfp4))
    expected, before = transformers_logits(source, IDS), stream(source)
    for number, shifts in enumerate((Shifts(stream=13), Shifts(stream=-5, value=9, query=-4))):
        model = load_transformers(amplify(tmp_path / "source", tmp_path / str(number), shifts))
        np.testing.assert_array_equal(transformers_logits(model, IDS), expected)
        np.testing.assert_array_equal(stream(model), before * 2.0**shifts.stream)


@pytest.mark.integration
def test_copies_of_the_stream_change_no_answer(tmp_path: Path) -> None:
    """Except for rounding of a norm's weight that changes by other than a power of two."""
    source = load_transformers(write_checkpoint(tmp_path / "source", SMALL, shards=3))
    model = load_transformers(amplify(tmp_path / "source", tmp_path / "copies", Shifts(copies=(8, 0))))
    np.testing.assert_allclose(transformers_logits(model, IDS), transformers_logits(source, IDS), atol=1e-4)
    np.testing.assert_allclose(stream(model), stream(source) * 256, rtol=1e-4)
    assert Checkpoint.open(tmp_path / "copies").config.hidden_size == 3 * 64


def test_a_shift_beyond_a_types_range_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", SMALL)
    for number, shifts in enumerate((Shifts(stream=300), Shifts(value=-250), Shifts(stream=-140))):
        with pytest.raises(CheckpointError, match="range"):
            amplify(tmp_path / "source", tmp_path / str(number), shifts)


@pytest.mark.parametrize("largest", [2e2, 9e4, 1e6])
def test_a_profile_grows_a_few_channels_layer_by_layer(largest: float, tmp_path: Path) -> None:
    profile = Profile().scale_to(largest)
    model = load_transformers(write_checkpoint(tmp_path / "profile", SMALL, profile=profile))
    found = stream(model)
    wanted = [profile.maximum(layer, 6) for layer in range(5)]
    assert (found[1:] > 0.5 * np.array(wanted[1:])).all()  # the first layer's own values are larger than what is added
    assert (found[1:] < 2 * np.array(wanted[1:]) + 50).all()
    assert np.abs(transformers_logits(model, IDS)).max() < 100  # and what is read of it stays ordinary


def test_a_profiles_attention_output_has_denormal_scales(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "profile", SMALL, profile=Profile(value_shift=10)))
    weights = checkpoint.array("model.layers.3.self_attn.o_proj.weight").astype(np.float32)
    scales = quantise(weights, bits=8, block=32).scales
    assert (scales[4:] < 2.0**-14).all()  # of all rows but the massive channels'
    assert (scales > 0).all()


def test_without_a_profile_weights_are_as_before(tmp_path: Path) -> None:
    """Figures in benchmarks/ were measured on these weights."""
    plain = write_checkpoint(tmp_path / "plain", SMALL, seed=1)
    checkpoint, found = Checkpoint.open(plain), hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        found.update(name.encode() + checkpoint.array(name).tobytes())
    assert found.hexdigest() == "09a1c79b59253be16482d4d126c373cc9a45543f674becbdae70a615643db128"
    assert json.loads((plain / "config.json").read_text("utf-8"))["rms_norm_eps"] == 1e-5
