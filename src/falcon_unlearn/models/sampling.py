"""Sample texts from the original model, for users who have no retain text (`--retain self`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from falcon_unlearn.models.head import contiguous_head_input

OPENERS = (
    "The", "In", "A", "When", "One", "Every", "If", "How", "People", "There", "It", "Some", "To", "At",
    "After", "Our", "During", "Many", "This", "What", "On", "For", "Most", "With", "As", "My", "New",
    "Today,", "We", "Why",
)  # fmt: skip
"""First words of sampled texts; they keep the samples diverse and independent of any chat format."""


@torch.no_grad()
def sample_texts(
    model: Any, tokenizer: Any, count: int, num_tokens: int, seed: int, *, batch_size: int = 32
) -> list[str]:
    """Sample `count` texts of about `num_tokens` tokens by nucleus sampling.

    The global random state is left as it was.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        count: Number of texts.
        num_tokens: New tokens per text.
        seed: Seed of the draws.
        batch_size: Texts generated together.
    """
    texts: list[str] = []
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), contiguous_head_input(model):
        torch.manual_seed(seed)
        for start in range(0, count, batch_size):
            openers = [OPENERS[i % len(OPENERS)] for i in range(start, min(start + batch_size, count))]
            texts.extend(_sample_batch(model, tokenizer, openers, num_tokens, device))
    return texts


def _sample_batch(
    model: Any, tokenizer: Any, openers: list[str], num_tokens: int, device: torch.device
) -> list[str]:
    encoded = [tokenizer(opener)["input_ids"] for opener in openers]
    texts = _continue_batch(model, tokenizer, encoded, num_tokens, device, 1.0)
    return [f"{opener}{text}".strip() for opener, text in zip(openers, texts, strict=True)]


def _continue_batch(
    model: Any,
    tokenizer: Any,
    encoded: list[list[int]],
    num_tokens: int,
    device: torch.device,
    temperature: float,
) -> list[str]:
    width = max(map(len, encoded))
    # Left padding, so that every row continues at the same position.
    ids_BL = torch.zeros((len(encoded), width), dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for row, ids in enumerate(encoded):
        ids_BL[row, width - len(ids) :] = torch.tensor(ids)
        mask_BL[row, width - len(ids) :] = 1
    generated = model.generate(
        input_ids=ids_BL.to(device),
        attention_mask=mask_BL.to(device),
        max_new_tokens=num_tokens,
        do_sample=True,
        temperature=temperature,
        top_p=0.95,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
    return texts


@torch.no_grad()
def sample_continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    seed: int,
    *,
    temperature: float = 1.0,
    batch_size: int = 32,
) -> list[str]:
    """Sample one continuation of each tokenised prompt; the global random state is left as it was.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        num_tokens: Most new tokens.
        seed: Seed of the draws.
        temperature: Above 1 for more variety.
        batch_size: Prompts continued together.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with torch.random.fork_rng(devices=devices), contiguous_head_input(model):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            encoded = [list(prompts[index]) for index in chosen]
            drawn = _continue_batch(model, tokenizer, encoded, num_tokens, device, temperature)
            texts.update(zip(chosen, drawn, strict=True))
    return [texts[index] for index in range(len(prompts))]
