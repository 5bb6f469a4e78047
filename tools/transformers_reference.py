"""A checkpoint in transformers, float32: the independent oracle for our own reference, and for nano's evaluation.

``gptoss parity`` does not use it: it needs memory for all weights as float32, 84 GB for gpt-oss-20b. Imports torch
and transformers when a checkpoint is loaded, since the fault tests import this module and rarely load one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.errors import CheckpointError


def load_transformers(folder: Path, **config_changes: Any) -> Any:
    """Loads a checkpoint as ``GptOssForCausalLM`` on the CPU: float32, eager attention, experts dequantised exactly.

    Args:
        folder: the checkpoint.
        config_changes: attributes of its config to set before the model is built.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    import torch
    from transformers import AutoConfig, GptOssForCausalLM
    from transformers.utils import logging as hf_logging
    from transformers.utils.quantization_config import Mxfp4Config

    logging: Any = hf_logging  # untyped
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns that MXFP4 has no CPU kernel, which we do not use
    try:
        config = AutoConfig.from_pretrained(folder)
        for name, value in config_changes.items():
            setattr(config, name, value)
        quantised = getattr(config, "quantization_config", None) is not None
        options: dict[str, Any] = {"quantization_config": Mxfp4Config(dequantize=True)} if quantised else {}
        options |= {"config": config, "dtype": torch.float32, "attn_implementation": "eager"}
        model: Any = GptOssForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it: {error}", remedy="Check the folder with gptoss convert."
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    return model.eval()


def transformers_logits(model: Any, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits after every token, float32 [tokens, vocab]."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0]
    result: NDArray[np.float32] = logits.float().numpy()
    return result
