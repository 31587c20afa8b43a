"""Read MUSE-News or MUSE-Books (Shi et al. 2024) from a local folder or from the hub.

A piece is named `subset/split` as on the hub: `raw/forget`, `knowmem/retain_qa`, `privleak/holdout`. The
original repository calls two of them otherwise (`retain2_qa`, `privleak/retain2`); both names are read.
What is absent is listed in `MuseData.missing` with the reason, and never replaced without a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from falcon_unlearn.bench.muse.sources import FolderReader, HubReader, Piece
from falcon_unlearn.config.paths import public_name
from falcon_unlearn.data.formats import Row
from falcon_unlearn.errors import DataError

Corpus = Literal["News", "Books"]

HUB_IDS: dict[Corpus, str] = {"News": "muse-bench/MUSE-News", "Books": "muse-bench/MUSE-Books"}
NUM_FOLDS = 4

FOLDS = tuple(f"{kind}/forget_{k}" for kind in ("scal", "sust") for k in range(1, NUM_FOLDS + 1))
_TEXT_PIECES: dict[str, tuple[str, ...]] = {
    "raw/forget": ("raw/forget",),
    "raw/retain1": ("raw/retain1",),
    "raw/retain2": ("raw/retain2",),
    "raw/holdout": ("raw/holdout",),
    "raw/other_news": ("raw/other_news",),
    "privleak/forget": ("privleak/forget",),
    "privleak/retain": ("privleak/retain", "privleak/retain2"),
    "privleak/holdout": ("privleak/holdout",),
} | {name: (name,) for name in FOLDS}
_QUESTION_PIECES: dict[str, tuple[str, ...]] = {
    "knowmem/forget_qa": ("knowmem/forget_qa",),
    "knowmem/forget_qa_icl": ("knowmem/forget_qa_icl",),
    "knowmem/retain_qa": ("knowmem/retain_qa", "knowmem/retain2_qa"),
    "knowmem/retain_qa_icl": ("knowmem/retain_qa_icl", "knowmem/retain2_qa_icl"),
}
_VERBATIM = "verbmem/forget"
# Only in some local folders: not part of the release, so its absence is no news.
_UNOFFICIAL = frozenset({"raw/other_news"})
_OFFICIAL_ROWS: dict[Corpus, dict[str, int]] = {
    "News": {"raw/forget": 889, "raw/retain1": 1777, "raw/retain2": 1778, "raw/holdout": 3043},
    "Books": {},
}
_EVALUATION_ROWS = {
    _VERBATIM: 100,
    "knowmem/forget_qa": 100,
    "knowmem/forget_qa_icl": 10,
    "knowmem/retain_qa": 100,
    "knowmem/retain_qa_icl": 10,
    "privleak/forget": 100,
    "privleak/retain": 100,
    "privleak/holdout": 100,
}
# The same rows under two names (checked byte for byte on News), so one stands for the other.
_SAME_ROWS = {
    "sust/forget_1": "raw/forget",
    "scal/forget_1": "raw/forget",
    "sust/forget_3": "raw/other_news",
}


@dataclass(frozen=True, slots=True)
class VerbatimSample:
    """Hold a passage of the forget set, cut in two."""

    prompt: str
    continuation: str


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """Hold a question on an article and its short answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class MuseData:
    """Hold the pieces of one MUSE corpus, or of a smaller benchmark in the same form."""

    corpus: Corpus
    source: str
    """Folder name or hub id, never a path of this machine."""
    texts: Mapping[str, tuple[str, ...]]
    """Pieces of plain texts by name, rows as in the file: empty and repeated articles included."""
    questions: Mapping[str, tuple[QuestionAnswer, ...]]
    verbatim: tuple[VerbatimSample, ...]
    missing: Mapping[str, str]
    """Absent piece to the reason."""
    notes: tuple[str, ...] = ()
    """What must stand beside every number: stand-in texts, unusual row counts."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File or split to sha256 and number of rows."""
    setting: Mapping[str, str] = field(default_factory=dict)
    """Tier, seed, sizes: two results compare only where these are equal."""
    membership_tokens: int | None = None
    """Length of the chunks cut for PrivLeak; None: the whole texts of `privleak/`."""

    def require(self, piece: str) -> tuple[str, ...]:
        """Return the texts of a piece.

        Raises:
            DataError: The piece is absent.
        """
        if piece in self.texts:
            return self.texts[piece]
        reason = self.missing.get(piece, "there is no such piece")
        raise DataError(
            f"MUSE-{self.corpus} from {self.source}: {piece} is needed but absent: {reason}",
            hint=f"the complete data are on the hub: {HUB_IDS[self.corpus]}",
        )


def load_muse(source: str | Path, corpus: Corpus = "News", *, folds: bool = False) -> MuseData:
    """Read every piece that a folder or a hub data set holds.

    Args:
        source: A folder with `raw/`, `verbmem/`, `knowmem/`, `privleak/`, or a hub id.
        corpus: Which of the two; a hub id of MUSE itself must agree.
        folds: Whether the forget sets of scalability and sustainability are read too (News only, large).

    Raises:
        DataError: There is no such folder or data set, it holds no forget set, or a file is malformed.
        PrerequisiteError: The hub or the optional package `datasets` is needed and absent.
    """
    path = Path(source).expanduser()
    reader: FolderReader | HubReader
    reader = FolderReader(path) if path.is_dir() else HubReader(_hub_id(str(source), corpus))
    wanted = {name: names for name, names in _TEXT_PIECES.items() if folds or name not in FOLDS}
    pieces = {
        name: reader.read(names)
        for name, names in {**wanted, **_QUESTION_PIECES, _VERBATIM: (_VERBATIM,)}.items()
    }
    found = {name: piece for name, piece in pieces.items() if piece is not None}
    texts = {name: _texts(found[name]) for name in wanted if name in found}
    missing = {name: reader.absence(name) for name in pieces if name not in found and name not in _UNOFFICIAL}
    if folds:
        _fill_folds(texts, missing)
    if "raw/forget" not in texts:
        raise DataError(
            f"MUSE-{corpus} from {public_name(source)}: no raw/forget",
            hint="give the folder that holds raw/, verbmem/, knowmem/ and privleak/, or the hub id",
        )
    return MuseData(
        corpus=corpus,
        source=public_name(source),
        texts=texts,
        questions={name: _questions(found[name]) for name in _QUESTION_PIECES if name in found},
        verbatim=_samples(found[_VERBATIM]) if _VERBATIM in found else (),
        missing=missing,
        notes=_row_notes(corpus, found),
        files={piece.file: f"sha256 {piece.sha256}, {len(piece.rows)} rows" for piece in found.values()},
        setting={"corpus": corpus, "tier": "full"},
    )


def _hub_id(source: str, corpus: Corpus) -> str:
    other: Corpus = "Books" if corpus == "News" else "News"
    if source == HUB_IDS[other]:
        raise DataError(f"corpus: got {corpus!r} for {source}", hint=f"pass corpus={other!r}")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise DataError(
            f"MUSE: there is no folder {public_name(source)!r}",
            hint=f"give a folder with raw/forget.json, or the hub id {HUB_IDS[corpus]}",
        )
    return source


def _fill_folds(texts: dict[str, tuple[str, ...]], missing: dict[str, str]) -> None:
    for fold, same in _SAME_ROWS.items():
        if fold in missing and same in texts:
            texts[fold] = texts[same]
            del missing[fold]


def _texts(piece: Piece) -> tuple[str, ...]:
    return tuple(
        _string(row, row.value if isinstance(row.value, str) else None, "text") for row in piece.rows
    )


def _questions(piece: Piece) -> tuple[QuestionAnswer, ...]:
    return tuple(
        QuestionAnswer(_field(row, "question").strip(), _field(row, "answer").strip()) for row in piece.rows
    )


def _samples(piece: Piece) -> tuple[VerbatimSample, ...]:
    return tuple(VerbatimSample(_field(row, "prompt"), _field(row, "gt")) for row in piece.rows)


def _field(row: Row, name: str) -> str:
    value = row.value.get(name) if isinstance(row.value, dict) else None
    text = _string(row, value, name)
    if not text.strip():
        raise DataError(f"{row.place}: {name!r} is empty", hint="remove the row or load the data again")
    return text


def _string(row: Row, value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{row.place}: expected a {name!r} string, got {type(row.value).__name__}",
            hint="texts are a list of strings; questions are objects with question and answer; "
            "verbmem rows are objects with prompt and gt",
        )
    return value


def _row_notes(corpus: Corpus, found: Mapping[str, Piece]) -> tuple[str, ...]:
    expected = _OFFICIAL_ROWS[corpus] | _EVALUATION_ROWS
    return tuple(
        f"{name} has {len(piece.rows)} rows, MUSE-{corpus} has {expected[name]}"
        for name, piece in found.items()
        if name in expected and len(piece.rows) != expected[name]
    )
