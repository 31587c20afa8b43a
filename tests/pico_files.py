"""Write pico models to disk as users have them: a folder, a sharded folder, a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pico import pico_model, pico_tokenizer


def save_pico(folder: Path, family: str = "llama", *, model: Any = None, **kwargs: Any) -> Path:
    """Save a pico model with its tokenizer; `kwargs` go to `save_pretrained`."""
    (model or pico_model(family)).save_pretrained(folder, **kwargs)
    pico_tokenizer().save_pretrained(folder)
    return folder


def write_gguf(path: Path, model: Any) -> Path:
    """Write a pico llama as a float32 GGUF file with a byte-level tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("pico")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    characters = [chr(33 + i) for i in range(94)]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *characters, "ab", *(f"{chr(97 + i)}xyz" for i in range(29))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    writer.add_token_merges(["a b"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(_gguf_layout(name, tensor.numpy(), config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    stem = name.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{parts[part]}.weight"


def _gguf_layout(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Interleave the two halves of every query and key head, as the format wants it."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, num_heads in heads.items():
        if part in name:
            half = values.shape[0] // num_heads // 2
            return values.reshape(num_heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
    return values
