"""Arguments that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_runtime.chat.conversation import EFFORTS, Effort
from gptoss_runtime.errors import InvalidRequest

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's name, as gptoss models lists it, or an artifact folder.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The artifact folder.")]
Provider = Annotated[
    str | None,
    typer.Option(help="cpu, directml, cuda or webgpu; by default the execution provider that MODEL was converted for."),
]
Device = Annotated[
    str | None, typer.Option(help="Which adapter: its index, and for directml its LUID or name as well.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; one a physical core by default.")]
ContextLength = Annotated[int | None, typer.Option(help="Use at most so many positions, to spend less memory.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Stop after so many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens that reach this probability.")]
TopK = Annotated[int, typer.Option(help="Sample from so many of the likeliest tokens; 0 is all.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
EffortOption = Annotated[str, typer.Option(help="How long to reason: low, medium or high.")]
Date = Annotated[bool, typer.Option(envvar="GPTOSS_DATE", show_envvar=True, help="Tell the model today's date.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def effort_of(text: str) -> Effort:
    """The effort that a user typed.

    Raises:
        InvalidRequest: there is no such effort.
    """
    for effort in EFFORTS:
        if effort == text.lower():
            return effort
    raise InvalidRequest(f"unknown effort {text!r}", remedy=f"Use one of: {', '.join(EFFORTS)}.")


def located(model: str, provider: str | None) -> tuple[Path, str]:
    """A model's artifact folder, and the execution provider to run it on.

    Raises:
        ModelNotFound: there is none of that name, or it is not on this machine.
        ArtifactError: its folder is damaged, or does not exist.
    """
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.models import Registry

    folder = Registry().resolve(model)
    return folder, provider or Artifact.open(folder).provider
