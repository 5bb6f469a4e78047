"""From the compact source to an ordinary Hugging Face folder.

Knows the files of a published gpt-oss checkpoint and what stands in each. Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert import output
from gptoss_convert.errors import OutputError
from gptoss_convert.nano import tensors
from gptoss_convert.nano.source import source_dir
from gptoss_convert.nano.vocabulary import tokenizer_text
from gptoss_runtime.harmony_tokens import CALL, ENDOFTEXT, RETURN, STARTOFTEXT

WEIGHTS = "nano.safetensors"
_ROWS = ("model.embed_tokens.weight", "lm_head.weight")
_SPECIAL_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}


def materialise(out: Path, *, overwrite: bool = False) -> Path:
    """Write nano as a checkpoint folder, as openai/gpt-oss-20b is published: configs, tokenizer, model.safetensors.

    The folder is built beside ``out`` and appears at once, whole; the same source makes the same bytes.

    Raises:
        OutputExists: ``out`` is there, is not an empty folder, and is not an earlier checkpoint to be overwritten.
        OutputError: it cannot be written.
        CheckpointError: the compact source is damaged.
    """
    out = Path(out)
    output.require_free(out, overwrite=overwrite, marker="config.json")
    with output.temporary_sibling(out) as aside:
        made = aside / "checkpoint"
        try:
            made.mkdir()
            _fill(made)
        except OSError as error:
            raise OutputError(f"{made}: {error.strerror or error}", remedy="nano needs 120 MB there.") from error
        output.publish(made, out)
    return out


def config() -> dict[str, Any]:
    """config.json; only dimensions differ from the published one."""
    return dict(json.loads((source_dir() / "config.json").read_text(encoding="utf-8")))


def checkpoint_tensors(compact: dict[str, NDArray[Any]], size: int) -> dict[str, NDArray[Any]]:
    """The checkpoint's tensors: those of the source, with embedding and head unfolded to ``size`` rows.

    A token in use has its own row; every other token has the last one, shared.
    """
    full = dict(compact)
    used = full.pop("used_tokens")
    for name in _ROWS:
        rows = full[name]
        unfolded = np.repeat(rows[-1:], size, axis=0)
        unfolded[used] = rows[:-1]
        full[name] = unfolded
    return full


def write_tokenizer(folder: Path) -> None:
    """Writes the tokenizer's files, which are gpt-oss's, into a checkpoint folder.

    Raises:
        OSError: they cannot be written.
    """
    tokenizer_config = {
        **_SPECIAL_TOKENS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config()["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    output.write_json(folder / "tokenizer_config.json", tokenizer_config)
    output.write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
    (folder / "tokenizer.json").write_bytes(tokenizer_text().encode())
    (folder / "chat_template.jinja").write_bytes((source_dir() / "chat_template.jinja").read_bytes())


def _fill(folder: Path) -> None:
    settings = config()
    generation = {
        "bos_token_id": STARTOFTEXT,
        "do_sample": True,
        "eos_token_id": [RETURN, ENDOFTEXT, CALL],
        "pad_token_id": ENDOFTEXT,
        "transformers_version": settings["transformers_version"],
    }
    output.write_json(folder / "config.json", settings)
    output.write_json(folder / "generation_config.json", generation)
    write_tokenizer(folder)
    compact = tensors.read(source_dir() / WEIGHTS)
    tensors.write(folder / "model.safetensors", checkpoint_tensors(compact, settings["vocab_size"]))
