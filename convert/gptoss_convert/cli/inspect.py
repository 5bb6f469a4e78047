"""``gptoss inspect``: what an artifact is made of, and whether it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_runtime.cli.options import Folder, Json

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_convert.summary import GraphSummary
    from gptoss_runtime.artifact import Artifact


def inspect(
    folder: Folder,
    verify: Annotated[bool, typer.Option(help="Check every file against the manifest's sha256.")] = True,
    json_output: Json = False,
) -> None:
    """Show an artifact's graph, weights, memory budget and source, and check its files."""
    from rich.console import Console

    from gptoss_convert.summary import summarise
    from gptoss_runtime.artifact import Artifact, verify_checksums
    from gptoss_runtime.cli.render import print_json

    artifact = Artifact.open(folder)
    verified = verify and artifact.manifest is not None  # a stock folder has nothing to check against
    if verified:
        verify_checksums(artifact.path, artifact.manifest)
    graph = summarise(artifact.path / artifact.config["model"]["decoder"].get("filename", "model.onnx"))
    console = Console(highlight=False, soft_wrap=True)
    if json_output:
        manifest = artifact.manifest.model_dump() if artifact.manifest else None
        print_json(console, {"verified": verified, "graph": graph.to_dict(), "manifest": manifest})
        return
    _show(console, artifact, graph)
    console.print(
        "files: all as the manifest lists them" if verified else "files: not checked",
        style="green" if verified else "yellow",
    )


def _show(console: Console, artifact: Artifact, graph: GraphSummary) -> None:
    manifest = artifact.manifest
    console.print(f"{artifact.name}: target {artifact.target}, {artifact.context_length:,} positions", style="bold")
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opsets.items())
    console.print(f"graph: {graph.nodes} nodes, {opsets}, IR {graph.ir_version}; {graph.cached} cached tensors")
    for operator, count in graph.operators.items():
        console.print(f"  {count:6}  {operator}")
    console.print("weights by type:")
    for kind, nbytes in graph.weight_bytes.items():
        console.print(f"  {nbytes / 1e6:12,.1f} MB  {kind}")
    if manifest is None:
        console.print("no manifest: not made by gptoss convert", style="yellow")
        return
    console.print(f"groups (preset {manifest.preset}):")
    for name, group in manifest.groups.items():
        error = "exact" if group.snr_db is None else f"{group.snr_db:.1f} dB"
        console.print(f"  {group.nbytes / 1e6:12,.1f} MB  {name:10} {group.scheme:14} {error}")
    memory = manifest.memory
    console.print(
        f"memory: {memory.peak / 1e6:,.0f} MB at {memory.context:,} positions "
        f"({memory.weights / 1e6:,.0f} MB weights, {memory.kv_per_token:,} bytes a position)"
    )
    console.print(f"source: {manifest.source.name} {manifest.source.revision or ''}".rstrip())
    parity = manifest.parity
    console.print(
        f"parity: mean KL {parity.mean_kl:.3g} nats, same top token {parity.top1:.2%} over {parity.tokens} tokens"
        if parity
        else "parity: not recorded; gptoss parity --record does"
    )
