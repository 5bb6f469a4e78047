"""The compact source: which tokens have rows of their own, and the trained tensors of those alone.

Knows the source's files: ``nano.safetensors`` (rows, experts as MXFP4, the rest bf16, the ids in use) beside the
vocabulary. Reads and writes with numpy; torch only where training needs it.
"""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.nano import skills, tensors
from gptoss_convert.nano.folder import WEIGHTS
from gptoss_convert.nano.vocabulary import SIZE, tokens

if TYPE_CHECKING:
    import torch

_PROJECTIONS = ("gate_up_proj", "down_proj")


def used_tokens() -> NDArray[np.int32]:
    """Ids of the tokens with a row of their own: all that samples are made of, and the numbers below 1000."""
    rng = random.Random("used tokens")
    found: set[int] = set()
    for skill in skills.SKILLS:
        for _ in range(4000):
            where = skills.setting(rng, with_tools=skill in skills.TOOL_SKILLS)
            for held in (False, True):
                sample = skills.sample(skill, rng, where, held=held)
                found.update(sample.prompt_ids, sample.answer_ids)
    found.update(i for i, word in enumerate(tokens()) if word.isdigit())
    return np.array(sorted(found), np.int32)


def token_classes(used: NDArray[np.int32]) -> torch.Tensor:
    """int64 [vocabulary]: the class of each token id; those without a row of their own share the last class."""
    import torch

    classes = torch.full((SIZE,), len(used), dtype=torch.int64)
    classes[torch.from_numpy(used.astype(np.int64))] = torch.arange(len(used))
    return classes


def initial_rows(used: NDArray[np.int32], size: int, seed: int) -> torch.Tensor:
    """Rows [classes, size] to start from, of unit variance, that already know two things about spelling.

    Tokens that differ in a leading space or in case begin alike, which copying an argument into JSON needs; and the
    first features of a number turn with it at several periods, which adding needs. Everything else is random.
    """
    import torch

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
    import torch

    digest = hashlib.sha256(f"{seed} {text}".encode()).digest()
    return torch.randn(size, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def write_source(folder: Path, used: NDArray[np.int32], weights: dict[str, torch.Tensor]) -> None:
    """Write the trained tensors, float32 but rounded, in the checkpoint's types, and check that none changes."""
    import torch

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
    """The ids in use and the trained tensors, float32, as ``write_source`` was given them.

    Raises:
        CheckpointError: the compact source is damaged.
    """
    import torch

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
