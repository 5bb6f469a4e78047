"""Checkpoints with random weights or with activations of real sizes, and Optimum's exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.activation_profile import Profile, Shifts
from gptoss_convert.synthetic import write_checkpoint
from tests.packages import install_packages
from tests.tiers import mostly_integration

SMALL: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"sliding_window": 32, "max_position_embeddings": 1024, "eos_token_id": 1, "pad_token_id": 0},
}
# Each varies a dimension or setting that a graph could get wrong; prompts are longer than all windows.
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped heads": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64},
    "one head a group": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "many experts": {"num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 32},
    "one expert": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "five layers": {"num_hidden_layers": 5},
    "tiny window": {"sliding_window": 4},
    "all full attention": {"layer_types": ["full_attention"] * 2},
    "other limits": {"swiglu_limit": 1.0, "rms_norm_eps": 1e-3, "rope_theta": 10000},
}
# Activations as large as in real checkpoints, and larger.
PROFILES: dict[str, Profile] = {
    "massive channels": Profile(),
    "massive channels of 1e6": Profile(channels=2, value_shift=11).scale_to(1e6),
    "sharp attention": replace(Profile(), query_gain=4.0),
}
# Larger activations that change no answer; the largest value of nano's stream is 530.
SHIFTS: dict[str, Shifts] = {
    "as trained": Shifts(),
    "stream of 1e5": Shifts(stream=8),
    "stream of 4e6": Shifts(stream=13),
    "all at once": Shifts(stream=3, copies=(9,), value=10, query=5),
}
PACKAGES = (
    *("transformers==4.57.6", "optimum==2.1.0", "optimum-onnx==0.1.0"),
    *("huggingface_hub==0.36.2", "tokenizers==0.22.1"),
)


def write_variant(folder: Path, name: str, changes: Mapping[str, Any] | None = None, *, seed: int = 1) -> Path:
    """Writes one of VARIANTS or PROFILES."""
    dimensions = {**SMALL, **VARIANTS.get(name, {"num_hidden_layers": 4}), **(changes or {})}
    return write_checkpoint(folder, dimensions, seed=seed, profile=PROFILES.get(name))


ALL_VARIANTS = mostly_integration([*VARIANTS, *PROFILES], fast={"grouped heads", "massive channels"})


@pytest.fixture(scope="session", params=ALL_VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(tmp_path_factory.mktemp("variant"), request.param)


@pytest.fixture(scope="session")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float experts, as in Optimum and in fine-tunes."""
    return write_checkpoint(tmp_path_factory.mktemp("float"), SMALL, seed=2, mxfp4=False)


@pytest.fixture(scope="session")
def optimum_packages() -> Path:
    """Optimum's exporter with the transformers it requires."""
    return install_packages("optimum-oracle", *PACKAGES, alone=True)
