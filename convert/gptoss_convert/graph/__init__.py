"""The gpt-oss graph in small pieces: each module emits one piece into a builder, and a target chooses which.

    decoder.py              the order of the pieces: start here
    embedding.py            token ids to hidden states
    norms.py                RMSNorm, alone and fused with the residual addition
    attention_gqa.py        attention by com.microsoft.GroupQueryAttention: rotary, cache, sinks, window in one node
    attention_primitive.py  attention from plain operators
    attention_gains.py      powers of two that keep queries, keys and values in float16's range
    router.py               expert logits
    moe_float.py            experts by com.microsoft.MoE: float
    moe_qmoe.py             experts by com.microsoft.QMoE: native MXFP4 or integer
    moe_qmoe_cuda.py        the same, codes in the order of CUDA's kernels
    moe_composed.py         experts from plain operators, in four designs
    experts_matmul.py       the products of moe_composed.py: gate and up, SwiGLU, down, weighted sum
    head.py                 logits of the last position or of all

    builder.py              the graph under construction: nodes, constants, weights to be made
    inputs.py               input_ids, attention_mask, key/value caches and the sequence lengths derived from them
    cache_static.py         a key-value cache of fixed size, and its masks
    rotary.py               cos and sin of YaRN
    linear.py               a matrix product in any scheme: float, int8, int4
    experts.py              what all ways of emitting the experts share
    precision.py            conversions between float32 and the graph's float type
    pieces.py               the largest product that DirectML is given

Another target is another choice of pieces (gptoss_convert.targets), not a flag inside one.
"""
