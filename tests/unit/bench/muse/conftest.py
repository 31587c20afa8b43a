from __future__ import annotations

import pytest

from falcon_unlearn.models.access import wrap_model
from muse_files import invented_article, write_news
from pico import pico_model, pico_tokenizer


@pytest.fixture
def forget():
    return [invented_article(f"forget {k}") for k in range(8)]


@pytest.fixture
def other(forget):
    """Twelve articles of their own, one copy of a forget article, one repeat, one empty."""
    own = [invented_article(f"other {k}") for k in range(12)]
    return [own[0], forget[2].upper(), *own[1:], own[3], ""]


@pytest.fixture
def news_folder(tmp_path, forget, other):
    return write_news(tmp_path / "news", forget, other)


@pytest.fixture
def pico():
    """A random model with one token per character that reads texts as long as these."""
    return wrap_model(pico_model("llama", max_position_embeddings=4096), pico_tokenizer(), "pico", None)
