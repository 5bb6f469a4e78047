from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gptoss_convert.config import GptOssConfig, Yarn
from gptoss_convert.errors import CheckpointError, UnsupportedModel
from gptoss_convert.graph.rotary import compute_tables, inverse_frequencies
from gptoss_convert.nano.folder import read_config as nano_config
from gptoss_convert.synthetic import GPT_OSS_20B

PUBLISHED = dict(GPT_OSS_20B)
YARN: dict[str, Any] = PUBLISHED["rope_scaling"]
OLD_ROPE = ("rope_scaling", "rope_theta")


def read(folder: Path, raw: object) -> GptOssConfig:
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return GptOssConfig.read(folder)


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in PUBLISHED.items() if key not in keys}


def assert_refused(folder: Path, raw: object, words: str = "", error: type[CheckpointError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        read(folder, raw)
    assert str(folder / "config.json") in caught.value.message
    assert words in caught.value.message
    assert caught.value.remedy


def test_the_published_config(tmp_path: Path) -> None:
    config = read(tmp_path, PUBLISHED)
    assert (config.hidden_size, config.head_dim, config.num_local_experts, config.vocab_size) == (2880, 64, 32, 201088)
    assert config.rope == Yarn()  # whose defaults are gpt-oss's
    assert (config.eos_token_id, config.pad_token_id) == (200002, 199999)
    assert [config.window(layer) for layer in range(4)] == [128, None, 128, None]


@pytest.mark.parametrize("theta", ["inside", "beside", "absent"])
def test_rope_theta_at_either_level(theta: str, tmp_path: Path) -> None:
    raw = without(*OLD_ROPE) | {"rope_parameters": dict(YARN)}
    if theta == "inside":
        raw["rope_parameters"]["rope_theta"] = 10000.0
    if theta == "beside":
        raw["rope_theta"] = 10000
    assert read(tmp_path, raw).rope.theta == (150000 if theta == "absent" else 10000)


def test_other_spellings(tmp_path: Path) -> None:
    published = read(tmp_path, PUBLISHED)
    old = {"type" if key == "rope_type" else key: value for key, value in YARN.items()}
    assert read(tmp_path, PUBLISHED | {"rope_scaling": old}) == published
    assert read(tmp_path, without("num_experts_per_tok") | {"experts_per_token": 4}) == published
    assert read(tmp_path, PUBLISHED | {"layer_types": ["sliding_attention", "full_attention"] * 12}) == published
    assert read(tmp_path, PUBLISHED | {"eos_token_id": [200002, 200012]}) == published


@pytest.mark.parametrize("key", ["hidden_size", "num_local_experts", "head_dim", "sliding_window", "vocab_size"])
def test_required_keys(key: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, without(key), key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 2896}, "multiples of 32"),
        ({"intermediate_size": 16}, "multiples of 32"),
        ({"num_attention_heads": 60}, "num_attention_heads must be a multiple"),
        ({"head_dim": 72}, "head_dim"),
        ({"num_experts_per_tok": 33}, "33 of 32"),
        ({"num_experts_per_tok": -1}, "-1 of 32"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["linear_attention"] * 24}, "layer_types"),
        ({"layer_types": [[]] * 24}, "layer_types"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"swiglu_limit": 0}, "swiglu_limit 0"),
    ],
)
def test_dimensions_without_a_kernel(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, PUBLISHED | changes, words, UnsupportedModel)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": float("inf")},
        {"layer_types": 3},
        {"eos_token_id": "<|return|>"},
        {"rope_theta": 1},
        {"rope_theta": -5},
        {"rope_scaling": "yarn"},
        {"rope_parameters": [1]},
    ],
    ids=str,
)
def test_invalid_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_refused(tmp_path, PUBLISHED | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_type": "llama3"},
        {"factor": None},
        {"factor": 0},
        {"factor": float("nan")},
        {"beta_fast": 0.5},
        {"beta_slow": float("inf")},
        {"original_max_position_embeddings": -1},
        {"attention_factor": -1},
    ],
    ids=str,
)
def test_invalid_yarn_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_refused(tmp_path, PUBLISHED | {"rope_scaling": YARN | changes})


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable") as caught:
        GptOssConfig.read(tmp_path)
    assert caught.value.remedy


WILD = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*YARN, "rope_theta"]), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(changes={"head_dim": 1.6e16})
@given(st.dictionaries(st.sampled_from([*PUBLISHED, "rope_parameters", "layer_types"]), WILD, min_size=1, max_size=3))
def test_a_config_of_any_values_is_read_or_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with contextlib.suppress(CheckpointError):
        config = read(tmp_path, PUBLISHED | changes)
        frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
        assert np.isfinite(frequencies).all()
        assert factor > 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(theta=1e4, head_dim=64, changes={"factor": 1.0, "attention_factor": 1.25})
@given(
    theta=st.sampled_from((20.0, 1e4, 1.5e5, 5e6)),
    head_dim=st.sampled_from((32, 64, 128)),
    changes=st.fixed_dictionaries(
        {
            "factor": st.sampled_from((1.0, 1.5, 8.0, 32.0, 100.0)),
            "original_max_position_embeddings": st.integers(64, 8192),
            "beta_fast": st.floats(4, 64),
            "beta_slow": st.floats(0.5, 4),
            "truncate": st.booleans(),
        },
        optional={"attention_factor": st.floats(0.5, 2)},
    ),
)
def test_any_yarn_agrees_with_transformers(
    tmp_path: Path, theta: float, head_dim: int, changes: dict[str, Any]
) -> None:
    from transformers import GptOssConfig as HfConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    raw = PUBLISHED | {"rope_theta": theta, "head_dim": head_dim, "rope_scaling": YARN | changes}
    config = read(tmp_path, raw)
    theirs, their_factor = ROPE_INIT_FUNCTIONS["yarn"](HfConfig.from_pretrained(tmp_path), "cpu")
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
    np.testing.assert_array_max_ulp(frequencies, theirs.numpy(), maxulp=4)
    assert factor == pytest.approx(their_factor)


@pytest.mark.parametrize("raw", [PUBLISHED, nano_config()], ids=["20b", "nano"])
def test_tables_are_transformers_to_the_rounding_of_an_angle(raw: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import GptOssConfig as HfConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    config = read(tmp_path, raw)
    rotary = GptOssRotaryEmbedding(HfConfig.from_pretrained(tmp_path))
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None]
    theirs = rotary(torch.zeros(1), torch.from_numpy(positions[None, :, 0]))
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
    apart = np.abs(frequencies - rotary.inv_freq.numpy())  # a unit in the last place, of a few
    allowed = factor * (positions * apart + np.spacing(positions * frequencies) * (apart > 0)) + 3e-7
    for ours, table in zip(compute_tables(config), theirs, strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == (config.max_position_embeddings, config.head_dim // 2)
        assert (np.abs(ours - table[0].numpy()) <= allowed).all()
