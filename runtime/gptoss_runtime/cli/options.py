"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_runtime.chat.conversation import EFFORTS, Effort
from gptoss_runtime.errors import InvalidRequest

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of a model (see gptoss models list), or an artifact folder.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The artifact folder.")]
Provider = Annotated[
    str | None,
    typer.Option(
        help="Execution provider: cpu, directml, cuda or webgpu; by default the one that MODEL was converted for."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Adapter to use, by index; for directml also by LUID or part of its name.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default one per physical core.")]
ContextLength = Annotated[
    int | None, typer.Option(help="Maximum context length in tokens; a smaller one uses less memory.")
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Sample from the most likely tokens that reach this total probability.")]
TopK = Annotated[int, typer.Option(help="Sample from this many of the most likely tokens; 0 means all.")]
Seed = Annotated[int | None, typer.Option(help="Random seed, for reproducible sampling.")]
EffortOption = Annotated[str, typer.Option(help="Reasoning effort: low, medium or high.")]
Date = Annotated[bool, typer.Option(envvar="GPTOSS_DATE", show_envvar=True, help="Put today's date into the prompt.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def parse_effort(text: str) -> Effort:
    """Parses a reasoning effort, ignoring case.

    Raises:
        InvalidRequest: there is no such effort.
    """
    for effort in EFFORTS:
        if effort == text.lower():
            return effort
    raise InvalidRequest(f"unknown effort {text!r}", remedy=f"Use one of: {', '.join(EFFORTS)}.")


def locate_model(model: str, provider: str | None) -> tuple[Path, str]:
    """Returns a model's artifact folder and the execution provider to run it on.

    Raises:
        ModelNotFound: there is no such model, or it is not on this machine.
        ArtifactError: its folder is damaged or does not exist.
    """
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.models import Registry

    folder = Registry().resolve(model)
    return folder, provider or Artifact.open(folder).provider
