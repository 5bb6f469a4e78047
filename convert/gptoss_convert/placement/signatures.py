"""Infers the type of every value of a graph, as onnxruntime does.

Uses operators' signatures, from onnx and from the table of contributed operators, and the attributes that set an output
type. Does not infer shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from gptoss_convert.placement.table import Signature, Table

_ATTRIBUTE = {
    "Cast": "to",
    "EyeLike": "dtype",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "QuantizeLinear": "output_dtype",
}
_FLOAT = "tensor(float)"


def type_name(dtype: ir.DataType) -> str:
    """onnx's name of a type, such as ``tensor(float16)``."""
    return f"tensor({ {'FLOAT': 'float'}.get(dtype.name, dtype.name.lower()) })"


def find_signature(table: Table, domain: str, op: str, opset: int) -> Signature | None:
    """The signature that this opset selects, or None if the operator is unknown."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return table.signatures.get(f"{domain}::{op}")
    single = {
        c.type_param_str: c.allowed_type_strs[0] for c in schema.type_constraints if len(c.allowed_type_strs) == 1
    }
    inputs = [value.type_str for value in schema.inputs]
    return Signature(schema.since_version, inputs, [value.type_str for value in schema.outputs], single)


class Types:
    """The types of values, inferred node by node in graph order.

    Args:
        table: provides contributed operators' signatures.
        opsets: of the model, by domain.
    """

    def __init__(self, table: Table, opsets: dict[str, int]) -> None:
        self._table = table
        self._opsets = opsets
        self._known: dict[ir.Value, str] = {}

    def signature(self, node: ir.Node) -> Signature | None:
        """The node's signature."""
        return find_signature(self._table, node.domain, node.op_type, self.opset(node.domain))

    def opset(self, domain: str) -> int:
        """The model's opset version of a domain; 1 if it has none."""
        return self._opsets.get(domain, 1)

    def of(self, value: ir.Value | None) -> str | None:
        """The value's type, or None if unknown."""
        if value is None:
            return None
        if value not in self._known and (dtype := value.dtype) is None and value.const_value is not None:
            self._known[value] = type_name(value.const_value.dtype)
        elif value not in self._known and dtype is not None:
            self._known[value] = type_name(dtype)
        return self._known.get(value)

    def infer(self, node: ir.Node) -> None:
        """Infers the node's output types from its inputs' types."""
        found = self.signature(node)
        bound = self._bound(node, found)
        for index, value in enumerate(node.outputs):
            if self.of(value) is not None:
                continue
            inferred = self._by_attribute(node, index)
            if inferred is None and found is not None:
                name = at(found.outputs, index)
                inferred = name if "(" in name else bound.get(name) or found.only.get(name)
            if inferred is not None:
                self._known[value] = inferred

    def _bound(self, node: ir.Node, found: Signature | None) -> dict[str, str]:
        bound: dict[str, str] = {}
        if found is not None:
            for index, value in enumerate(node.inputs):
                if (kind := self.of(value)) is not None:
                    bound.setdefault(at(found.inputs, index), kind)
        return bound

    def _by_attribute(self, node: ir.Node, index: int) -> str | None:
        attribute = node.attributes.get(_ATTRIBUTE.get(node.op_type, ""))
        if attribute is not None and attribute.as_int():
            return type_name(ir.DataType(attribute.as_int()))
        if node.op_type in ("RandomNormal", "RandomUniform"):
            return _FLOAT
        if node.op_type in ("Constant", "ConstantOfShape"):
            value = node.attributes.get("value")
            if value is not None:
                return type_name(value.as_tensor().dtype)
            integers = {"value_int", "value_ints"} & set(node.attributes)
            return "tensor(int64)" if integers else _FLOAT
        if node.op_type == "If":
            branch = node.attributes["then_branch"].as_graph()
            return self.of(branch.outputs[index])
        return None


def at(names: Sequence[str], index: int) -> str:
    """The name at an index, where the last name repeats; "" if there are no names."""
    return names[min(index, len(names) - 1)] if names else ""
