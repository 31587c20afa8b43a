"""Load a model once, safely, from a hub id, a local folder or a GGUF file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.paths import is_local, public_name
from falcon_unlearn.errors import ModelError, PrerequisiteError, UsageError
from falcon_unlearn.models.architectures import ModelStructure, find_structure
from falcon_unlearn.models.safety.config_bounds import read_config
from falcon_unlearn.models.safety.files import FileMarks, mark_files, refuse_changed
from falcon_unlearn.models.safety.folder import check_folder, check_small_files, refuse_adapter
from falcon_unlearn.models.safety.gguf_header import read_gguf_header
from falcon_unlearn.models.safety.sizes import (
    check_size,
    check_tensors,
    check_vocabulary,
    refuse_leftovers,
    refuse_missing,
)
from falcon_unlearn.models.shards import CheckpointTensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNREADABLE = (
    ValueError,
    OSError,
    LookupError,
    RuntimeError,  # RecursionError is one
    ArithmeticError,
    AssertionError,
    AttributeError,
    TypeError,
    MemoryError,
    SafetensorError,
    StrictDataclassError,
)
"""What the libraries raise for files that are damaged, hostile or of another kind."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model, its tokenizer and where they came from."""

    model: Any
    """A transformers causal language model in evaluation mode, no parameter requiring a gradient."""
    tokenizer: Any
    structure: ModelStructure
    name: str
    """What the user typed."""
    folder: Path | None
    """Local folder with the safetensors files, None for GGUF files and in-memory models."""
    dtype: torch.dtype
    marks: FileMarks = field(default_factory=dict)
    """Size and time of change of the weight files that were read; see `refuse_changed`."""
    tensors: CheckpointTensors | None = None
    """Source of the weights of a model that is read block by block; None where all are in memory."""


def pick_device(name: str) -> torch.device:
    """Return the device for `name`; `auto` prefers CUDA, then MPS, then the processor.

    Raises:
        PrerequisiteError: The device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise PrerequisiteError(
            f"runtime.device: got {name!r}, but this machine has no CUDA device", hint="Use auto or cpu."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise PrerequisiteError(
            "runtime.device: got 'mps', but this machine has no Metal device", hint="Use auto or cpu."
        )
    return torch.device(name)


def resolve_folder(settings: ModelSettings) -> Path | None:
    """Return the local folder of a model, downloading a hub snapshot if needed; None for a GGUF file.

    Raises:
        UsageError: The path is neither a model folder nor a GGUF file.
        ModelError: The folder holds only pickled weights.
        PrerequisiteError: A hub id cannot be fetched.
    """
    path = Path(settings.name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(
                f"model: {path.name!r} is a file but not a GGUF file",
                hint="Give a hub id, a folder with config.json and *.safetensors, or a .gguf file.",
            )
        return None
    if path.is_dir():
        return _checked_folder(path)
    _refuse_missing_path(settings.name)
    return _checked_folder(_download(settings))


def _refuse_missing_path(name: str) -> None:
    """Raise UsageError when `name` does not exist and can only mean a local path."""
    if is_local(name) or name.count("/") > 1:
        raise UsageError(
            f"model: {name!r} does not exist", hint="Check the path, or give a hub id such as owner/name."
        )


def _checked_folder(folder: Path) -> Path:
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"model: the folder {folder.name!r} has no config.json",
            hint="Give the folder written by save_pretrained.",
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        detail = (
            f"only pickled weights ({', '.join(pickles[:3])}), which can run code when loaded"
            if pickles
            else "no weights"
        )
        raise ModelError(
            f"model: the folder {folder.name!r} holds {detail}",
            hint="Convert once with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR).",
        )
    return folder


def _download(settings: ModelSettings, files: tuple[str, ...] = _MODEL_FILES) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if settings.trust_remote_code:
        if not _COMMIT.fullmatch(settings.revision or ""):
            raise UsageError(
                f"model.revision: got {settings.revision!r}; code of a hub model needs a pinned commit",
                hint="Set model.revision to the 40-digit commit whose code you have read.",
            )
        files = (*files, "*.py")
    try:
        folder = snapshot_download(settings.name, revision=settings.revision, allow_patterns=list(files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PrerequisiteError(
            f"model: {settings.name!r} is no local path and could not be fetched from the hub "
            f"({type(error).__name__})",
            hint="Check the name, the network and HF_TOKEN (gated models), or give a local folder.",
        ) from error
    except HFValidationError as error:
        raise UsageError(
            f"model: {settings.name!r} is neither a path nor a hub id", hint=str(error)
        ) from error
    return Path(folder)


def load_model(settings: ModelSettings, device: torch.device) -> LoadedModel:
    """Load model and tokenizer for evaluation; no parameter requires a gradient.

    Raises:
        UsageError, ModelError, PrerequisiteError: See `resolve_folder`; also for weights that are not finite.
    """
    folder = resolve_folder(settings)
    model, tokenizer, marks = _load_gguf(settings) if folder is None else _load_folder(folder, settings)
    model.to(device)
    model.eval().requires_grad_(False)
    _check_finite(model)
    check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
    return replace(wrap_model(model, tokenizer, settings.name, folder), marks=marks)


def wrap_model(
    model: Any, tokenizer: Any, name: str, folder: Path | None, *, tensors: CheckpointTensors | None = None
) -> LoadedModel:
    """Describe a model that is in memory already, or whose weights come from `tensors`."""
    dtype = next(model.parameters()).dtype
    return LoadedModel(model, tokenizer, find_structure(model), name, folder, dtype, tensors=tensors)


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load the tokenizer alone.

    Raises:
        UsageError, ModelError, PrerequisiteError: As `load_model`.
    """
    folder = resolve_folder(settings)
    if folder is None:
        path = Path(settings.name).expanduser()
        read_gguf_header(path)
        return _tokenizer(path.parent, gguf_file=path.name)
    check_small_files(folder, allow_code=settings.trust_remote_code)
    return _tokenizer(folder, trust_remote_code=settings.trust_remote_code)


def _tokenizer(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the tokenizers library raises plain Exception for files it cannot read
        if type(error) is not Exception and not isinstance(error, _UNREADABLE):
            raise
        raise ModelError(
            f"model: the tokenizer could not be loaded: {_first_line(error)}",
            hint="The folder needs the tokenizer files of a causal language model.",
        ) from error


def build_without_weights(settings: ModelSettings, *, real_buffers: bool = False) -> Any:
    """Build the model's modules on the meta device from its config; downloads the config of a hub id only.

    Args:
        settings: Names the model.
        real_buffers: Compute buffers on the processor; no checkpoint holds rotary frequencies, for instance.

    Raises:
        UsageError, ModelError, PrerequisiteError: As `load_model`.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = _load_config(settings)
    dtype = DTYPES.get(settings.dtype, getattr(config, "dtype", None) or torch.bfloat16)
    try:
        with init_empty_weights(include_buffers=False) if real_buffers else torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=settings.trust_remote_code
            )
        # Parameters that move to the meta device one by one lose their ties.
        model.tie_weights()
        return model
    except _UNREADABLE as error:
        raise ModelError(
            f"model: {public_name(settings.name)!r} is no causal language model: {_first_line(error)}",
            hint="Give a decoder-only causal language model.",
        ) from error


def count_blocks(settings: ModelSettings) -> int:
    """Return the number of blocks of a model, from its config alone.

    Raises:
        UsageError, ModelError, PrerequisiteError: As `load_model`.
    """
    return int(_load_config(settings).get_text_config().num_hidden_layers)


def _load_config(settings: ModelSettings) -> Any:
    from transformers import AutoConfig

    path = Path(settings.name).expanduser()
    if not path.exists():
        _refuse_missing_path(settings.name)
        folder: Path | None = _download(settings, ("config.json",))
    else:
        folder = resolve_folder(settings)
    try:
        if folder is None:
            read_gguf_header(path)
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        trust = settings.trust_remote_code
        read_config(folder, allow_code=trust, num_tensors=None)
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except _UNREADABLE as error:
        raise ModelError(
            f"model: the config of {path.name!r} could not be read: {_first_line(error)}",
            hint="It must be that of a causal language model.",
        ) from error


def _load_folder(folder: Path, settings: ModelSettings) -> tuple[Any, Any, FileMarks]:
    from transformers import AutoModelForCausalLM

    trust = settings.trust_remote_code
    inventory = check_folder(folder, allow_code=trust)
    bare = build_without_weights(settings.model_copy(update={"name": str(folder)}))
    check_tensors(bare, inventory, folder.name)
    tokenizer = _tokenizer(folder, trust_remote_code=trust)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if settings.dtype == "auto" else DTYPES[settings.dtype],
            use_safetensors=True,
            trust_remote_code=trust,
            output_loading_info=True,
        )
    except _UNREADABLE as error:
        raise ModelError(
            f"model: the folder {folder.name!r} could not be loaded: {_first_line(error)}",
            hint="It must hold config.json, *.safetensors and tokenizer files of a causal language model.",
        ) from error
    refuse_missing(loading["missing_keys"], folder.name)
    refuse_leftovers(loading["unexpected_keys"], folder.name)
    refuse_changed(folder, inventory.marks)
    return model, tokenizer, inventory.marks


def _load_gguf(settings: ModelSettings) -> tuple[Any, Any, FileMarks]:
    from transformers import AutoModelForCausalLM, GgufConfig

    path = Path(settings.name).expanduser()
    dtype = torch.bfloat16 if settings.dtype == "auto" else DTYPES[settings.dtype]
    header = read_gguf_header(path)
    marks = mark_files([path])
    check_size(build_without_weights(settings), header.num_elements, path.name)
    tokenizer = _tokenizer(path.parent, gguf_file=path.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
        )
    except (*_UNREADABLE, ImportError) as error:
        raise ModelError(
            f"model: the GGUF file {path.name!r} could not be loaded: {_first_line(error)}",
            hint="The architecture must be one that transformers can dequantise.",
        ) from error
    refuse_changed(path.parent, marks)
    return model, tokenizer, marks


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(
                f"model: the tensor {name!r} holds values that are not finite",
                hint="The checkpoint is damaged.",
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
