"""OpenAI's own torch implementation of gpt-oss (PyPI gpt-oss, gpt_oss/torch/model.py), given our checkpoints.

Its loader reads a layout of its own, in which gpt-oss was published as ``original/``: one fused qkv, other names. This
writes that layout, so that its MXFP4 decoder is part of the oracle as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from gptoss_convert.checkpoint import Checkpoint

# For Python 3.12 and later by its metadata, which its torch implementation doesn't need.
PACKAGE = ("--ignore-requires-python", "gpt-oss==0.0.9")


def load(checkpoint: Path, folder: Path) -> Any:
    """The checkpoint as ``gpt_oss.torch.model.Transformer`` in float32; its package has to be importable.

    Args:
        checkpoint: of this project's layout, with MXFP4 experts.
        folder: empty; gets the same checkpoint in OpenAI's layout.
    """
    from gpt_oss.torch.model import Transformer

    opened = Checkpoint.open(checkpoint)
    config = opened.config
    ours = {
        **{"num_hidden_layers": config.num_hidden_layers, "num_experts": config.num_local_experts},
        **{"experts_per_token": config.num_experts_per_tok, "vocab_size": config.vocab_size},
        **{"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size},
        **{"swiglu_limit": config.swiglu_limit, "head_dim": config.head_dim},
        **{"num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads},
        **{"sliding_window": config.sliding_window, "rope_theta": config.rope.theta},
        **{"initial_context_length": config.rope.original_max_position_embeddings},
        **{"rope_scaling_factor": config.rope.factor, "rope_ntk_alpha": config.rope.beta_slow},
        **{"rope_ntk_beta": config.rope.beta_fast},
    }
    (folder / "config.json").write_text(json.dumps(ours), encoding="utf-8")
    save_file(dict(tensors(opened)), folder / "model.safetensors")
    model = Transformer.from_checkpoint(str(folder), device=torch.device("cpu")).float()
    for module in model.modules():  # what its config does not have
        if hasattr(module, "eps"):
            module.eps = config.rms_norm_eps
    for layer, block in enumerate(model.block):
        block.attn.sliding_window = config.window(layer) or 0
    return model


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by OpenAI's name."""

    def read(*names: str) -> torch.Tensor:
        stored = [checkpoint.array(name) for name in names]
        if checkpoint.tensors[names[0]].dtype == "BF16":
            return torch.cat([torch.from_numpy(one.view(np.int16)).view(torch.bfloat16) for one in stored])
        return torch.cat([torch.from_numpy(one) for one in stored])

    yield "embedding.weight", read("model.embed_tokens.weight")
    yield "norm.scale", read("model.norm.weight")
    yield "unembedding.weight", read("lm_head.weight")
    for layer in range(checkpoint.config.num_hidden_layers):
        theirs, ours = f"block.{layer}", f"model.layers.{layer}"
        yield f"{theirs}.attn.norm.scale", read(f"{ours}.input_layernorm.weight")
        yield f"{theirs}.attn.sinks", read(f"{ours}.self_attn.sinks")
        for part in ("weight", "bias"):
            yield f"{theirs}.attn.qkv.{part}", read(*(f"{ours}.self_attn.{n}_proj.{part}" for n in "qkv"))
            yield f"{theirs}.attn.out.{part}", read(f"{ours}.self_attn.o_proj.{part}")
            yield f"{theirs}.mlp.gate.{part}", read(f"{ours}.mlp.router.{part}")
        yield f"{theirs}.mlp.norm.scale", read(f"{ours}.post_attention_layernorm.weight")
        for name, source in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
            for part in ("blocks", "scales"):
                yield f"{theirs}.mlp.{name}_weight.{part}", read(f"{ours}.mlp.experts.{source}_{part}")
            yield f"{theirs}.mlp.{name}_bias", read(f"{ours}.mlp.experts.{source}_bias")


@torch.inference_mode()
def logits(model: Any, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits after every token, float32 [tokens, vocab]."""
    result: NDArray[np.float32] = model(torch.tensor(list(token_ids))).numpy()
    return result
