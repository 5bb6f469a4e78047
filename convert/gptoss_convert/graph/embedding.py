"""Token ids to hidden states, float32, from a table in any scheme.

A token's row may have any magnitude: integer tables have float32 scales, and float16 rows are scaled to unit length
(gptoss_convert.row_scaling).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from gptoss_convert import row_scaling
from gptoss_convert.errors import WorkflowError
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.linear import FLOAT_TYPES, integer_weights
from gptoss_convert.graph.precision import FLOAT32, constant32, factors_spec
from gptoss_convert.weights import RecipeResult, TensorSpec, cast, cast_rows

_SOURCE = "model.embed_tokens.weight"


def embedding(g: GraphBuilder, ids: ir.Value) -> ir.Value:
    """Rows of the embedding table, float32 [batch, sequence, hidden].

    Rows of a float table are gathered first and cast afterwards, so that on the CPU only those are read from disk.
    """
    scheme, stored = g.quantisation.embedding, g.checkpoint.tensors[_SOURCE]
    rows, columns = stored.shape
    if scheme.is_integer:
        packed, scales = integer_weights(g, _SOURCE, [_SOURCE], "embedding", scheme, scales=FLOAT32)
        flat = g.op("Reshape", packed, g.ints(rows, columns * scheme.bits // 8))
        return g.op(
            "GatherBlockQuantized", flat, ids, scales, domain=MICROSOFT, bits=scheme.bits, block_size=scheme.block_size,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip
    if scheme.type == "float16":
        return _float16_rows(g, ids)
    onnx_type, numpy_type = FLOAT_TYPES[scheme.type]
    spec = TensorSpec(_SOURCE, onnx_type, (rows, columns))
    table = g.weights("embedding", str(scheme), [spec], lambda: cast(stored.array(), numpy_type), [_SOURCE])[0]
    gathered = g.op("Gather", table, ids, axis=0)
    return gathered if onnx_type == FLOAT32 else g.op("Cast", gathered, to=FLOAT32)


def embedding_by_rows(g: GraphBuilder, ids: ir.Value) -> ir.Value:
    """As :func:`embedding`, with plain operators for an integer table: rows are gathered, then scaled.

    For execution providers without GatherBlockQuantized. It takes int8 only, since no provider gathers 4-bit types.

    Raises:
        WorkflowError: the table is stored in int4.
    """
    scheme, stored = g.quantisation.embedding, g.checkpoint.tensors[_SOURCE]
    if not scheme.is_integer:
        return embedding(g, ids)
    if scheme.type != "int8":
        raise WorkflowError(f"embedding: this target has no {scheme}", remedy="Use int8, or a float type.")
    columns = stored.shape[1]
    codes, scales = integer_weights(g, _SOURCE, [_SOURCE], "embedding", scheme, scales=FLOAT32)
    gathered = g.op("Cast", g.op("Gather", codes, ids, axis=0), to=FLOAT32)  # [batch, sequence, blocks, block]
    factors = g.op("Unsqueeze", g.op("Gather", scales, ids, axis=0), g.ints(3))
    values = g.op("Mul", g.op("Sub", gathered, constant32(g, 128.0)), factors)
    return g.op("Reshape", values, g.ints(1, -1, columns))


def _float16_rows(g: GraphBuilder, ids: ir.Value) -> ir.Value:
    """Gathers float16 rows of unit length and multiplies them by their factors."""
    stored = g.checkpoint.tensors[_SOURCE]
    rows, columns = stored.shape
    specs = [TensorSpec(_SOURCE, ir.DataType.FLOAT16, (rows, columns)), factors_spec(_SOURCE, rows)]

    def make() -> RecipeResult:
        values = stored.array()
        exponents = row_scaling.compute_length_exponents(values)
        made = cast_rows(values, exponents, np.float16)
        return replace(made, arrays=[*made.arrays, row_scaling.compute_factors(exponents)])

    table, factors = g.weights("embedding", "float16", specs, make, [_SOURCE])
    gathered = g.op("Cast", g.op("Gather", table, ids, axis=0), to=FLOAT32)
    return g.op("Mul", gathered, g.op("Unsqueeze", g.op("Gather", factors, ids, axis=0), g.ints(2)))
