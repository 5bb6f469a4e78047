"""llama.cpp's server on a gpt-oss checkpoint, as GGUF. Arguments: the checkpoint, a folder for the GGUF, a port."""

import json
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

from gptoss_convert import mxfp4
from gptoss_convert.checkpoint import Checkpoint

ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}


def write(source: Path, file: Path) -> None:
    """A gpt-oss checkpoint in llama.cpp's file format: norms and biases as float32, the rest as float16."""
    checkpoint, config = Checkpoint.open(source), json.loads((source / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(file, "gpt-oss")
    describe(writer, config)
    words(writer, source, config["vocab_size"])

    def put(name: str, values: np.ndarray) -> None:
        kind = np.float16 if values.ndim > 1 and name.endswith(".weight") and "gate_inp" not in name else np.float32
        writer.add_tensor(name, np.ascontiguousarray(values.astype(np.float32).astype(kind)))

    def copy(name: str, original: str) -> None:
        put(name, checkpoint.array(original))

    copy("token_embd.weight", "model.embed_tokens.weight")
    copy("output.weight", "lm_head.weight")
    copy("output_norm.weight", "model.norm.weight")
    for index in range(config["num_hidden_layers"]):
        block, layer = f"blk.{index}.", f"model.layers.{index}."
        copy(block + "attn_norm.weight", layer + "input_layernorm.weight")
        copy(block + "post_attention_norm.weight", layer + "post_attention_layernorm.weight")
        copy(block + "attn_sinks.weight", layer + "self_attn.sinks")
        for part in ("weight", "bias"):
            copy(f"{block}ffn_gate_inp.{part}", f"{layer}mlp.router.{part}")
            for ours, theirs in ATTENTION.items():
                copy(f"{block}{theirs}.{part}", f"{layer}self_attn.{ours}.{part}")
        experts = layer + "mlp.experts."
        for ours, theirs in {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}.items():
            blocks, scales = (checkpoint.array(f"{experts}{ours}_{part}") for part in ("blocks", "scales"))
            weights, bias = mxfp4.decode(blocks, scales), checkpoint.array(f"{experts}{ours}_bias")
            for first, name in enumerate(theirs):  # gate and up are interleaved
                put(f"{block}{name}.weight", weights[:, first :: len(theirs)])
                put(f"{block}{name}.bias", bias[:, first :: len(theirs)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, config: dict) -> None:
    """The dimensions."""
    rope = config["rope_scaling"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])


def words(writer: gguf.GGUFWriter, source: Path, size: int) -> None:
    """The vocabulary, its merges and the chat template."""
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    tokens, kinds = [f"[PAD{index}]" for index in range(size)], [gguf.TokenType.UNUSED] * size
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(199998)
    writer.add_eos_token_id(200002)
    writer.add_pad_token_id(199999)
    writer.add_chat_template((source / "chat_template.jinja").read_text("utf-8"))


file = Path(sys.argv[2]) / "nano.gguf"
write(Path(sys.argv[1]), file)
params = xllamacpp.CommonParams()
params.model.path = str(file)
params.port = int(sys.argv[3])
params.n_ctx, params.n_parallel, params.endpoint_metrics, params.warmup = 4096, 2, True, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
while True:
    time.sleep(60)
