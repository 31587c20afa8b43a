"""Step 3: which tensors move, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from falcon_unlearn.config.base import Settings


class LoraSettings(Settings):
    """Train low-rank adapters instead of the weights; they are merged into the result."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale; the adapter is multiplied by alpha / rank."""


class TrainSettings(Settings):
    """Set the update of the chosen parameters."""

    steps: int = Field(default=120, ge=1)
    """Optimisation steps."""
    batch_size: int = Field(default=8, ge=1)
    """Forget samples and retain samples per step; domains rotate."""
    layers: int = Field(default=3, ge=1)
    """Trained blocks, ending at the loss layer."""
    modules: tuple[str, ...] = ("mlp.down",)
    """Roles of the trained matrices: mlp.down, mlp.up, mlp.gate, attention.output, attention.query ..."""
    parameters: Literal["window", "all", "lora"] = "window"
    """Methods on outputs: train the roles `modules` of the window, all parameters, or adapters on every
    linear map of the blocks. Methods on states always train the window."""
    lora: LoraSettings = Field(default_factory=LoraSettings)
    """Adapters, for `parameters: lora`."""
    optimizer: Literal["adamw", "sgd", "sign_momentum", "sophia_reference"] = "adamw"
    """AdamW, plain SGD, sign of the momentum, or the released code's Sophia variant."""
    learning_rate: float | Literal["auto"] = "auto"
    """`auto` scales with the trained weights: relative_step times their root mean square."""
    relative_step: float = Field(default=0.01, gt=0, le=1)
    """Size of one Adam step relative to the root mean square of the trained weights, for `auto`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Literal["constant", "linear"] = "linear"
    """Learning rate over the steps: constant, or falling linearly to zero."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the window's matrix products; `auto` measures which is faster here. Masters are float32."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Take each step in parts of at most this many tokens, to the same result with less memory. A longer
    sample is a part of its own."""
    gradient_checkpointing: bool = False
    """Methods on outputs: recompute blocks in the backward pass instead of keeping them; less memory, about a
    third more time."""
    store_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the cached states; `auto` follows compute_dtype."""
    maximum_retain_drift: float | None = Field(default=None, gt=0, le=2)
    """Utility budget: stop, and go back to the last step inside it, when the mean cosine distance of retain
    states exceeds this."""
    divergence_factor: float = Field(default=20.0, gt=1)
    """Stop as diverged when forget activations grow beyond this many times their initial norm."""

    loss_factor: float = Field(default=10.0, gt=1)
    """Stop as diverged when the forget loss stays above this many times its initial median for 10 steps."""
    maximum_utility_loss: float | None = Field(default=None, gt=0)
    """Utility budget: largest relative rise of the perplexity of held-out retain text, 0.05 is 5 %. The last
    checked step inside it is kept."""
    utility_steps: int = Field(default=10, ge=1)
    """Steps between two checks of `maximum_utility_loss`."""

    @model_validator(mode="after")
    def _positive_rate(self) -> TrainSettings:
        if isinstance(self.learning_rate, float) and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive or `auto`, got {self.learning_rate}")
        if not self.modules:
            raise ValueError("modules is empty: nothing would be trained")
        return self
