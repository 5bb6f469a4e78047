"""The compact source ``artifacts/nano/nano.safetensors``: the trained tensors, with embedding rows of used tokens only.

The file holds the ids of used tokens, their rows, the experts as MXFP4 and the rest as bfloat16.
"""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.nano import skills, tensors
from gptoss_convert.nano.folder import WEIGHTS
from gptoss_convert.nano.vocabulary import tokens
from gptoss_runtime.harmony_tokens import VOCAB_SIZE

_PROJECTIONS = ("gate_up_proj", "down_proj")


def collect_used_tokens() -> NDArray[np.int32]:
    """Ids of the tokens that get a row of their own: those that occur in samples, and the numbers below 1000."""
    rng = random.Random("used tokens")
    found: set[int] = set()
    for skill in skills.SKILLS:
        for _ in range(4000):
            where = skills.draw_setting(rng, with_tools=skill in skills.TOOL_SKILLS)
            for held in (False, True):
                sample = skills.draw_sample(skill, rng, where, held_out=held)
                found.update(sample.prompt_ids, sample.answer_ids)
    found.update(i for i, word in enumerate(tokens()) if word.isdigit())
    return np.array(sorted(found), np.int32)


def token_classes(used: NDArray[np.int32]) -> torch.Tensor:
    """int64 [vocabulary]: the class of each token id; tokens without a row of their own share the last class."""
    classes = torch.full((VOCAB_SIZE,), len(used), dtype=torch.int64)
    classes[torch.from_numpy(used.astype(np.int64))] = torch.arange(len(used))
    return classes


def initial_rows(used: NDArray[np.int32], size: int, seed: int) -> torch.Tensor:
    """Initial rows, float32 [classes, size], of unit variance, with two hints about spelling.

    Tokens that differ only in a leading space or in case start alike, which helps to copy an argument into JSON. The
    first features of a number are sines and cosines of it at several periods, which helps to add. The rest is random.
    """
    words = tokens()
    periods = (2, 5, 10, 20, 50, 100, 200, 1000)
    rows = torch.empty(len(used) + 1, size)
    for row, token in enumerate([*used.tolist(), -1]):
        word = words[token] if 0 <= token < len(words) else str(token).encode() + b" special"
        own, shared = (_noise(text, size, seed) for text in (repr(word), word.strip().lower().decode("latin-1")))
        rows[row] = 0.6 * own + 0.8 * shared
        if word.isdigit() and str(int(word)) == word.decode():
            angles = [2 * math.pi * int(word) / period for period in periods]
            features = [f(angle) for angle in angles for f in (math.cos, math.sin)]
            features += [int(word) / 100 - 1] * 2
            rows[row, : len(features)] = torch.tensor(features) * 1.4
    return rows


def _noise(text: str, size: int, seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed} {text}".encode()).digest()
    return torch.randn(size, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def write_source(folder: Path, used: NDArray[np.int32], weights: dict[str, torch.Tensor]) -> None:
    """Writes the trained tensors, already rounded float32, in the checkpoint's types; asserts that this is exact."""
    packed: dict[str, NDArray[Any]] = {"used_tokens": used}
    for name, weight in weights.items():
        if name.endswith(_PROJECTIONS) and ".experts." in name:
            blocks, scales = mxfp4.encode(weight.numpy())
            assert np.array_equal(mxfp4.decode(blocks, scales), weight.numpy()), name
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
        else:
            halved = weight.bfloat16()
            assert torch.equal(halved.float(), weight), name
            packed[name] = halved.view(torch.uint16).numpy()
    tensors.write(folder / "nano.new", packed)
    (folder / "nano.new").replace(folder / WEIGHTS)


def read_source(folder: Path) -> tuple[NDArray[np.int32], dict[str, torch.Tensor]]:
    """Reads the ids of used tokens and the trained tensors, float32, as :func:`write_source` was given them.

    Raises:
        CheckpointError: the compact source is damaged.
    """
    packed = tensors.read(folder / WEIGHTS)
    used = packed.pop("used_tokens").copy()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith("_blocks"):
            plain = name.removesuffix("_blocks")
            weights[plain] = torch.from_numpy(mxfp4.decode(tensor, packed[f"{plain}_scales"]))
        elif not name.endswith("_scales"):
            weights[name] = torch.from_numpy(tensor.copy()).view(torch.bfloat16).float()
    return used, weights
