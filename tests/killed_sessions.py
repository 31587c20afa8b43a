"""Sessions on pico models that are killed and taken up again, and the comparison of what they end in."""

from __future__ import annotations

import torch

from falcon_unlearn.config.catalogue import METHODS
from falcon_unlearn.data.corpora import PreparedData
from falcon_unlearn.events import TrainingStepped, ignore_events
from falcon_unlearn.results import DataResult
from falcon_unlearn.training.outputs import unlearn_outputs
from falcon_unlearn.training.session import unlearn_window
from pico import pico_tokenizer
from tiny_runs import LAYER, tiny_corpus, tiny_engine, tiny_recipe

STATES = {"save_seconds": 0}


class Killed(BaseException):
    pass


def kill_at(step):
    """Return a sink that ends the session after a step, as a kill would: before that step is saved."""

    def sink(event):
        if isinstance(event, TrainingStepped) and event.step == step:
            raise Killed

    return sink


def recipe_of(method, **train):
    acts_on_outputs = METHODS[method].acts_on == "outputs"
    chosen = {"parameters": "all", "learning_rate": 2e-3} if acts_on_outputs else {}
    return tiny_recipe(method=method, train={**chosen, **train}, data={"loss_on": "answer"}, runtime=STATES)


def data_of():
    forget = tiny_corpus("f", 9, (11, 16), 0, prompt_tokens=5)
    retain = tiny_corpus("r", 14, (11, 16), 100, prompt_tokens=5)
    return PreparedData((forget,), (retain,), DataResult(corpora=[]))


def session(recipe, folder, sink=ignore_events, work=None, *, engine=None, data=None):
    """Unlearn a fresh model in a fresh folder, or in that of the work."""
    engine, data = engine or tiny_engine(), data or data_of()
    stores = folder if work is None else work.folder("stores")
    stores.mkdir(parents=True, exist_ok=True)
    if METHODS[recipe.method].acts_on == "outputs":
        return unlearn_outputs(engine, pico_tokenizer(), data, recipe, LAYER, stores, sink, work)
    return unlearn_window(engine, data, recipe, LAYER, stores, sink, work)


def comparable(result):
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    times = {"seconds_cache", "seconds_train", "peak_memory_bytes", "history"}
    return result.model_dump(exclude=times) | {"history": history}


def assert_equal(first, second):
    assert comparable(first.result) == comparable(second.result)
    assert first.changed.keys() == second.changed.keys()
    for name, tensor in first.changed.items():
        assert torch.equal(tensor, second.changed[name]), name
        assert torch.equal(first.original[name], second.original[name])
