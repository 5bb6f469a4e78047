"""``gptoss nano``: writes the embedded checkpoint as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_convert.cli.common import Cost, Overwrite, folder_size
from gptoss_runtime.cli.options import Json


def nano(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint's folder.")],
    overwrite: Overwrite = False,
    json_output: Json = False,
) -> None:
    """Write nano, a trained gpt-oss of a few megabytes, as an ordinary Hugging Face folder."""
    from rich.console import Console

    from gptoss_convert.nano import materialise
    from gptoss_runtime.cli.render import print_json

    cost, console = Cost(), Console(highlight=False, soft_wrap=True)
    materialise(out, overwrite=overwrite)
    if json_output:
        print_json(console, cost.report(out))
        return
    console.print(f"nano: {folder_size(out) / 1e6:,.0f} MB in {out} ({cost})")
    console.print(f"Next: gptoss convert {out} -o DIR")
