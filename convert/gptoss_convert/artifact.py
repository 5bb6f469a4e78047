"""From an exported model to a complete artifact folder: configs, tokenizer, reference logits, manifest.

Knows the files that onnxruntime-genai, Foundry Local and our runtime expect beside model.onnx. Writes into a folder
that its caller publishes. Knows nothing of Olive, and of the conversion only its reports.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig
from gptoss_convert.data_files import WrittenFile, read_stamp
from gptoss_convert.errors import CheckpointError, OutputError
from gptoss_convert.export import MODEL_FILE
from gptoss_convert.first_run import FirstRun
from gptoss_convert.graph.head import Logits
from gptoss_convert.output import write_json
from gptoss_convert.provenance import SourceDigests
from gptoss_convert.targets import Target
from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry, Manifest, MemoryBudget, Source, TensorGroup
from gptoss_runtime.artifact.reference_logits import REFERENCE_LOGITS
from gptoss_runtime.harmony_tokens import CALL, ENDOFTEXT, RETURN, STARTOFTEXT

# Copied unchanged; those marked True are required. A chat template may also be part of tokenizer_config.json.
TOKENIZER_FILES = {
    "tokenizer.json": True,
    "tokenizer_config.json": True,
    "special_tokens_map.json": False,
    "chat_template.jinja": False,
    "generation_config.json": False,
}
TOOLS = ("gptoss-windows", "olive-ai", "onnx-ir", "onnxruntime", "numpy", "ml-dtypes")
# harmony's turns, for hosts that fill a template instead of rendering harmony (Foundry's catalog uses this form)
PROMPT_TEMPLATE = {
    "system": "<|start|>system<|message|>{Content}<|end|>",
    "user": "<|start|>user<|message|>{Content}<|end|>",
    "assistant": "<|start|>assistant<|channel|>final<|message|>{Content}<|end|>",
    "prompt": "<|start|>user<|message|>{Content}<|end|><|start|>assistant",
}
_BUDGET_CONTEXT = 8192  # context length of the memory budget


@dataclass(frozen=True)
class Description:
    """What the manifest says of an artifact beside its files.

    Attributes:
        name: of the model.
        target: the target it was converted for.
        preset: the quantisation preset.
        logits: the positions whose logits it gives.
        groups: report by tensor group.
        weights: every external data file as it was written, by name.
        first_run: results of the first run; None if there was none, or not layer by layer.
    """

    name: str
    target: Target
    preset: str
    logits: Logits
    groups: Mapping[str, TensorGroup]
    weights: Mapping[str, WrittenFile]
    first_run: FirstRun | None = None


def complete(
    folder: Path, checkpoint: Checkpoint, description: Description, digests: SourceDigests | None = None
) -> Manifest:
    """Adds all other files to a folder that holds model.onnx and its external data.

    Args:
        folder: the folder of model.onnx.
        checkpoint: the checkpoint it was made from.
        description: the manifest's other content.
        digests: checksums of the checkpoint, if they are being computed already.

    Returns:
        The manifest, as written.

    Raises:
        CheckpointError: a tokenizer file is missing or unreadable.
        OutputError: the folder cannot be written, or a file of weights has changed since it was written.
    """
    try:
        _copy_tokenizer(checkpoint.path, folder)
        write_json(folder / "genai_config.json", genai_config(checkpoint, description.target))
        write_json(folder / "inference_model.json", {"Name": description.name, "PromptTemplate": dict(PROMPT_TEMPLATE)})
        first = description.first_run
        if first is not None:
            (folder / REFERENCE_LOGITS).write_bytes(first.reference.to_bytes())
        names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)
        files = {name: _entry(folder / name, description.weights.get(name)) for name in names}
        manifest = Manifest(
            name=description.name,
            target=description.target.name,
            provider=description.target.provider or None,
            preset=description.preset,
            logits=description.logits,
            requires=dict(description.target.requires),
            source=source(checkpoint, digests),
            groups=dict(description.groups),
            memory=memory_budget(
                checkpoint.config, description.target, sum(files[name].size for name in description.weights)
            ),
            range=None if first is None else first.range,
            tools=versions(),
            files=files,
        )
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
    except OSError as error:
        raise OutputError(f"{error.filename or folder}: {error.strerror or error}") from error
    return manifest


def _entry(file: Path, written: WrittenFile | None) -> FileEntry:
    """A file's entry; weights with an unchanged stamp are not read again."""
    if written is not None and read_stamp(file) == written.stamp:
        return FileEntry(size=written.stamp[0], sha256=written.sha256)
    entry = FileEntry.from_file(file)
    if written is not None and entry.sha256 != written.sha256:
        raise OutputError(
            f"{file}: no longer has the bytes that were written",
            remedy="Convert again, and let no other program change files in that folder.",
        )
    return entry


def genai_config(checkpoint: Checkpoint, target: Target) -> dict[str, Any]:
    """Content of genai_config.json, as onnxruntime-genai's model builder writes it for gpt-oss, with one exception.

    ``sliding_window`` is left out: with it genai drops keys that a rewind needs, and GroupQueryAttention's
    ``local_window_size`` masks without it.
    """
    config = checkpoint.config
    model = {
        **_token_ids(checkpoint),
        "context_length": config.max_position_embeddings,
        "decoder": _decoder_config(config, target),
        "type": "gptoss",
        "vocab_size": config.vocab_size,
    }
    search = {
        "do_sample": False,
        "max_length": min(config.max_position_embeddings, _BUDGET_CONTEXT),  # genai allocates the cache for this length
        "past_present_share_buffer": True,
        **target.search,
    }
    return {"model": model, "search": search}


def _decoder_config(config: GptOssConfig, target: Target) -> dict[str, Any]:
    """The section on the graph: session options, dimensions, names of inputs and outputs."""
    cache = {"key": "past_key_values.%d.key", "value": "past_key_values.%d.value"}
    return {
        "session_options": {
            "log_id": "onnxruntime-genai",
            **target.session_options,
            "provider_options": [dict(options) for options in target.provider_options],
        },
        "filename": MODEL_FILE,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            **{name: name for name in target.inputs},
            **{f"past_{part}_names": name for part, name in cache.items()},
        },
        "outputs": {
            "logits": "logits",
            **{f"present_{part}_names": name.replace("past_key_values", "present") for part, name in cache.items()},
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
    }


def _token_ids(checkpoint: Checkpoint) -> dict[str, Any]:
    """bos, eos and pad ids: the generation config's, else Harmony's, else config.json's for another vocabulary."""
    config = checkpoint.config
    end = 0 if config.eos_token_id is None else config.eos_token_id
    usual: dict[str, Any] = {"bos_token_id": end, "eos_token_id": [end], "pad_token_id": config.pad_token_id or 0}
    if config.vocab_size > CALL:
        usual = {"bos_token_id": STARTOFTEXT, "eos_token_id": [RETURN, ENDOFTEXT, CALL]}
        usual["pad_token_id"] = ENDOFTEXT
    given = _generation_config(checkpoint.path)
    return {**usual, **{name: given[name] for name in usual if given.get(name) is not None}}


def versions() -> dict[str, str]:
    """Versions of the packages that an artifact's content depends on."""
    return {tool: metadata.version(tool) for tool in TOOLS}


def source(checkpoint: Checkpoint, digests: SourceDigests | None = None) -> Source:
    """Name, revision and files of a checkpoint, for the manifest.

    Args:
        checkpoint: the checkpoint.
        digests: its checksums, if they are being computed already.

    Raises:
        CheckpointError: a file is damaged, or changed in the meantime.
    """
    name, revision = source_name(checkpoint.path)
    return Source(name=name, revision=revision, files=(digests or SourceDigests(checkpoint)).result())


def source_name(folder: Path) -> tuple[str, str | None]:
    """A checkpoint's name and revision: repository and commit in the Hugging Face cache, else the folder's name."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder.name
    return folder.name, None


def memory_budget(config: GptOssConfig, target: Target, weights: int) -> MemoryBudget:
    """Memory needed to run, computed from the dimensions.

    Args:
        config: the dimensions.
        target: the target; its float type and workspace count.
        weights: size of the external data in bytes.
    """
    itemsize = target.dtype.itemsize
    kv = int(2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize)
    context = min(config.max_position_embeddings, _BUDGET_CONTEXT)
    work = target.workspace(config, itemsize)
    peak = weights + work.fixed + (kv + work.per_position) * context
    return MemoryBudget(weights=weights, kv_per_token=kv, context=context, peak=peak, work_per_token=work.per_position)


def require_tokenizer(folder: Path) -> None:
    """Checks that a checkpoint folder has the files that an artifact's tokenizer needs.

    Raises:
        CheckpointError: a file is missing or not readable.
    """
    for name, needed in TOKENIZER_FILES.items():
        if needed and not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: missing", remedy="Download the tokenizer's files into the folder as well."
            )
        if needed:
            _json_object(folder / name)
    _generation_config(folder)


def _copy_tokenizer(checkpoint: Path, folder: Path) -> None:
    require_tokenizer(checkpoint)
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)  # not copy2: an artifact has no times and modes


def _generation_config(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    return _json_object(file) if file.is_file() else {}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error})", remedy="Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: not a JSON object", remedy="Download it again.")
    return value
