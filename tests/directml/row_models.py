"""Builds models for the rows of DirectML's table: a node of the operator with valid inputs, for each of its types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from gptoss_convert.placement.signatures import at, find_signature
from gptoss_convert.placement.table import Kernel, load_table

TABLE = load_table()

# Not worth a template.
UNTRIED = ("ConcatFromSequence", "EmbedLayerNormalization", "FusedMatMulActivation", "QAttention", "QLinearConcat")
IMAGE, FILTER = (1, 4, 8, 8), (4, 4, 3, 3)
POOL = {"kernel_shape": [2, 2]}
# The inputs of operators that do not accept the default, which is inputs of shape (2, 4): a tuple is the shape of a
# graph input, a list a constant ([[x]] a scalar), a dict the attributes, a number the number of outputs.
SPECIAL: dict[str, list[Any]] = {
    **{f"ArgM{end}": [(2, 4)] for end in ("ax", "in")},
    **{name: [IMAGE, POOL] for name in ("AveragePool", "MaxPool", "LpPool")},
    **{name: [IMAGE] for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MeanVarianceNormalization")},
    **{name: [(2, 4)] for name in ("Dropout", "Cast", "Clip", "Identity", "Flatten", "NonZero", "Softmax", "Trilu")},
    **{name: [(2, 4)] for name in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1")},
    **{name: [(2, 4)] for name in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")},
    "Attention": [(1, 2, 8), (8, 24), (24,), {"num_heads": 2}],
    "BatchNormalization": [IMAGE, (4,), (4,), (4,), (4,)],
    "BitShift": [(2, 4), (2, 4), {"direction": "LEFT"}],
    "CastLike": [(2, 4), (2, 4)],
    "Col2Im": [(1, 16, 9), [4, 4], [2, 2]],
    "Concat": [(2, 4), (2, 4), {"axis": 0}],
    "ConstantOfShape": [(2,)],
    "Conv": [IMAGE, FILTER],
    "ConvInteger": [IMAGE, FILTER],
    "ConvTranspose": [IMAGE, FILTER],
    "CumSum": [(2, 4), [[0]]],
    "DFT": [(1, 4, 1)],
    "DepthToSpace": [IMAGE, {"blocksize": 2}],
    "DequantizeLinear": [(2, 4), ()],
    "DynamicQuantizeLinear": [(2, 4), 3],
    "DynamicQuantizeMatMul": [(2, 4), (4, 2), (), ()],
    "Einsum": [(2, 4), (4, 2), {"equation": "ij,jk->ik"}],
    "Expand": [(1, 4), [2, 4]],
    "Gather": [(4, 4), (2,)],
    "GatherElements": [(2, 4), (2, 4)],
    "GatherND": [(2, 4), (1, 2)],
    "Gemm": [(2, 4), (4, 2), (2,)],
    "GridSample": [IMAGE, (1, 4, 4, 2)],
    "InstanceNormalization": [IMAGE, (4,), (4,)],
    "LRN": [IMAGE, {"size": 3}],
    "LayerNormalization": [(2, 4), (4,)],
    "SimplifiedLayerNormalization": [(2, 4), (4,)],
    "MatMul": [(2, 4), (4, 2)],
    "MatMulInteger": [(2, 4), (4, 2)],
    "MaxRoiPool": [IMAGE, (1, 5), {"pooled_shape": [2, 2]}],
    "MaxUnpool": [(1, 1, 2, 2), (1, 1, 2, 2), POOL],
    "NhwcConv": [(1, 8, 8, 4), (4, 3, 3, 4)],
    "OneHot": [(2,), [[4]], (2,)],
    "QLinearConv": [IMAGE, (), (), FILTER, (), (), (), ()],
    "QLinearMatMul": [(2, 4), (), (), (4, 2), (), (), (), ()],
    "QuantizeLinear": [(2, 4), (), ()],
    "Range": [(), (), ()],
    "ReverseSequence": [(4, 2), (2,)],
    "RoiAlign": [IMAGE, (1, 4), (1,)],
    "ScatterElements": [(2, 4), (2, 4), (2, 4)],
    "ScatterND": [(2, 4), (1, 1), (1, 4)],
    "SpaceToDepth": [IMAGE, {"blocksize": 2}],
    "Squeeze": [(1, 4)],
    "Tile": [(2, 4), [2, 2]],
    "Where": [(2, 4), (2, 4), (2, 4)],
    "Hardmax": [(2, 4)],
    "BiasAdd": [(1, 4, 4), (4,), (1, 4, 4)],
    "BiasGelu": [(2, 4), (4,)],
    "BiasSplitGelu": [(1, 4, 8), (8,)],
    "FastGelu": [(2, 4)],
    "FusedMatMul": [(2, 4), (4, 2)],
    "GRU": [(2, 1, 4), (1, 12, 4), (1, 12, 4), {"hidden_size": 4}],
    "GroupNorm": [(1, 8, 8, 4), (4,), (4,), {"groups": 2, "activation": 0, "channels_last": 1}],
    "LSTM": [(2, 1, 4), (1, 16, 4), (1, 16, 4), {"hidden_size": 4}],
    "MatMulIntegerToFloat": [(2, 4), (4, 2), (), ()],
    "MatMulNBits": [(1, 2, 32), (8, 1, 16), (8,), {"K": 32, "N": 8, "bits": 4, "block_size": 32}],
    "MultiHeadAttention": [(1, 2, 8), (1, 2, 8), (1, 2, 8), {"num_heads": 2}],
    "GroupQueryAttention": [
        *((1, 1, 16), (1, 1, 16), (1, 1, 16), (1, 2, 4, 8), (1, 2, 4, 8), (1,), [[4]]),
        *({"num_heads": 2, "kv_num_heads": 2}, 3),
    ],
    "QLinearAdd": [(2, 4), (), (), (2, 4), (), (), (), ()],
    "QLinearAveragePool": [IMAGE, (), (), (), (), POOL],
    "QLinearGlobalAveragePool": [IMAGE, (), (), (), ()],
    "QLinearSigmoid": [(2, 4), (), (), (), ()],
    "RNN": [(2, 1, 4), (1, 4, 4), (1, 4, 4), {"hidden_size": 4}],
    "RotaryEmbedding": [(1, 2, 2, 8), (1, 2), (4, 4), (4, 4)],
    "SkipLayerNormalization": [(1, 2, 4), (1, 2, 4), (4,)],
    "SkipSimplifiedLayerNormalization": [(1, 2, 4), (1, 2, 4), (4,)],
}


def inputs(op: str, since: int) -> list[Any]:
    """The operator's entry in SPECIAL, or what an older version requires instead."""
    axes, new = {"axes": [0]}, since >= 13
    versioned: dict[str, list[Any]] = {
        "Slice": [(2, 4), [0], [1]] if since >= 10 else [(2, 4), {"starts": [0], "ends": [1]}],
        "Pad": [(2, 4), [0, 1, 0, 1]] if since >= 11 else [(2, 4), {"pads": [0, 1, 0, 1]}],
        "TopK": [(2, 4), [2], 2] if since >= 10 else [(2, 4), {"k": 2}, 2],
        "Unsqueeze": [(2, 4), [0]] if new else [(2, 4), axes],
        "Split": [(2, 4), {"axis": 0, **({"num_outputs": 2} if since >= 18 else {})}, 2],
        "Reshape": [(2, 4), [4, 2]],
        "Resize": [IMAGE, [], [1.0, 1.0, 2.0, 2.0]] if since >= 11 else [IMAGE, [1.0, 1.0, 2.0, 2.0]],
        "Upsample": [IMAGE, [1.0, 1.0, 2.0, 2.0]] if since >= 9 else [IMAGE, {"scales": [1.0, 1.0, 2.0, 2.0]}],
        "Scatter": [(2, 4), (2, 4), (2, 4)],
    }
    return versioned.get(op) or SPECIAL.get(op) or []


def model(row: Kernel, opset: int, choices: list[dict[str, str]]) -> onnx.ModelProto:
    """A model with one node of the row's operator for each choice of types by constraint."""
    known = find_signature(TABLE, row.domain, row.op, opset if row.domain == "" else 1)
    assert known is not None
    spec = inputs(row.op, known.since)
    if not any(isinstance(item, tuple | list) for item in spec):
        spec = [*([(2, 4)] * len(known.inputs)), *spec]
    attributes = {key: value for item in spec if isinstance(item, dict) for key, value in item.items()}
    count = next((item for item in spec if isinstance(item, int)), 1)
    nodes, graph_inputs, constants, outputs = [], [], [], []
    for number, types in enumerate(choices):
        names = []
        for index, item in enumerate(each for each in spec if isinstance(each, tuple | list)):
            label = at(known.inputs, index)
            kind = element(
                types.get(label) or (label if "(" in label else preferred(allowed(row, opset).get(label, [])))
            )
            name = f"n{number}_{index}"
            names.append(name)
            if isinstance(item, tuple):
                graph_inputs.append(helper.make_tensor_value_info(name, kind, item))
            else:
                values = item[0] if item and isinstance(item[0], list) and len(item[0]) == 1 else item
                shape = [] if values is not item else [len(item)]
                constants.append(helper.make_tensor(name, kind, shape, values))
        made = [f"n{number}_out{index}" for index in range(count)]
        extra = {"to": element(types["T2"])} if row.op == "Cast" else {}
        if row.op == "ConstantOfShape":
            extra = {"value": helper.make_tensor("value", element(types["T2"]), [1], [1])}
        if row.op == "EyeLike":
            extra = {"dtype": element(types["T2"])}
        nodes.append(helper.make_node(row.op, names, made, domain=row.domain, **attributes, **extra))
        outputs += [onnx.ValueInfoProto(name=name) for name in made]
    graph = helper.make_graph(nodes, "row", graph_inputs, outputs, constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def element(kind: str) -> int:
    """onnx's number for a type such as ``tensor(float16)``."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return int(onnx.TensorProto.DataType.Value(name.upper()))


def allowed(row: Kernel, opset: int) -> dict[str, list[str]]:
    """The types that an operator's schema allows, by constraint; empty if onnx does not have the schema."""
    if f"{row.domain}::{row.op}" in TABLE.signatures and not onnx.defs.has(row.op, opset, row.domain):
        return {}
    schema = onnx.defs.get_schema(row.op, opset, row.domain)
    return {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}


def choices(row: Kernel, opset: int) -> list[dict[str, str]]:
    """Choices that use each type of each constraint once, with the preferred type for the other constraints."""
    own = allowed(row, opset)
    if row.op == "QuantizeLinear" and row.domain:  # registered for more types than its signature allows
        own = {"T1": ["tensor(float)", "tensor(float16)"]}
    tensors = {
        name: [kind for kind in kinds if kind.startswith("tensor(") and kind in own.get(name, kinds)]
        for name, kinds in row.types.items()
    }
    if not all(tensors.values()):  # registered for no type that the schema allows
        return []
    if row.op == "BatchNormalization":  # requires one type for all
        return [dict.fromkeys(tensors, kind) | {"U": kind, "T1": kind, "T2": kind} for kind in tensors["T"]]
    first = {name: preferred(kinds) for name, kinds in tensors.items()}
    each = [{**first, name: kind} for name, kinds in tensors.items() for kind in kinds]
    return list({json.dumps(choice, sort_keys=True): choice for choice in each}.values())


def preferred(kinds: Sequence[str]) -> str:
    for kind in ("float", "int64", "bool", "uint8", "int32"):
        if f"tensor({kind})" in kinds or not kinds:
            return f"tensor({kind})"
    return kinds[0]


def reachable(row: Kernel) -> int | None:
    """The opset that selects exactly this row; None: too old for onnxruntime, deprecated, or made by fusions only."""
    if row.domain == "com.microsoft.dml" or row.op.startswith(("Sequence", "Optional", "Memcpy", "If")):
        return None
    if row.op in UNTRIED:
        return None
    opset = max(7, row.since) if row.domain == "" else 21
    if row.op in ("Scatter", "Upsample") and opset > 9:
        return None
    found = find_signature(TABLE, row.domain, row.op, opset)
    return opset if found is not None and found.since == row.since else None
