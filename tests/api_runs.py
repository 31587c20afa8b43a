"""Trainers on pico models with texts in memory, shared by the tests of the Python interface."""

import random

from falcon_unlearn import UnlearnConfig, UnlearnTrainer
from pico import pico_model, pico_tokenizer

WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()


def texts(seed, count=24):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 7))) + f" {seed}{n}." for n in range(count)]


FORGET, OTHER, RETAIN = texts(1), texts(2), texts(3, 30)
FAST = {"max_steps": 5, "per_device_train_batch_size": 4, "num_layers": 2, "layer": 3, "bf16": False,
        "objective": {"offset": {"directions": 4}}, "learning_rate": 1e-3}  # fmt: skip
CORPORA = {"forget": [{"name": "f", "path": "f.txt"}], "retain": [{"name": "r", "path": "r.txt"}]}


def trainer(model=None, forget=FORGET, retain=RETAIN, sink=None, eval_sets=None, tokenizer=True, **settings):
    return UnlearnTrainer(
        model if model is not None else pico_model("llama"),
        UnlearnConfig(**{**FAST, **settings}),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=pico_tokenizer() if tokenizer else None,
        eval_sets=eval_sets,
        sink=sink,
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Public names


def rows(values):
    return [{"text": value} for value in values]
