"""Nodes that DirectML's kernels refuse, or compute wrongly, although they are registered.

Covers onnxruntime's checks of a node's attributes (``Query…`` in the table), as far as language models need them, and
faults measured on the real provider.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

Rule = Callable[[ir.Node], str | None]


def why_refused(query: str, node: ir.Node) -> str | None:
    """Why onnxruntime assigns the node to the CPU, or None.

    Args:
        query: the name of onnxruntime's check; unknown checks refuse nothing.
        node: the node.
    """
    rule = _QUERIES.get(query)
    return rule(node) if rule else None


def why_broken(node: ir.Node) -> str | None:
    """Why DirectML accepts the node and then fails or computes a wrong result, or None."""
    rule = _BREAKS.get((node.domain, node.op_type))
    return rule(node) if rule else None


def has_input(node: ir.Node, index: int) -> bool:
    """Whether an optional input is present."""
    return index < len(node.inputs) and node.inputs[index] is not None


def _has_output(node: ir.Node, index: int) -> bool:
    return index < len(node.outputs) and bool(node.outputs[index].name)


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _matmul_blocks(node: ir.Node) -> str | None:
    bits, k, block = _integer(node, "bits", 4), _integer(node, "K", 0), _integer(node, "block_size", 0)
    if bits not in (4, 8):
        return f"{bits} bits (4 and 8 are supported)"
    return f"K {k} is no multiple of the block size {block}" if not block or k % block else None


def _no_reduction(node: ir.Node) -> str | None:
    attribute = node.attributes.get("reduction")
    reduction = "none" if attribute is None else attribute.as_string()
    return None if reduction == "none" else f"reduction {reduction!r}"


def _one_output(node: ir.Node) -> str | None:
    """Measured: an output that has a name counts, used or not."""
    return "its second or third output has a name" if _has_output(node, 1) or _has_output(node, 2) else None


def _no_training(node: ir.Node) -> str | None:
    return "training_mode" if _integer(node, "training_mode", 0) else None


_QUERIES: Mapping[str, Rule] = {
    "QueryMatMulNBits": _matmul_blocks,
    "QueryScatter": _no_reduction,
    "QueryLayerNormalization": _one_output,
    "QuerySkipLayerNormalization": _one_output,
    "QueryBatchNormalization": _no_training,
}


def _matmul_inputs(node: ir.Node) -> str | None:
    extra = [name for index, name in ((4, "g_idx"), (5, "bias")) if has_input(node, index)]
    return f"a {' and a '.join(extra)} input: its kernel throws when the session is created" if extra else None


def _ignored_by_attention(node: ir.Node) -> str | None:
    softcap = node.attributes.get("softcap")
    ignored = [
        *(
            name
            for index, name in ((9, "position_ids"), (10, "attention_bias"), (11, "head_sink"))
            if has_input(node, index)
        ),
        *(["local_window_size"] if _integer(node, "local_window_size", -1) > 0 else []),
        *(["softcap"] if softcap is not None and softcap.as_float() else []),
        *(name for name in ("do_rotary", "smooth_softmax") if _integer(node, name, 0) > 0),
    ]
    return f"{', '.join(ignored)} ignored: the result is silently wrong" if ignored else None


_BREAKS: Mapping[tuple[str, str], Rule] = {
    ("com.microsoft", "MatMulNBits"): _matmul_inputs,
    ("com.microsoft", "GroupQueryAttention"): _ignored_by_attention,
}
