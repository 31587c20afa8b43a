"""Count the tokens of a run's corpora before a model is loaded."""

from __future__ import annotations

from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.pipeline.costs import Tokens
from falcon_unlearn.training.session import step_plan


def count_tokens(recipe: Recipe, data: PreparedData) -> Tokens:
    """Count what the corpora hold, and what the batches of all steps will process."""
    forget = [[len(e.input_ids) for e in corpus.training] for corpus in data.forget]
    retain = [[len(e.input_ids) for e in corpus.training] for corpus in data.retain]
    plan = step_plan(data, recipe)
    stepped = 0
    for step in range(recipe.train.steps):
        batch = plan.batch(step)
        stepped += sum(forget[batch.domain][i] for i in batch.forget)
        stepped += sum(retain[corpus][i] for corpus, i in batch.retain)
    lengths = [length for corpus in (*forget, *retain) for length in corpus]
    return Tokens(sum(lengths), max(lengths), len(lengths), stepped)


def assume_tokens(recipe: Recipe) -> Tokens:
    """Count for retain text `self`, which does not exist yet: self_samples x self_tokens for both sides."""
    count, per_text = 2 * recipe.data.self_samples, recipe.data.self_tokens
    stepped = 2 * recipe.train.batch_size * recipe.train.steps * per_text
    return Tokens(count * per_text, per_text, count, stepped)


def samples_itself(recipe: Recipe) -> bool:
    """Tell whether some retain text is sampled from the model."""
    return any(corpus.path == "self" for corpus in recipe.data.retain)
