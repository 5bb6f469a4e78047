"""Faults of the experts: routing, swiglu, biases, ways of composing them."""

from __future__ import annotations

from tests.mutations.fault import Edit, Fault

from .attention import CONFIG, CPU, DIRECTML

DENSE = "tests/parity/test_graphs.py::test_directmls_graphs_agree_with_transformers[tiny window-dense]"
GATES = "tests/parity/test_activation_sizes.py::test_gates_beyond_their_limit"
GATES_CPU, GATES_CPU_GIVEN = f"{GATES}[cpu-by default]", f"{GATES}[cpu-given]"
GATES_SPLIT, GATES_SPLIT_GIVEN = f"{GATES}[split-by default]", f"{GATES}[split-given]"
INFINITE_GATES = "tests/parity/test_activation_sizes.py::test_gates_beyond_float16"
DESIGNS = "tests/parity/test_designs.py::test_directmls_designs_agree[many experts-prefill]"
ROUTER_TYPES = "tests/parity/test_precision.py::test_the_router_computes_in_float32"
FUSED = "gptoss_convert/graph/experts.py"
QMOE = "gptoss_convert/graph/moe_qmoe.py"
PRODUCTS = "gptoss_convert/graph/experts_matmul.py"
COMPOSED = "gptoss_convert/graph/moe_composed.py"
ROUTER = "gptoss_convert/graph/router.py"

ROUTING = (
    Fault(
        "router_bias_dropped_fused",
        "experts are chosen without the router's bias",
        (Edit(ROUTER, '"router", g.quantisation.router)', '"router", g.quantisation.router, bias=False)'),),
        (CPU,),
    ),
    Fault(
        "router_bias_dropped_composed",
        "the same in float32 routers, DirectML's and CUDA's",
        (Edit(ROUTER, 'g.op("Add", g.op("MatMul", x, weight), bias)', 'g.op("MatMul", x, weight)'),),
        (DIRECTML,),
    ),
    Fault(
        "router_in_float16",
        "float16 graphs round the router's input",
        (
            Edit(
                ROUTER,
                'return g.op("Add", g.op("MatMul", x, weight), bias)',
                'x = x if g.dtype == FLOAT32 else g.op("Cast", to_graph_type(g, x), to=FLOAT32)\n'
                '    return g.op("Add", g.op("MatMul", x, weight), bias)',
            ),
        ),
        (f"{ROUTER_TYPES}[directml-balanced-as shipped]", f"{ROUTER_TYPES}[cuda-balanced-as shipped]"),
    ),
    Fault(
        "softmax_over_all_experts_fused",
        "the chosen experts' weights do not add up to 1",
        (Edit(FUSED, '"normalize_routing_weights": 1', '"normalize_routing_weights": 0'),),
        (CPU,),
    ),
    Fault(
        "softmax_over_all_experts_composed",
        "the same in DirectML's graph",
        (
            Edit(
                COMPOSED,
                '"TopK", router_float32(g, layer, x),',
                '"TopK", g.op("Softmax", router_float32(g, layer, x), axis=-1),',
            ),
            Edit(COMPOSED, 'Routing(expert_ids, g.op("Softmax", logits, axis=-1))', "Routing(expert_ids, logits)"),
        ),
        (DIRECTML,),
    ),
    Fault(
        "one_expert_too_many_fused",
        "a token goes to k + 1 experts",
        (Edit(FUSED, "k=g.config.num_experts_per_tok", "k=g.config.num_experts_per_tok + 1"),),
        (CPU,),
    ),
    Fault(
        "one_expert_too_many_composed",
        "the same in DirectML's graph",
        (
            Edit(
                COMPOSED,
                "k = g.ints(g.config.num_experts_per_tok)",
                "k = g.ints(g.config.num_experts_per_tok + 1)",
            ),
        ),
        (DENSE,),
    ),
)

SWIGLU = (
    Fault(
        "alpha_fused",
        "the gate's sigmoid uses 1.7 instead of 1.702",
        (Edit(FUSED, '"activation_alpha": 1.702', '"activation_alpha": 1.7'),),
        (GATES_CPU,),
    ),
    Fault(
        "alpha_composed",
        "the same in DirectML's graph",
        (Edit(PRODUCTS, "_ALPHA = 1.702", "_ALPHA = 1.7"),),
        (GATES_SPLIT,),
    ),
    Fault(
        "limit_by_default",
        "SwiGLU's default limit is 6 instead of 7",
        (Edit(CONFIG, 'raw.get("swiglu_limit", 7.0)', 'raw.get("swiglu_limit", 6.0)'),),
        (GATES_CPU, GATES_SPLIT),
    ),
    Fault(
        "limit_ignored_fused",
        "SwiGLU's limit is always 7, whatever the config says",
        (Edit(FUSED, "swiglu_limit=g.config.swiglu_limit", "swiglu_limit=7.0"),),
        (GATES_CPU_GIVEN,),
    ),
    Fault(
        "limit_ignored_composed",
        "the same in DirectML's graph",
        (Edit(PRODUCTS, "limit = g.config.swiglu_limit", "limit = 7.0"),),
        (GATES_SPLIT_GIVEN,),
    ),
    Fault(
        "up_without_lower_limit",
        "up values have no lower limit",
        (Edit(PRODUCTS, "constant32(g, -limit)", "constant32(g, -1000.0)"),),
        (GATES_SPLIT,),
    ),
    Fault(
        "gate_without_lower_bound",
        "gates have no lower bound: minus infinity times a sigmoid of 0 is NaN",
        (
            Edit(
                PRODUCTS,
                'g.op("Clip", gate, constant32(g, _LOWEST_GATE), constant32(g, limit))',
                'g.op("Min", gate, constant32(g, limit))',
            ),
        ),
        (INFINITE_GATES,),
    ),
    Fault(
        "gate_and_up_swapped_fused",
        "gate and up values are swapped",
        (
            Edit(
                QMOE,
                "blocks, scales = read_mxfp4(g.checkpoint, projection_module(layer, name))",
                "blocks, scales = read_mxfp4(g.checkpoint, projection_module(layer, name))\n"
                "        if name == GATE_UP:\n"
                "            blocks, scales = (part[:, np.arange(rows) ^ 1] for part in (blocks, scales))",
            ),
        ),
        (CPU,),
    ),
    Fault(
        "gate_and_up_swapped_composed",
        "the same in DirectML's graph",
        (
            Edit(
                PRODUCTS,
                "np.arange(0, rows, 2), np.arange(1, rows, 2)",
                "np.arange(1, rows, 2), np.arange(0, rows, 2)",
            ),
        ),
        (DIRECTML,),
    ),
)

WAYS = (
    Fault(
        "down_bias_unweighted",
        "each chosen expert's bias is added without its routing weight",
        (Edit(PRODUCTS, '"MatMul", weights, experts.down.bias', '"MatMul", g.op("Sign", weights), experts.down.bias'),),
        (DIRECTML,),
    ),
    Fault(
        "biases_of_other_experts",
        "every piece of the experts uses the first piece's biases",
        (
            Edit(
                COMPOSED,
                "g.ints(start * rows), g.ints(end * rows)",
                "g.ints(0), g.ints((end - start) * rows)",
            ),
        ),
        (DESIGNS,),
    ),
    Fault(
        "grouped_is_another",
        "a conversion's first run uses the first expert's columns of down_proj for all experts",
        (
            Edit(
                COMPOSED,
                "    down = experts.down._replace(\n        codes=cut(",
                "    expert = 0\n    down = experts.down._replace(\n        codes=cut(",
            ),
        ),
        (DESIGNS,),
    ),
)

FAULTS: tuple[Fault, ...] = (*ROUTING, *SWIGLU, *WAYS)
