"""The conversion as Olive passes, listed in olive_configs/package.json so that stock ``olive run`` finds them.

    GptOssExport     HfModel → ONNXModel: the graph and its weights for one target
    GptOssArtifact   ONNXModel → ONNXModel: all other files of an artifact, and a first run of the model

Knows Olive's interface and nothing of graphs. Other passes on ONNX models may run between the two; the manifest then
describes the model that they leave. Source: https://microsoft.github.io/Olive/extending-olive/new-pass.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from gptoss_convert import artifact, smoke, targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError, OutputError, WorkflowError
from gptoss_convert.export import MODEL_FILE, Export, export, extents
from gptoss_convert.export_info import ExportInfo
from gptoss_convert.first_run import FirstRun, Parts, first_run
from gptoss_convert.output import link_or_copy
from gptoss_convert.run import CURRENT, Run
from gptoss_convert.schemes import resolve
from gptoss_convert.targets import Target
from gptoss_runtime.artifact.folder import Artifact, check_contents
from gptoss_runtime.artifact.manifest import FileEntry, TensorGroup
from gptoss_runtime.errors import ArtifactError, GptOssError

_EXPORT_INFO = "gptoss_export_info"  # the model attribute with the path of the first pass's ExportInfo


@contextmanager
def _report_errors() -> Iterator[Run]:
    """The current run; an error of ours is noted in it, since Olive swallows exceptions."""
    run = CURRENT.get() or Run()
    try:
        yield run
    except GptOssError as error:
        run.error = error
        raise


class GptOssExport(Pass):
    """Builds a target's graph from a gpt-oss checkpoint, straight from safetensors."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "target": PassConfigParam(type_=str, required=True, description=f"One of {', '.join(targets.names())}."),
            "preset": PassConfigParam(
                type_=str, default_value=None, description="Quantisation preset; the target's first by default."
            ),
            "quantisation": PassConfigParam(
                type_=dict, default_value=None, description="Schemes by tensor group, in place of the preset's."
            ),
            "logits": PassConfigParam(
                type_=str, default_value="last", description="'last' position only, or 'all' to measure."
            ),
            "max_file_size": PassConfigParam(
                type_=int, default_value=None, description="Largest size of a file of weights; one file by default."
            ),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        with _report_errors() as run:
            target, logits = targets.load(restore_names(config.target)), restore_names(config.logits)
            preset = restore_names(config.preset) or target.default_preset
            checkpoint = Checkpoint.open(model.model_path)
            quantisation = resolve(target.presets, preset, restore_names(config.quantisation))
            folder = _new_folder(output_model_path)
            made = export(
                checkpoint,
                target,
                quantisation,
                folder,
                logits=logits,
                write_options=run.write_options(config.max_file_size),
                kept=run.partial.weights if run.partial else None,
            )
            info = ExportInfo(
                checkpoint=checkpoint.path,
                target=target.name,
                preset=preset,
                logits=logits,
                quantisation=quantisation,
                max_file_size=config.max_file_size,
                groups=_report_groups(made),
                weights=made.weights.files,
                model=FileEntry.from_file(made.model),
            )
            attributes = {_EXPORT_INFO: str(info.save(folder))}
            # The path of the file, not of the folder: Olive would look for a "model.onnx" in the working directory.
            return ONNXModelHandler(str(folder / MODEL_FILE), model_attributes=attributes)


class GptOssArtifact(Pass):
    """Completes an exported model to an artifact and runs it once."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "name": PassConfigParam(
                type_=str, default_value=None, description="Of the model; by default the checkpoint's and the target's."
            ),
            "check": PassConfigParam(
                type_=bool, default_value=True, description="Run the model layer by layer before it is published."
            ),
        }

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        with _report_errors() as run:
            info = _load_info(model)
            exported, folder = Path(model.model_path).parent, _new_folder(output_model_path)
            for name in (MODEL_FILE, *info.weights):
                link_or_copy(exported / name, folder / name)
            checkpoint, target = Checkpoint.open(info.checkpoint), targets.load(info.target)
            default_name = f"{artifact.source_name(checkpoint.path)[0].split('/')[-1]}-{target.name}"
            description = artifact.Description(
                name=restore_names(config.name) or default_name,
                target=target,
                preset=info.preset,
                logits=info.logits,
                groups=info.groups,
                weights=info.weights,
                first_run=_check_model(folder, checkpoint, target, info, run) if config.check else None,
            )
            artifact.complete(folder, checkpoint, description, run.digests)
            _require_loadable(folder)
            others = [str(file) for file in sorted(folder.iterdir()) if not file.name.startswith(MODEL_FILE)]
            return ONNXModelHandler(str(folder), MODEL_FILE, model_attributes={"additional_files": others})


def restore_names(setting: Any) -> Any:
    """Undoes what Olive does to a setting that is also the name of a file or folder in the working directory.

    Olive makes every such string an absolute path, also inside a dict: a folder named "cpu" turns the target "cpu" into
    "/folder/cpu".
    """
    if isinstance(setting, dict):
        return {key: restore_names(value) for key, value in setting.items()}
    if not isinstance(setting, str) or not Path(setting).is_absolute():
        return setting
    here = Path.cwd().resolve()
    return Path(setting).relative_to(here).as_posix() if Path(setting).is_relative_to(here) else setting


def _report_groups(made: Export) -> dict[str, TensorGroup]:
    """The report by tensor group, as the manifest has it."""
    return {
        name: TensorGroup(
            scheme=report.scheme,
            tensors=report.tensors,
            nbytes=report.nbytes,
            snr_db=report.snr_db and round(report.snr_db, 3),
            max_error=report.max_error,
        )
        for name, report in made.weights.groups.items()
    }


def _load_info(model: ONNXModelHandler) -> ExportInfo:
    file = (model.model_attributes or {}).get(_EXPORT_INFO)
    if file is None:
        raise WorkflowError(
            "GptOssArtifact has no model of GptOssExport before it",
            remedy="List GptOssExport first among the passes; see olive_configs/.",
        )
    return ExportInfo.load(Path(file))


def _check_model(folder: Path, checkpoint: Checkpoint, target: Target, info: ExportInfo, run: Run) -> FirstRun | None:
    """Loads the model and runs it layer by layer; one that another pass changed runs as a whole, in its own memory."""
    model = folder / MODEL_FILE
    if FileEntry.from_file(model) != info.model:
        smoke.run_once(model)
        return None
    smoke.require_loadable(model)
    where = extents(checkpoint, target, info.quantisation, info.max_file_size)
    return first_run(Parts(checkpoint, target, info.quantisation, folder, where, run.memory), run.check_progress)


def _require_loadable(folder: Path) -> None:
    """Refuses to publish an artifact that the runtime would refuse; only files of the checkpoint can cause it."""
    try:
        Artifact.open(folder)
        check_contents(folder)
    except ArtifactError as error:
        raise CheckpointError(
            f"the artifact would not load: {error.message.replace(str(folder), folder.name)}",
            remedy="Check generation_config.json and the tokenizer's files of the checkpoint.",
        ) from error


def _new_folder(output_model_path: str) -> Path:
    folder = Path(output_model_path)
    if folder.suffix == ".onnx":
        folder = folder.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}") from error
    return folder
