"""Faults of attention: positions, windows, sinks, caches."""

from __future__ import annotations

from tests.mutations.fault import Edit, Fault

# tests/parity: a window of 4 tokens, 300 tokens, as a prompt, step by step and in pieces
CPU = "tests/parity/test_graphs.py::test_exact_graphs_agree_with_transformers[tiny window-mxfp4]"
DIRECTML = "tests/parity/test_graphs.py::test_directmls_graphs_agree_with_transformers[tiny window-split]"
LONG_CPU = "tests/parity/test_long.py::test_the_cpus_graph[in pieces]"
LONG_DIRECTML = "tests/parity/test_long.py::test_directmls_graph"
USED_CACHE = "tests/parity/test_cache.py::test_earlier_cache_contents_have_no_effect[decode]"
SIZES = "tests/parity/test_range.py::test_activation_sizes_change_no_bit[cuda lossless]"
CONFIG = "gptoss_convert/config.py"
GAINS = "gptoss_convert/graph/attention_gains.py"
GQA = "gptoss_convert/graph/attention_gqa.py"
PRIMITIVE = "gptoss_convert/graph/attention_primitive.py"
CACHE = "gptoss_convert/graph/cache_static.py"
ROTARY = "gptoss_convert/graph/rotary.py"

POSITIONS = (
    Fault(
        "rope_table_frozen",
        "positions beyond 2,048 are rotated like position 2,048",
        (
            Edit(
                ROTARY,
                "angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None]",
                "angles = np.minimum(np.arange(config.max_position_embeddings, dtype=np.float32), 2048)[:, None]",
            ),
        ),
        (LONG_CPU,),
    ),
    Fault(
        "rope_positions_frozen",
        "DirectML's graph rotates positions beyond 2,048 like position 2,048",
        (
            Edit(
                PRIMITIVE,
                '"RotaryEmbedding", query_key, position_ids, cos',
                '"RotaryEmbedding", query_key, g.op("Min", position_ids, g.ints(2048)), cos',
            ),
        ),
        (LONG_DIRECTML,),
    ),
    Fault(
        "positions_in_float16",
        "positions are compared in float16, which is exact up to 2,048",
        (
            Edit(
                CACHE,
                'return g.op("Cast", value, to=FLOAT32)',
                'return g.op("Cast", g.op("Cast", value, to=ir.DataType.FLOAT16), to=FLOAT32)',
            ),
        ),
        (LONG_DIRECTML,),
    ),
    Fault(
        "rope_interleaved_fused",
        "rotated pairs are neighbours instead of the two halves of a head",
        (Edit(GQA, "rotary_interleaved=0", "rotary_interleaved=1"),),
        (CPU,),
    ),
    Fault(
        "rope_interleaved_composed",
        "the same in DirectML's graph",
        (Edit(PRIMITIVE, "num_heads=heads + kv_heads\n", "num_heads=heads + kv_heads, interleaved=1\n"),),
        (DIRECTML,),
    ),
    Fault(
        "yarn_mscale_dropped",
        "cos and sin are not scaled by YaRN's attention factor",
        (Edit(ROTARY, "0.1 * math.log(yarn.factor) + 1.0", "1.0"),),
        (CPU,),
    ),
    Fault(
        "yarn_truncated",
        "the ramp's bounds are rounded to whole dimensions despite truncate: false",
        (Edit(ROTARY, "if yarn.truncate:", "if True:"),),
        (CPU,),
    ),
    Fault(
        "yarn_betas_swapped",
        "fast frequencies are interpolated and slow ones kept",
        (
            Edit(
                ROTARY,
                "dimension(yarn.beta_fast), dimension(yarn.beta_slow)",
                "dimension(yarn.beta_slow), dimension(yarn.beta_fast)",
            ),
        ),
        (CPU,),
    ),
)

WINDOWS = (
    Fault(
        "window_one_wider",
        "sliding attention attends to one token too many",
        (Edit(CONFIG, "return self.sliding_window if", "return self.sliding_window + 1 if"),),
        (CPU, DIRECTML),
    ),
    Fault(
        "window_one_narrower_fused",
        "sliding attention attends to one token too few",
        (Edit(GQA, "config.window(layer) or -1", "(config.window(layer) or 0) - 1"),),
        (CPU,),
    ),
    Fault(
        "window_one_narrower_composed",
        "the same in DirectML's graph",
        (Edit(CACHE, "0.5 - window", "1.5 - window"),),
        (DIRECTML,),
    ),
    Fault(
        "window_on_odd_layers",
        "layers with full attention have the window, and the other layers have none",
        (Edit(CONFIG, '[layer] == "sliding_attention"', '[layer] != "sliding_attention"'),),
        (CPU, DIRECTML),
    ),
    Fault(
        "full_attention_windowed_fused",
        "full attention ends after 4,096 tokens",
        (Edit(GQA, "config.window(layer) or -1", "config.window(layer) or 4096"),),
        (LONG_CPU,),
    ),
    Fault(
        "full_attention_windowed_composed",
        "the same in DirectML's graph",
        (
            Edit(CACHE, "if window is not None:", "if True:"),
            Edit(CACHE, "0.5 - window", "0.5 - (window or 4096)"),
        ),
        (LONG_DIRECTML,),
    ),
    Fault(
        "unseen_slots_shown",
        "the branches of the mask are swapped: visible slots are masked, others are not",
        (
            Edit(
                PRIMITIVE,
                "slots.seen[g.config.window(layer)], scores, g.constant(_MASKED)",
                "slots.seen[g.config.window(layer)], g.constant(_MASKED), scores",
            ),
        ),
        (DIRECTML,),
    ),
)

SCORES = (
    Fault(
        "sink_sign_fused",
        "sinks have the wrong sign",
        (Edit(GQA, "cos, sin, None, None, sinks)", 'cos, sin, None, None, g.op("Neg", sinks))'),),
        (CPU,),
    ),
    Fault(
        "sink_sign_composed",
        "the same in DirectML's graph",
        (Edit(PRIMITIVE, '"Reshape", sinks, g.ints', '"Reshape", g.op("Neg", sinks), g.ints'),),
        (DIRECTML,),
    ),
    Fault(
        "query_scale_squared",
        "queries are divided by the head dimension instead of its square root",
        (Edit(GQA, "scale=config.head_dim**-0.5", "scale=config.head_dim**-1.0"),),
        (CPU,),
    ),
    Fault(
        "query_scale_dropped",
        "DirectML's graph does not scale queries",
        (Edit(GAINS, "head_dim**-0.5", "head_dim**0.0"),),
        (DIRECTML,),
    ),
    Fault(
        "query_scale_doubled",
        "DirectML's graph scales queries twice",
        (Edit(GAINS, "head_dim**-0.5", "head_dim**-1.0"),),
        (DIRECTML,),
    ),
    Fault(
        "query_scale_not_on_biases",
        "biases of DirectML's queries are not scaled",
        (Edit(PRIMITIVE, "gains=gains, bias_gains=gains", "gains=gains"),),
        (DIRECTML,),
    ),
    Fault(
        "values_size_not_taken_back",
        "o_proj does not multiply by the power of two that values are divided by",
        (Edit(GAINS, "np.ldexp(1.0, value_exponent(g.checkpoint, layer))", "1.0"),),
        (SIZES,),
    ),
    Fault(
        "keys_keep_their_size",
        "keys are not multiplied by what queries are divided by",
        (Edit(GAINS, "[query, -query, value]", "[query, 0, value]"),),
        (SIZES,),
    ),
    Fault(
        "heads_of_other_groups",
        "query heads use the key-value heads of other groups",
        (Edit(PRIMITIVE, "split, perm=[0, 2, 3, 1, 4]", "split, perm=[0, 3, 2, 1, 4]"),),
        (DIRECTML,),
    ),
)

CACHES = (
    Fault(
        "cache_swapped_fused",
        "the cache stores keys as values and values as keys",
        (Edit(GQA, "inputs.present(g, layer, key, value)", "inputs.present(g, layer, value, key)"),),
        (CPU,),
    ),
    Fault(
        "cache_lost_fused",
        "the keys of earlier pieces are zeros",
        (
            Edit(
                GQA,
                "inputs.present(g, layer, key, value)",
                'inputs.present(g, layer, g.op("Mul", key, g.constant(0.0)), value)',
            ),
        ),
        (CPU,),
    ),
    Fault(
        "cache_stale_composed",
        "a step returns its input cache unchanged",
        (Edit(CACHE, "g.output(present, f", 'g.output(g.op("Identity", past), f'),),
        (DIRECTML,),
    ),
    Fault(
        "cache_never_written",
        "no slot of the cache is ever written",
        (Edit(CACHE, '"Less", written, constant32(g, 0.5)', '"Less", written, constant32(g, 1.5)'),),
        (DIRECTML,),
    ),
    Fault(
        "cache_placed_one_later",
        "a token is written to the slot after its own",
        (Edit(CACHE, 'g.op("Abs", ahead)', 'g.op("Abs", g.op("Sub", ahead, constant32(g, 1)))'),),
        (DIRECTML,),
    ),
    Fault(
        "sink_slot_keeps_its_value",
        "the sink slot's earlier contents are added to every token's values",
        (
            Edit(
                CACHE,
                'g.op("Add", g.op("ReduceMax", here, g.ints(1), keepdims=0), sink)',
                'g.op("ReduceMax", here, g.ints(1), keepdims=0)',
            ),
        ),
        (USED_CACHE,),
    ),
)

FAULTS: tuple[Fault, ...] = (*POSITIONS, *WINDOWS, *SCORES, *CACHES)
