"""The parts of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import WorkflowError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import Composition, Layer
from gptoss_convert.graph.embedding import embedding
from gptoss_convert.graph.head import HEADS, Head, Logits
from gptoss_convert.schemes import Group, Quantisation, SchemeType

_INT8 = {"type": "int8", "accuracy_level": 4}
_INT4 = {"type": "int4", "accuracy_level": 4}
# Schemes of the dense weights on the CPU, by preset; a target adds its experts.
CPU_DENSE: Mapping[str, Mapping[Group, Any]] = {
    "balanced": {"embedding": "bfloat16", "attention": _INT8, "router": "float32", "lm_head": _INT8},
    "smallest": {"embedding": "bfloat16", "attention": _INT4, "router": "float32", "lm_head": _INT4},
    "lossless": {"embedding": "bfloat16", "attention": "float32", "router": "float32", "lm_head": "float32"},
}


def compose_from(
    attention: Callable[[GraphBuilder], Layer],
    experts: Mapping[SchemeType, Layer],
    embed: Callable[[GraphBuilder, ir.Value], ir.Value] = embedding,
    heads: Mapping[Logits, Head] = HEADS,
) -> Callable[[Quantisation, Logits], Composition]:
    """Makes a target's ``compose`` from the pieces it has.

    Args:
        attention: emits attention.
        experts: the piece that emits the experts, by scheme.
        embed: emits the embedding.
        heads: the piece that emits the logits, by the wanted positions.

    Returns:
        A function that picks the pieces; it raises WorkflowError if there is no piece for the experts or logits.
    """

    def compose(quantisation: Quantisation, logits: Logits) -> Composition:
        kind = quantisation.experts.type
        if kind not in experts:
            raise WorkflowError(f"experts: this target has no {kind}", remedy=f"It has: {', '.join(experts)}.")
        if logits not in heads:
            raise WorkflowError(f"logits: {logits!r}", remedy=f"Use {' or '.join(heads)}.")
        return Composition(attention, experts[kind], heads[logits], embed)

    return compose


@dataclass(frozen=True)
class Workspace:
    """Bytes of activations while one piece of a prompt is computed.

    Attributes:
        fixed: bytes that do not depend on the context.
        per_position: bytes for each position of the context.
    """

    fixed: int
    per_position: int = 0


_PIECE = 128  # tokens of a prompt that are computed at a time


def plain_workspace(config: GptOssConfig, itemsize: float) -> Workspace:
    """Workspace of targets with fused kernels: hidden states of the chosen experts, and the logits."""
    widest = config.num_experts_per_tok * 2 * config.intermediate_size + 4 * config.hidden_size
    return Workspace(int((_PIECE * widest + config.vocab_size) * itemsize))


@dataclass(frozen=True)
class Target:
    """An execution provider and the graph for it.

    Attributes:
        name: as given to ``--target``; unless ``provider`` is set, it begins with the provider's: "cpu-int4".
        summary: a line for error messages and the docs.
        dtype: float type of activations and caches.
        opset: ai.onnx opset of the model.
        ir_version: ONNX IR version of the model.
        presets: quantisation presets by name; the first is the default.
        compose: picks the pieces, given the quantisation and the positions of the logits.
        requires: packages the artifact needs to run, with version specifiers.
        provider: the execution provider; empty: the one that the name begins with. ``gptoss_runtime.providers`` has
            what depends on it: the kind of device, the order of preference, who else runs its artifacts.
        provider_options: genai_config's ``provider_options``; empty for the CPU.
        session_options: further session options for genai_config.
        inputs: graph inputs beside those of every target, as genai_config names them.
        search: further search options for genai_config.
        workspace: bytes of activations, given the dimensions and the bytes of a float.
        runs_on_cpu: whether the CPU's kernels read its weights.
        on_cpu: as ``compose``, with pieces that run a prompt quickly on the CPU, for the first run of a conversion: the
            same computation, and if ``runs_on_cpu`` with the same weights. ``None``: ``compose`` itself.
    """

    name: str
    summary: str
    dtype: ir.DataType
    opset: int
    ir_version: int
    presets: Mapping[str, Mapping[Group, Any]]
    compose: Callable[[Quantisation, Logits], Composition]
    requires: Mapping[str, str]
    provider: str = ""
    provider_options: Sequence[Mapping[str, Any]] = ()
    session_options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    workspace: Callable[[GptOssConfig, float], Workspace] = plain_workspace
    runs_on_cpu: bool = True
    on_cpu: Callable[[Quantisation, Logits], Composition] | None = None

    @property
    def default_preset(self) -> str:
        """The preset that is used if none is named."""
        return next(iter(self.presets))
