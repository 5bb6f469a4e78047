"""``gptoss inspect``: shows an artifact's graphs, placement, weights and source, and checks its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_runtime.cli.options import Folder, Json

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_convert.placement import GraphPlacement
    from gptoss_convert.summary import GraphSummary
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.artifact.manifest import Manifest, Range

_LOW_HEADROOM = 2.0  # binary orders of magnitude: values four times as large exceed float16


def inspect(
    folder: Folder,
    verify: Annotated[bool, typer.Option(help="Check every file against the manifest's sha256.")] = True,
    provider: Annotated[
        str | None, typer.Option(help="Predict placement for directml or cpu; by default the artifact's own provider.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Show an artifact's graphs, placement, weights, memory budget and source, and check its files.

    Also checks that the artifact contains only data, and lists what other programs would execute or render.
    """
    from rich.console import Console

    from gptoss_convert.risky_files import find_risks
    from gptoss_convert.summary import summarise
    from gptoss_runtime.artifact.folder import Artifact, check_contents
    from gptoss_runtime.cli.render import print_json

    artifact = Artifact.open(folder)
    directml = _provider(artifact, provider) == "directml"
    check_contents(artifact.path)
    verified = verify and artifact.manifest is not None  # a folder without a manifest has nothing to check against
    if verified:
        artifact = Artifact.open(folder, verify=True)
    elsewhere = find_risks(artifact.path, artifact.manifest)
    graphs = {name: summarise(artifact.path / name, directml=directml) for name in _models(artifact)}
    console = Console(highlight=False, soft_wrap=True)
    if json_output:
        manifest = artifact.manifest.model_dump() if artifact.manifest else None
        described = {name: graph.to_dict() for name, graph in graphs.items()}
        first = next(iter(described.values()))
        report = {"verified": verified, "graph": first, "graphs": described, "manifest": manifest}
        print_json(console, {**report, "range": _range(artifact.manifest), "elsewhere": elsewhere})
        return
    _show(console, artifact, graphs)
    console.print("data: gptoss executes nothing of it; configuration, graphs and JSON were checked", style="green")
    for remark in elsewhere:
        console.print(f"elsewhere: {remark}", style="yellow", markup=False)
    console.print(
        "files: all match the manifest's checksums, which are not signed" if verified else "files: not checked",
        style="green" if verified else "yellow",
    )


def _models(artifact: Artifact) -> list[str]:
    """Every .onnx file of the folder; the decoder's comes first."""
    first = str(artifact.config["model"]["decoder"].get("filename", "model.onnx"))
    others = (path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*.onnx"))
    return [first, *sorted(name for name in others if name != first)]


def _provider(artifact: Artifact, asked: str | None) -> str:
    """The provider to predict placement for: the requested one, or the one in genai_config.json."""
    from gptoss_runtime.errors import InvalidRequest

    if asked is None:
        options = artifact.config["model"]["decoder"].get("session_options") or {}
        named = {name.lower() for entry in options.get("provider_options") or [] for name in entry}
        return "directml" if "dml" in named else "cpu"
    if asked.lower() not in ("cpu", "directml"):
        raise InvalidRequest(f"cannot predict placement for {asked!r}", remedy="Use --provider directml or cpu.")
    return asked.lower()


def _show(console: Console, artifact: Artifact, graphs: dict[str, GraphSummary]) -> None:
    from gptoss_runtime.cli.render import format_range

    manifest = artifact.manifest
    console.print(f"{artifact.name}: target {artifact.target}, {artifact.context_length:,} positions", style="bold")
    for name, graph in graphs.items():
        _show_graph(console, name if len(graphs) > 1 else "graph", graph)
    if manifest is None:
        console.print("no manifest: not written by gptoss convert", style="yellow")
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
    low = _is_low(manifest.range)
    for line in format_range(manifest.range):
        console.print(line, style="yellow" if low and line.startswith("headroom") else None, markup=False)
    parity = manifest.parity
    console.print(
        f"parity: mean KL {parity.mean_kl:.3g} nats, same top token {parity.top1:.2%} over {parity.tokens} tokens"
        if parity
        else "parity: not recorded; gptoss parity --record records it"
    )


def _is_low(found: Range | None) -> bool:
    """Whether another prompt may exceed float16's range."""
    tightest = None if found is None else found.tightest
    return tightest is not None and (tightest.headroom or 0.0) < _LOW_HEADROOM


def _range(manifest: Manifest | None) -> dict[str, Any] | None:
    """The range's summary for JSON; the manifest in the same report has every layer."""
    found = None if manifest is None else manifest.range
    if found is None:
        return None
    tightest = None if found.tightest is None else found.tightest.model_dump()
    return {"widest": found.widest.model_dump(), "tightest": tightest, "low": _is_low(found)}


def _show_graph(console: Console, name: str, graph: GraphSummary) -> None:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opsets.items())
    console.print(f"{name}: {graph.nodes} nodes, {opsets}, IR {graph.ir_version}; {graph.cached} cached tensors")
    for operator, count in graph.operators.items():
        console.print(f"  {count:6}  {operator}")
    if graph.placement:
        _show_placement(console, graph.placement)
    console.print("weights by type:")
    for kind, nbytes in graph.weight_bytes.items():
        console.print(f"  {nbytes / 1e6:12,.1f} MB  {kind}")


def _show_placement(console: Console, placement: GraphPlacement) -> None:
    console.print(f"placement: {placement}", style="green" if placement.whole else "yellow")
    for group in placement.groups:
        style = {"error": "red", "cpu": "yellow", "remark": None}[group.severity]
        what = f"{group.operator}: {group.reason}: {group.detail} ({group.first or 'unnamed'})"
        console.print(f"  {group.nodes:6}  {what}", style=style)
