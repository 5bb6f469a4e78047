"""What the first Olive pass tells the second: an :class:`ExportInfo`, in a file beside the exported model.

It is a file, and Olive's model attributes hold its path only, because Olive takes every string in them that is also the
name of a file or folder in the working directory for a path, and makes it absolute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gptoss_convert.data_files import WrittenFile
from gptoss_convert.errors import OutputError, WorkflowError
from gptoss_convert.schemes import Quantisation
from gptoss_runtime.artifact.manifest import FileEntry, TensorGroup

EXPORT_INFO_FILE = "export_info.json"


class ExportInfo(BaseModel):
    """An export, as GptOssArtifact needs to know it.

    Attributes:
        checkpoint: folder of the checkpoint.
        target: name of the target.
        preset: the quantisation preset.
        logits: the positions whose logits the model gives.
        quantisation: scheme by tensor group.
        max_file_size: bytes that a file of weights may have; None: one file.
        groups: report by tensor group.
        weights: every external data file as it was written, by name.
        model: size and checksum of model.onnx.
    """

    model_config = ConfigDict(frozen=True)

    checkpoint: Path
    target: str
    preset: str
    logits: Literal["last", "all"]
    quantisation: Quantisation
    max_file_size: int | None
    groups: dict[str, TensorGroup]
    weights: dict[str, WrittenFile]
    model: FileEntry

    def save(self, folder: Path) -> Path:
        """Writes the file into a folder and returns its path.

        Raises:
            OutputError: it cannot be written.
        """
        file = folder / EXPORT_INFO_FILE
        try:
            file.write_text(self.model_dump_json(), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{file}: {error.strerror or error}") from error
        return file

    @classmethod
    def load(cls, file: Path) -> ExportInfo:
        """Reads a file that :meth:`save` wrote.

        Raises:
            WorkflowError: it is missing, or another version wrote it.
        """
        try:
            return cls.model_validate_json(file.read_text("utf-8"))
        except (OSError, ValidationError) as error:
            raise WorkflowError(
                f"{file}: not readable as GptOssExport's report ({type(error).__name__})",
                remedy="Delete Olive's cache folder and run the workflow again.",
            ) from error
