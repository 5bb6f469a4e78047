"""The gpt-oss graph in small pieces: each module emits one piece into a builder, and a target chooses which.

    builder.py            the graph under construction: nodes, constants, weights to be made
    inputs.py             input_ids, attention_mask, key/value caches and the sequence lengths derived from them
    embedding.py          token ids to hidden states
    norms.py              RMSNorm, alone and fused with the residual addition
    linear.py             a matrix product in any scheme: float, int8, int4
    rotary.py             cos and sin of YaRN
    attention_gqa.py      attention by com.microsoft.GroupQueryAttention: rotary, cache, sinks, window in one node
    router.py             expert logits
    experts.py            what all kinds of experts share
    moe_float.py          experts by com.microsoft.MoE: float
    moe_qmoe.py           experts by com.microsoft.QMoE: native MXFP4 or integer
    moe_qmoe_cuda.py      the same, codes in the order of CUDA's kernels
    head.py               logits of the last position or of all
    decoder.py            the order of the pieces

Another target is another choice of pieces (gptoss_convert.targets), not a flag inside one.
"""
