"""Random models of a few thousand parameters, one for each supported family.

Weights are drawn with a large spread, so that outputs are far from uniform, and sliding windows are shorter
than the test sequences, so that a wrong mask or position changes the numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

SLIDING_WINDOW = 8

_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"head_dim": 8, "sliding_window": SLIDING_WINDOW}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 3},
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 3},
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": SLIDING_WINDOW,
            # Low caps bend the logits of a model this small, so that a forgotten cap shows.
            "final_logit_softcapping": 4.0,
            "attn_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
            "attn_implementation": "eager",
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": SLIDING_WINDOW,
            "sliding_window_pattern": 3,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": SLIDING_WINDOW}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"rotary_pct": 0.5}),
}

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def pico_config(family: str, **overrides: Any) -> Any:
    """Return the configuration of the pico model of `family`, changed by `overrides`."""
    config_name, _, settings = _FAMILIES[family]
    values = _COMMON | settings | overrides
    if family == "gpt_neox":
        values.pop("num_key_value_heads", None)
    return getattr(transformers, config_name)(**values)


def pico_model(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """Return a random float32 model of `family` in evaluation mode, with `overrides` of its configuration.

    The weights depend only on `family`, `seed` and `overrides`; the global random state is left as it was.
    """
    config = pico_config(family, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, _FAMILIES[family][1])(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                # Norm weights start constant; spread them so that a swapped or skipped norm shows.
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.to(torch.float32).eval()


def random_tokens(num_tokens: int, *, seed: int = 0, vocab_size: int = 128) -> list[int]:
    """Return token ids without the four special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, vocab_size, (num_tokens,), generator=generator).tolist()


def pico_tokenizer() -> Any:
    """Return a tokenizer with one token per ASCII character: its code (0..3 are special)."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel

    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary = special | {chr(code): code for code in range(4, 128)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
