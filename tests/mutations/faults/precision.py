"""Faults of float16 graphs, of norms and of heads: what overflows, and what brings it back to its size."""

from __future__ import annotations

from tests.mutations.fault import Edit, Fault

from .attention import CONFIG
from .attention import SIZES as COMMON_SIZES

SIZES = "tests/parity/test_activation_sizes.py::"
LARGE = SIZES + "test_a_stream_beyond_float16"
DIRECTML, CUDA = f"{LARGE}[400000-directml]", f"{LARGE}[400000-cuda]"
CUDA_FITS = f"{LARGE}[80000-cuda]"  # the largest stream whose biases float16 holds as they are
EPS_BY_DEFAULT, EPS_GIVEN = (
    f"{SIZES}test_a_small_stream_where_eps_matters[{which}]" for which in ("by default", "given")
)
EMBEDDINGS = SIZES + "test_embeddings_of_every_size"
TYPES = "tests/parity/test_precision.py::"
NORMS = "gptoss_convert/graph/norms.py"
PRECISION = "gptoss_convert/graph/precision.py"
LINEAR = "gptoss_convert/graph/linear.py"
EMBEDDING = "gptoss_convert/graph/embedding.py"
QMOE = "gptoss_convert/graph/moe_qmoe.py"
HEAD = "gptoss_convert/graph/head.py"

STREAM = (
    Fault(
        "stream_in_float16",
        "the residual stream passes through float16, whose maximum is 65,504",
        (
            Edit(
                NORMS,
                "residual,\n        weight,",
                'g.op("Cast", g.op("Cast", residual, to=ir.DataType.FLOAT16), to=FLOAT32),\n        weight,',
            ),
        ),
        (
            DIRECTML,
            f"{TYPES}test_no_float32_value_passes_through_float16[directml-balanced-as shipped]",
        ),
    ),
    Fault(
        "norm_in_float16",
        "the first norm squares in the graph's float type",
        (
            Edit(
                NORMS,
                'return g.op("SimplifiedLayerNormalization", x, weight, axis',
                'x = x if g.dtype == FLOAT32 else g.op("Cast", x, to=g.dtype)\n'
                '    return g.op("SimplifiedLayerNormalization", x, weight, axis',
            ),
        ),
        (f"{TYPES}test_operators_that_overflow_or_count_are_float32[directml-balanced-as shipped]",),
    ),
    Fault(
        "eps_by_default",
        "the default of eps is 1e-6 instead of 1e-5",
        (Edit(CONFIG, 'raw.get("rms_norm_eps", 1e-5)', 'raw.get("rms_norm_eps", 1e-6)'),),
        (EPS_BY_DEFAULT,),
    ),
    Fault(
        "eps_of_the_first_norm",
        "the first norm's eps is always 1e-6",
        (Edit(NORMS, "epsilon=g.config.rms_norm_eps, stash_type", "epsilon=1e-6, stash_type"),),
        (EPS_BY_DEFAULT, EPS_GIVEN),
    ),
    Fault(
        "eps_of_the_fused_norms",
        "the eps of all other norms is always 1e-6",
        (Edit(NORMS, "epsilon=g.config.rms_norm_eps,\n", "epsilon=1e-6,\n"),),
        (EPS_BY_DEFAULT, EPS_GIVEN),
    ),
)

ROWS = (
    Fault(
        "row_factors_dropped",
        "products are not multiplied by their rows' factors",
        (Edit(PRECISION, 'return g.op("Mul", to_float32(g, product), factors)', "return to_float32(g, product)"),),
        (DIRECTML, CUDA),
    ),
    Fault(
        "row_factors_squared",
        "rows' factors are applied twice",
        (
            Edit(
                PRECISION,
                'return g.op("Mul", to_float32(g, product), factors)',
                'return g.op("Mul", g.op("Mul", to_float32(g, product), factors), factors)',
            ),
        ),
        (DIRECTML, CUDA),
    ),
    Fault(
        "row_factors_on_attentions_bias",
        "o_proj's bias is multiplied by its rows' factors",
        (
            Edit(
                LINEAR,
                'g.op("Add", total, _bias(g, name, sources, FLOAT32, bias_gains))',
                'g.op("Add", total, g.op("Mul", scaling, _bias(g, name, sources, FLOAT32, bias_gains)))',
            ),
        ),
        (DIRECTML, CUDA),
    ),
    Fault(
        "qkv_bias_keeps_its_size",
        "biases of fused attention are not scaled like the rows of its weights",
        (Edit(LINEAR, "g.dtype, exponents and (lambda: compute_factors(-exponents()))", "g.dtype, None"),),
        (COMMON_SIZES,),
    ),
    Fault(
        "row_factors_on_experts_bias",
        "down_proj's bias is multiplied by its rows' factors",
        (
            Edit(
                "gptoss_convert/graph/experts_matmul.py",
                'if experts.down_factors is not None:\n        total = g.op("Mul", total, experts.down_factors)\n'
                '    return g.op("Add", total, g.op("MatMul", weights, experts.down.bias))',
                'total = g.op("Add", total, g.op("MatMul", weights, experts.down.bias))\n'
                '    return total if experts.down_factors is None else g.op("Mul", total, experts.down_factors)',
            ),
        ),
        (DIRECTML,),
    ),
    Fault(
        "mxfp4_scales_not_shifted",
        "MXFP4's scale bytes are not divided by their rows' factors",
        (Edit(QMOE, "if exponents is not None:", "if False:"),),
        (CUDA,),
    ),
    Fault(
        "qmoe_bias_not_shifted",
        "biases inside the fused experts are not divided by their rows' factors",
        (Edit(QMOE, "if exponents is None:", "if True:"),),
        (CUDA_FITS,),
    ),
    Fault(
        "embedding_factors_dropped",
        "embedding rows are not multiplied by their factors",
        (
            Edit(
                EMBEDDING,
                'return g.op("Mul", gathered, g.op("Unsqueeze", g.op("Gather", factors, ids, axis=0), g.ints(2)))',
                "return gathered",
            ),
        ),
        (f"{EMBEDDINGS}[float16]",),
    ),
    Fault(
        "embedding_scales_in_float16",
        "scales of small embedding rows underflow to 0",
        (
            Edit(
                EMBEDDING,
                'codes, scales = integer_weights(g, _SOURCE, [_SOURCE], "embedding", scheme, scales=FLOAT32)',
                'codes, scales = integer_weights(g, _SOURCE, [_SOURCE], "embedding", scheme)',
            ),
            Edit(
                EMBEDDING,
                'factors = g.op("Unsqueeze", g.op("Gather", scales, ids, axis=0), g.ints(3))',
                'factors = g.op("Unsqueeze", g.op("Cast", g.op("Gather", scales, ids, axis=0), to=FLOAT32), g.ints(3))',
            ),
        ),
        (
            f"{EMBEDDINGS}[int8]",
            f"{TYPES}test_factors_and_scales_of_embeddings_are_float32[directml-balanced-as shipped]",
        ),
    ),
)

HEADS = (
    Fault(
        "logits_of_the_first_position",
        "the next token is predicted from the prompt's first position",
        (Edit(HEAD, "x, g.ints(-1), g.ints((1 << 63) - 1), g.ints(1)", "x, g.ints(0), g.ints(1), g.ints(1)"),),
        tuple(
            f"tests/parity/test_designs.py::test_the_last_position_equals_that_of_all_logits[{n}]"
            for n in ("cpu", "directml")
        ),
    ),
    Fault(
        "pieces_of_the_head_reversed",
        "the vocabulary's pieces are in another order",
        (Edit(HEAD, '"Concat", *parts, axis=2', '"Concat", *parts[::-1], axis=2'),),
        ("tests/parity/test_designs.py::test_pieces_give_the_same_as_the_whole[prefill]",),
    ),
)

FAULTS: tuple[Fault, ...] = (*STREAM, *ROWS, *HEADS)
