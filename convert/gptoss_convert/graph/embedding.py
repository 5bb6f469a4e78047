"""Token ids to hidden states, by a table in any scheme."""

from __future__ import annotations

import onnx_ir as ir

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
        packed, scales = integer_weights(g, _SOURCE, (rows, columns), stored.array, "embedding", scheme)
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
    )[0]
    gathered = g.op("Gather", table, ids, axis=0)
    return gathered if onnx_type == g.dtype else g.op("Cast", gathered, to=g.dtype)
