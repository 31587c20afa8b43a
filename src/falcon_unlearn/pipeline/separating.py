"""Keep what should stay known apart from what is to be forgotten, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.recipe import Recipe
from falcon_unlearn.data.sources import LoadedCorpus, load_examples
from falcon_unlearn.distributed.job import current_team
from falcon_unlearn.evaluation.overlap import check_kept_sets
from falcon_unlearn.evaluation.sets import EvaluationSet

LoadCorpus = Callable[[CorpusSettings], LoadedCorpus]


def separate_sets(
    recipe: Recipe, sets: Sequence[EvaluationSet], load: LoadCorpus = load_examples
) -> list[str]:
    """Refuse kept evaluation items that stand in forget text; return warnings of near overlaps.

    Args:
        recipe: Names the forget domains.
        sets: The evaluation sets, loaded.
        load: Reads one domain; replace it where the data are in memory.

    Raises:
        DataError: An item overlaps, or a domain cannot be read.
    """
    if all(entry.settings.role == "forget" for entry in sets):
        return []
    return current_team().from_leader(lambda: check_kept_sets(sets, _forget_texts(recipe, load)))


def _forget_texts(recipe: Recipe, load: LoadCorpus) -> dict[str, list[str]]:
    domains = {corpus.name: load(corpus).examples for corpus in recipe.data.forget}
    return {name: [example.plain_text for example in examples] for name, examples in domains.items()}
