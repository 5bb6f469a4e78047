"""Finds shape arithmetic, which onnxruntime keeps on the CPU although DirectML could run it.

Mirrors one algorithm of onnxruntime: nodes that depend only on shapes, small constants and graph inputs stay on the
CPU, where shapes already are.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import onnx_ir as ir

from gptoss_convert.placement.signatures import Types
from gptoss_convert.placement.table import Kernel

_SMALL = 100  # elements
_ON_CPU = ("Shape", "Size", "MemcpyToHost")  # DirectML's kernels leave their output on the CPU
_NEVER = ("tensor(float16)", "tensor(bfloat16)", "tensor(float8e4m3fn)", "tensor(float8e5m2)")


def find_shape_arithmetic(
    graph: ir.Graph, kernels: Mapping[ir.Node, Kernel], constants: Set[ir.Value], types: Types
) -> set[ir.Node]:
    """The nodes with a DirectML kernel that onnxruntime assigns to the CPU.

    Args:
        graph: one graph; its subgraphs are checked separately.
        kernels: the kernel of each node that has one.
        constants: values known when the session is created.
        types: the values' types; 16-bit floats are never moved to the CPU.

    Source: onnxruntime/core/framework/fallback_cpu_capability.cc (GetCpuPreferredNodes), release 1.21.0.
    """
    order = {node: index for index, node in enumerate(graph)}
    inputs = set(graph.inputs)
    on_cpu = {out for node in kernels if node.op_type in _ON_CPU for out in node.outputs if out not in constants}
    waiting = {use.node for value in on_cpu for use in value.uses() if use.node in order}
    seen: set[ir.Node] = set()
    kept: set[ir.Node] = set()
    while waiting:
        node = min(waiting, key=order.__getitem__)
        waiting.discard(node)
        if node in seen or constants >= set(node.outputs):
            continue
        seen.add(node)
        if node in kernels:
            if not all(
                _cheap(node, i, kernels[node], on_cpu, constants, inputs, types) for i in range(len(node.inputs))
            ):
                continue
            kept.add(node)
        on_cpu.update(node.outputs)
        waiting |= {use.node for value in node.outputs for use in value.uses() if use.node in order}
    return kept


def _cheap(
    node: ir.Node,
    index: int,
    kernel: Kernel,
    on_cpu: Set[ir.Value],
    constants: Set[ir.Value],
    inputs: Set[ir.Value],
    types: Types,
) -> bool:
    value = node.inputs[index]
    if value is None or types.of(value) in _NEVER:
        return False
    if value in inputs or (value in constants and _is_small(value)):
        return True
    return value in on_cpu and index not in kernel.host


def _is_small(value: ir.Value) -> bool:
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None:
        return True  # a folded value; shapes are short
    size = 1
    for dim in shape:
        size *= dim if isinstance(dim, int) else _SMALL + 1
    return size <= _SMALL
