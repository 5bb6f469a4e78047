"""Writes nano as an ordinary Hugging Face folder, from the compact source.

The folder has the files of a published gpt-oss checkpoint. Needs neither torch nor transformers.
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
    """Writes nano as a checkpoint folder in the layout of openai/gpt-oss-20b: configs, tokenizer, model.safetensors.

    The folder is built in a temporary sibling of ``out`` and renamed; the same source gives the same bytes.

    Raises:
        OutputExists: ``out`` exists, is not empty, and is not an earlier checkpoint that may be overwritten.
        OutputError: it cannot be written.
        CheckpointError: the compact source is damaged.
    """
    out = Path(out)
    output.require_free(out, overwrite=overwrite, marker="config.json")
    with output.temporary_sibling(out) as aside:
        made = aside / "checkpoint"
        try:
            made.mkdir()
            _write_files(made)
        except OSError as error:
            raise OutputError(
                f"{made}: {error.strerror or error}", remedy="nano needs 120 MB of free space."
            ) from error
        output.publish(made, out)
    return out


def read_config() -> dict[str, Any]:
    """nano's config.json; only dimensions differ from the published one."""
    return dict(json.loads((source_dir() / "config.json").read_text(encoding="utf-8")))


def checkpoint_tensors(compact: dict[str, NDArray[Any]], size: int) -> dict[str, NDArray[Any]]:
    """The checkpoint's tensors: the source's, with embedding and head expanded to ``size`` rows.

    A used token gets its own row; all other tokens share the last row.
    """
    full = dict(compact)
    used = full.pop("used_tokens")
    for name in _ROWS:
        rows = full[name]
        expanded = np.repeat(rows[-1:], size, axis=0)
        expanded[used] = rows[:-1]
        full[name] = expanded
    return full


def write_tokenizer(folder: Path) -> None:
    """Writes gpt-oss's tokenizer files into a checkpoint folder.

    Raises:
        OSError: they cannot be written.
    """
    tokenizer_config = {
        **_SPECIAL_TOKENS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": read_config()["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    output.write_json(folder / "tokenizer_config.json", tokenizer_config)
    output.write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
    (folder / "tokenizer.json").write_bytes(tokenizer_text().encode())
    (folder / "chat_template.jinja").write_bytes((source_dir() / "chat_template.jinja").read_bytes())


def _write_files(folder: Path) -> None:
    settings = read_config()
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
