"""Pages of WikiText-2-raw for perplexity, and the check that they were not trained on. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from falcon_unlearn.bench.wmdp.data import hash_rows, read_hub, read_text_file, take_sample
from falcon_unlearn.data.overlap import ngram_hashes, overlapping_positions
from falcon_unlearn.errors import DataError
from falcon_unlearn.runs import sha256_file

NUM_ARTICLES = 62
"""Articles of the test split."""
FILE_NAME = "wiki.test.raw"
HUB, HUB_SUBSET = "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"

_NGRAM = 8
_TITLE = re.compile(r" ?= [^=\n](?:.*[^=\n])? = ?")


@dataclass(frozen=True)
class Page:
    """Hold one article with WikiText's own spacing."""

    index: int
    text: str


@dataclass(frozen=True)
class PageSet:
    """Hold the articles of one split and where they came from."""

    pages: tuple[Page, ...]
    source: str
    sha256: str
    num_available: int
    from_hub: bool

    def sample(self, limit: int | None, seed: int) -> PageSet:
        """Keep `limit` pages drawn without replacement, in file order."""
        return replace(self, pages=tuple(take_sample(self.pages, limit, seed)))


def load_pages(folder: Path | None) -> PageSet:
    """Read the WikiText-2-raw test split from `folder`, or from the hub when there is none.

    Line ends become plain newlines. The hub copy keeps blank lines that the file may lack, so its byte
    count is about 0.2 % higher.

    Raises:
        DataError: a missing file, no article, or the tokenised release with `<unk>`.
        PrerequisiteError: the hub or the optional `datasets` package is needed and absent.
    """
    if folder is None:
        rows = read_hub(HUB, HUB_SUBSET, "test")
        texts = [str(row.value["page"]) for row in rows if isinstance(row.value, dict)]
        pages = tuple(Page(index, text) for index, text in enumerate(texts))
        return PageSet(pages, f"{HUB}:{HUB_SUBSET}[test]", hash_rows(rows), len(pages), True)
    path = folder / FILE_NAME
    text = read_text_file(path, "wikitext")
    num_unknown = text.count("<unk>")
    if num_unknown:
        raise DataError(
            f"wikitext: {FILE_NAME} holds {num_unknown:,} `<unk>`: it is the tokenised release",
            hint="use wikitext-2-raw-v1, which keeps all words",
        )
    pages = tuple(Page(index, page) for index, page in enumerate(split_articles(text)))
    if not pages:
        raise DataError(
            f"wikitext: {FILE_NAME} has no article title", hint="titles are lines such as ` = Title = `"
        )
    return PageSet(pages, FILE_NAME, sha256_file(path), len(pages), False)


def split_articles(text: str) -> list[str]:
    """Cut WikiText at its title lines ` = Title = `; section titles have two signs or more.

    Every character after the first title is kept in exactly one article.
    """
    articles: list[list[str]] = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if _TITLE.fullmatch(line.rstrip("\n")):
            articles.append([])
        if articles:
            articles[-1].append(line)
    return ["".join(lines) for lines in articles]


def overlap_warning(retain_texts: Sequence[str], pages: Sequence[str]) -> str | None:
    """Word a warning when retain texts occur in the pages that perplexity is measured on; else None.

    FALCON and RMU use the WikiText-2 test split as retain data and report perplexity on the same split.
    A text counts when half of its strings of 8 words occur in the pages. Shorter texts, mostly headings that
    many articles share, are left out.
    """
    long_texts = [text for text in retain_texts if ngram_hashes(text, _NGRAM)]
    num_found = len(overlapping_positions(long_texts, pages, ngram=_NGRAM))
    if not num_found:
        return None
    return (
        f"{num_found:,} of {len(long_texts):,} retain texts occur in the perplexity split: this perplexity "
        "is measured on training text and says nothing about other text."
    )
