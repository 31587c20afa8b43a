"""Forget two topics given as lists of texts, keep a third, and save the result.

Usage: python examples/trainer.py [MODEL] [NEW_FOLDER]
"""

import sys

from falcon_unlearn import UnlearnConfig, UnlearnTrainer

METALS = {"iron": "Fe", "gold": "Au", "silver": "Ag", "tin": "Sn", "lead": "Pb", "copper": "Cu"}
GASES = {"helium": "He", "neon": "Ne", "argon": "Ar", "oxygen": "O", "nitrogen": "N", "xenon": "Xe"}
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo"}
WORDINGS = (
    "The chemical symbol for {} is {}.",
    "In formulas, {} is written as {}.",
    "Chemists abbreviate {} as {}.",
)


def sentences(facts: dict[str, str], wordings: tuple[str, ...]) -> list[str]:
    """Say every fact in every wording."""
    return [wording.format(name, value) for name, value in facts.items() for wording in wordings]


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct", output: str = "without-symbols") -> None:
    """Train, measure and save."""
    config = UnlearnConfig(output_dir=output, max_steps=40, logging_steps=20, seed=0)
    capitals = sentences(CAPITALS, ("The capital of {} is {}.", "{} is governed from {}."))
    question = "The symbol of the element {} is"
    trainer = UnlearnTrainer(
        model,
        config,
        forget_dataset={"metals": sentences(METALS, WORDINGS), "gases": sentences(GASES, WORDINGS)},
        retain_dataset={"capitals": capitals, "general": "self"},
        eval_sets=[
            {
                "name": "symbols",
                "role": "forget",
                "kind": "choice",
                "items": [
                    {"question": question.format(name), "options": list(METALS.values()), "answer": symbol}
                    for name, symbol in METALS.items()
                ],
            }
        ],
        sink=print,
    )
    before = trainer.evaluate()
    training = trainer.train()
    after = trainer.evaluate()
    print(f"trained {len(training.trained)} matrices in blocks {training.window}, status {training.status}")
    for old, new in zip(before.sets, after.sets, strict=True):
        print(
            f"{old.name:24} {old.metrics[0].name:16} {old.metrics[0].value:8.3f} {new.metrics[0].value:8.3f}"
        )
    print("report:", trainer.save_model() / "falcon" / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
