from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.config import GptOssConfig
from gptoss_convert.graph.rotary import inverse_frequencies
from gptoss_convert.nano.folder import config as nano_config
from gptoss_convert.synthetic import GPT_OSS_20B

PLAIN = {"rope_scaling": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "20b": dict(GPT_OSS_20B),
    "nano": nano_config(),
    "plain": dict(GPT_OSS_20B) | PLAIN,
}


def read(folder: Path, raw: dict[str, Any]) -> GptOssConfig:
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return GptOssConfig.read(folder)


@pytest.mark.parametrize("name", ["20b", "nano"])
def test_frequencies_are_transformers(name: str, tmp_path: Path) -> None:
    from transformers import GptOssConfig as HfConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = read(tmp_path, CONFIGS[name])
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](HfConfig.from_pretrained(tmp_path), "cpu")
    frequencies, ours = inverse_frequencies(config.rope, config.head_dim)
    np.testing.assert_array_max_ulp(frequencies, theirs.numpy(), maxulp=2)
    assert ours == pytest.approx(factor)


def test_both_spellings_are_one(tmp_path: Path) -> None:
    published = CONFIGS["20b"]
    newer = {key: value for key, value in published.items() if key not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = {**published["rope_scaling"], "rope_theta": published["rope_theta"]}
    assert read(tmp_path, newer).rope == read(tmp_path, published).rope


def test_no_scaling_is_plain_rope(tmp_path: Path) -> None:
    config = read(tmp_path, CONFIGS["plain"])
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
    assert factor == 1
    np.testing.assert_allclose(frequencies, 150000.0 ** (-np.arange(0, 64, 2) / 64), rtol=1e-6)
