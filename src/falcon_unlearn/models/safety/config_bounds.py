"""Check `config.json` as data from a stranger: sizes, names of code, names of files.

A configuration decides how much memory is allocated and which code runs. Sizes are therefore bounded, first
absolutely and then by what the weight files hold, before a single module is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from falcon_unlearn.errors import ModelError
from falcon_unlearn.models.safety.files import MAXIMUM_CONFIG_BYTES, read_json_object

MAXIMUM_LAYERS = 4096
MAXIMUM_EXPERTS = 16384
MAXIMUM_LAYERS_TIMES_EXPERTS = 2**18
"""Modules that a configuration may ask for; the largest published models have below 25 000."""
MAXIMUM_SIZE = 2**28
MAXIMUM_NUMBER = 2**63
MAXIMUM_ITEMS = 2**17
_DEPTHS = re.compile(r"^(num_|n_)?(hidden_|decoder_|encoder_)?(layers?|blocks?|depth)$|(^|\.)block_count$")
_EXPERTS = re.compile(r"expert(s|_count)$|^num_.*experts")
_SIZES = re.compile(r"(size|dim|dims|heads|rank|inner|embd|ffn|channels|kernel|embedding_length|head_count)$")
_ATTENTION = frozenset({None, "eager", "sdpa", "flex_attention"})
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_DTYPES = frozenset({None, "auto", "float64", "float32", "float16", "bfloat16"})


def read_config(folder: Path, *, allow_code: bool, num_tensors: int | None) -> dict[str, Any]:
    """Read and check `config.json`.

    Args:
        folder: Model folder.
        allow_code: The user allowed code from the model folder.
        num_tensors: Tensors in the weight files; every layer needs at least one. None where unknown.

    Raises:
        ModelError: The file is damaged, or asks for something that is not allowed; names field and value.
    """
    path = folder / "config.json"
    values = read_json_object(path, MAXIMUM_CONFIG_BYTES)
    check_config(values, path.name, allow_code=allow_code, num_tensors=num_tensors)
    return values


def check_config(values: Mapping[str, Any], name: str, *, allow_code: bool, num_tensors: int | None) -> None:
    """Check the values of a configuration; see `read_config`."""
    for prefix, group in _groups(values):
        for key, value in group.items():
            _check_number(f"{prefix}{key}", key, value, name)
        _check_names(prefix, group, name)
    check_depth(dict(_numbers(values)), name, num_tensors)
    if not allow_code:
        _refuse_code(values, name)


def check_depth(numbers: Mapping[str, int], name: str, num_tensors: int | None) -> None:
    """Refuse more layers than the limit, or than there are tensors; `numbers` by dotted key."""
    layers = {key: value for key, value in numbers.items() if _DEPTHS.search(_last(key))}
    experts = {key: value for key, value in numbers.items() if _EXPERTS.search(_last(key))}
    limit = MAXIMUM_LAYERS if num_tensors is None else min(MAXIMUM_LAYERS, num_tensors)
    for key, value in layers.items():
        if value > limit:
            why = "" if limit == MAXIMUM_LAYERS else f": the weight files hold {num_tensors} tensors"
            raise _refusal(name, key, value, f"at most {limit}{why}")
    for key, value in experts.items():
        if value > MAXIMUM_EXPERTS:
            raise _refusal(name, key, value, f"at most {MAXIMUM_EXPERTS}")
    product = max(layers.values(), default=1) * max(experts.values(), default=1)
    if product > MAXIMUM_LAYERS_TIMES_EXPERTS:
        key = max(experts, key=lambda item: experts[item])
        raise _refusal(
            name,
            key,
            experts[key],
            f"layers times experts at most {MAXIMUM_LAYERS_TIMES_EXPERTS}, not {product}",
        )


def check_number(key: str, value: Any, name: str) -> None:
    """Refuse an impossible number under the dotted `key`."""
    _check_number(key, _last(key), value, name)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _groups(
    values: Mapping[str, Any], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the configuration and those inside it, with the dotted prefix of their keys."""
    yield prefix, values
    for key, value in values.items():
        if isinstance(value, dict) and depth < 8:
            yield from _groups(value, f"{prefix}{key}.", depth + 1)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for prefix, group in _groups(values):
        for key, value in group.items():
            if type(value) is int:
                yield f"{prefix}{key}", value


def _check_number(path: str, key: str, value: Any, name: str) -> None:
    if isinstance(value, list) and len(value) > MAXIMUM_ITEMS:
        raise _refusal(name, path, f"{len(value)} items", f"at most {MAXIMUM_ITEMS}")
    is_size = _SIZES.search(key) is not None
    is_count = _DEPTHS.search(key) is not None or _EXPERTS.search(key) is not None
    if not is_size and not is_count:
        if type(value) is int and abs(value) >= MAXIMUM_NUMBER:
            raise _refusal(name, path, value, "a 64-bit number")
        return
    if type(value) is float and not value.is_integer():
        raise _refusal(name, path, value, "a whole number")
    if type(value) in (int, float) and not 0 <= value <= MAXIMUM_SIZE:
        raise _refusal(name, path, value, f"0 to {MAXIMUM_SIZE}")


def _check_names(prefix: str, group: Mapping[str, Any], name: str) -> None:
    for key in _ATTENTION_KEYS:
        value = group.get(key)
        if not isinstance(value, str | None) or value not in _ATTENTION:
            # A kernel's name would be fetched from the hub and run.
            raise _refusal(name, f"{prefix}{key}", value, "eager, sdpa or flex_attention, or no such key")
    for key in ("dtype", "torch_dtype"):
        value = group.get(key)
        if not isinstance(value, str | None) or (value or "auto").removeprefix("torch.") not in _DTYPES:
            raise _refusal(name, f"{prefix}{key}", value, "float32, bfloat16, float16 or float64")
    if group.get("transformers_weights") is not None:
        raise _refusal(name, f"{prefix}transformers_weights", group["transformers_weights"], "no such key")
    if group.get("quantization_config") is not None:
        raise ModelError(
            f"model: {name}: {prefix}quantization_config says that the weights are quantised",
            hint="Unlearning needs unquantised weights: give the original checkpoint, or a GGUF file.",
        )


def _refuse_code(values: Mapping[str, Any], name: str) -> None:
    """Refuse a configuration that cannot be used without the code it names.

    Where transformers has the architecture itself, `auto_map` is ignored and the code beside it never runs;
    refusing would drive users of such models to allow code that is not needed.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if values.get("auto_map") and values.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"model: {name}: auto_map names Python code of the model folder for the architecture "
            f"{str(values.get('model_type'))[:80]!r}, which transformers does not have; it was not run",
            hint="Read that code first. `--set model.trust_remote_code=true` runs it; hub models need "
            "`--set model.revision=COMMIT` as well.",
        )


def _refusal(name: str, key: str, value: Any, allowed: str) -> ModelError:
    return ModelError(
        f"model: {name}: {key[:120]}: got {str(value)[:60]!r}, allowed: {allowed}",
        hint="The configuration is damaged or hostile, or of another model than the weights.",
    )
