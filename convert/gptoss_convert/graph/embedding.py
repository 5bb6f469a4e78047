"""Token ids to hidden states, by a table in any scheme."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.errors import WorkflowError
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.linear import FLOAT_TYPES, integer_weights
from gptoss_convert.weights import TensorSpec, cast

_SOURCE = "model.embed_tokens.weight"


def embedding(g: GraphBuilder, ids: ir.Value) -> ir.Value:
    """Rows of the embedding table, [batch, sequence, hidden].

    A float table is gathered as stored and only the rows in use are cast: on the CPU it stays on disk but for those.
    """
    scheme, stored = g.quantisation.embedding, g.checkpoint.tensors[_SOURCE]
    rows, columns = stored.shape
    if scheme.is_integer:
        packed, scales = integer_weights(g, _SOURCE, [_SOURCE], "embedding", scheme)
        flat = g.op("Reshape", packed, g.ints(rows, columns * scheme.bits // 8))
        return g.op(
            "GatherBlockQuantized", flat, ids, scales, domain=MICROSOFT, bits=scheme.bits, block_size=scheme.block_size,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip
    onnx_type, numpy_type = FLOAT_TYPES[scheme.type]
    table = g.weights(
        "embedding",
        str(scheme),
        [TensorSpec(_SOURCE, onnx_type, (rows, columns))],
        lambda: cast(stored.array(), numpy_type),
        [_SOURCE],
    )[0]
    gathered = g.op("Gather", table, ids, axis=0)
    return gathered if onnx_type == g.dtype else g.op("Cast", gathered, to=g.dtype)


def embedding_by_rows(g: GraphBuilder, ids: ir.Value) -> ir.Value:
    """As :func:`embedding`, an integer table taken apart by plain operators: rows gathered, then scaled.

    For execution providers without GatherBlockQuantized; only int8, since none gathers 4-bit types.
    """
    scheme, stored = g.quantisation.embedding, g.checkpoint.tensors[_SOURCE]
    if not scheme.is_integer:
        return embedding(g, ids)
    if scheme.type != "int8":
        raise WorkflowError(f"embedding: this target has no {scheme}", remedy="Use int8, or a float type.")
    columns = stored.shape[1]
    codes, scales = integer_weights(g, _SOURCE, [_SOURCE], "embedding", scheme)
    taken = g.op("Cast", g.op("Gather", codes, ids, axis=0), to=g.dtype)  # [batch, sequence, blocks, block]
    factors = g.op("Unsqueeze", g.op("Gather", scales, ids, axis=0), g.ints(3))
    values = g.op("Mul", g.op("Sub", taken, g.constant(128.0)), factors)
    return g.op("Reshape", values, g.ints(1, -1, columns))
