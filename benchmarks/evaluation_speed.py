"""Time the evaluation on TOFU against the plain way: every answer with its prompt, every token generated.

    python benchmarks/evaluation_speed.py MODEL --data-dir tofu --rows 16

Both ways run in one process, one after the other, on the first rows of each question set, and must give the
same numbers. Writes benchmarks/results/evaluation_speed.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from falcon_unlearn.bench.tofu.data import load_tofu
from falcon_unlearn.bench.tofu.encoding import MAXIMUM_TOKENS, EncodedQuestion, encode_rows
from falcon_unlearn.bench.tofu.generating import greedy_answers
from falcon_unlearn.bench.tofu.statistics import answer_losses
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.evaluation.subject import Subject
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.models.access import load_model, pick_device
from falcon_unlearn.models.head import contiguous_head_input
from falcon_unlearn.models.scoring import completion_log_probabilities
from falcon_unlearn.models.text import TextEncoder, pad_batch

RESULTS = Path(__file__).parent / "results"
ROWS_TOGETHER = 64


def plain_losses(subject: Subject, questions: list[EncodedQuestion]) -> list[float]:
    """Return the mean loss of every answer, question by question, each fed with its prompt."""
    columns = []
    for place in range(len(questions[0].completions)):
        # The questions differ, so nothing is shared inside such a batch.
        pairs = [(question.prompt, question.completions[place]) for question in questions]
        columns.append(
            completion_log_probabilities(
                subject.model, pairs, pad_id=subject.pad_id, batch_tokens=subject.batch_tokens
            )
        )
    return [-score.mean_log_probability for scores in zip(*columns, strict=True) for score in scores]


def plain_answers(subject: Subject, questions: list[EncodedQuestion], maximum_new_tokens: int) -> list[str]:
    """Return greedy answers of transformers' own generation, batches sorted by the length of the answers."""
    order = sorted(range(len(questions)), key=lambda index: -len(questions[index].answer))
    answers = [""] * len(questions)
    for start in range(0, len(order), ROWS_TOGETHER):
        part = order[start : start + ROWS_TOGETHER]
        ids_BL, mask_BL = pad_batch([questions[index].prompt for index in part], subject.pad_id, "left")
        output = subject.model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            do_sample=False,
            max_new_tokens=maximum_new_tokens,
            eos_token_id=sorted(subject.end_ids),
            pad_token_id=subject.pad_id,
        )
        for index, row in zip(part, output[:, ids_BL.shape[1] :].tolist(), strict=True):
            length = next((place for place, token in enumerate(row) if token in subject.end_ids), len(row))
            text = subject.tokenizer.decode(row[:length], skip_special_tokens=True)
            answers[index] = text.strip()
    return answers


def compare(subject: Subject, questions: list[EncodedQuestion], maximum_new_tokens: int) -> dict[str, Any]:
    """Time both ways and compare what they give."""
    started = time.perf_counter()
    plain = plain_losses(subject, questions)
    scoring_plain = time.perf_counter() - started
    started = time.perf_counter()
    found = answer_losses(subject, questions, lambda _: None)
    scoring = time.perf_counter() - started
    losses = [
        loss
        for item in found
        for loss in (
            item.answer,
            *([item.paraphrased] if item.paraphrased is not None else []),
            *item.perturbed,
        )
    ]
    started = time.perf_counter()
    expected = plain_answers(subject, questions, maximum_new_tokens)
    generation_plain = time.perf_counter() - started
    started = time.perf_counter()
    answers = greedy_answers(
        subject,
        questions,
        maximum_new_tokens=maximum_new_tokens,
        done=lambda _: None,
        num_greedy=[item.num_greedy for item in found],
    )
    generation = time.perf_counter() - started
    return {
        "questions": len(questions),
        "answers": len(plain),
        "share of answer tokens not generated": sum(item.num_greedy for item in found)
        / sum(len(question.answer) for question in questions),
        "largest difference of a loss": max(abs(a - b) for a, b in zip(plain, losses, strict=True)),
        "equal generations": sum(a == b for a, b in zip(expected, answers, strict=True)),
        "seconds": {
            "scoring, plain": scoring_plain,
            "scoring": scoring,
            "generation, plain": generation_plain,
            "generation": generation,
        },
        "ratio": {
            "scoring": scoring_plain / scoring,
            "generation": generation_plain / generation,
            "both": (scoring_plain + generation_plain) / (scoring + generation),
        },
    }


def main() -> None:
    """Compare on every question set and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--name", default="evaluation_speed")
    arguments = parser.parse_args()
    loaded = load_model(ModelSettings(name=arguments.model), pick_device("cpu"))
    data = load_tofu(arguments.data_dir, "forget01")
    encoder = TextEncoder(loaded.tokenizer, chat_template=False, maximum_tokens=MAXIMUM_TOKENS)
    subject = Subject(loaded.model, loaded.tokenizer)
    sets = {"forget": data.forget, "retain": data.retain, "real authors": data.real_authors}
    results = {}
    with evaluation_mode(loaded.model), contiguous_head_input(loaded.model):
        for name, rows in sets.items():
            results[name] = compare(subject, encode_rows(encoder, rows[: arguments.rows], name), 96)
            print(name, json.dumps(results[name], indent=2))
    record = {"model": Path(arguments.model).name, "threads": torch.get_num_threads(), "sets": results}
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
