"""Training of methods that act on a model's outputs."""

from falcon_unlearn.training.outputs.session import unlearn_outputs

__all__ = ["unlearn_outputs"]
