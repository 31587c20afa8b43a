"""Train the synthetic world once; later sessions find it in pytest's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import synthetic_world
from falcon_unlearn.audit.gathering import AuditSources
from falcon_unlearn.audit.keeping import Memory
from falcon_unlearn.config.audit import AuditSettings
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.config.runtime import RuntimeSettings
from falcon_unlearn.pipeline import AuditRequest, audit_models, auditing
from falcon_unlearn.results_audit import AuditResult
from synthetic_world import World, WorldModels, build_models, trained

DELTA = 0.25
"""Limit of these tests: even all 90 report facts in 30 clusters are too few to bound recovery by 10 %."""
FEW = {"items": 90, "other_items": 40}
"""Facts asked by default: 45 for the report, in 15 clusters. Planted recoveries are far above the limit."""
RESAMPLES = 2000


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def kept_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where models are kept, named after the code that makes them."""
    code = hashlib.sha256(Path(synthetic_world.__file__).read_bytes()).hexdigest()[:16]
    cache = getattr(request.config, "cache", None)
    name = f"synthetic-world-{code}"
    return Path(cache.mkdir(name)) if cache is not None else tmp_path_factory.mktemp(name)


@pytest.fixture(scope="session")
def models(kept_models: Path) -> WorldModels:
    """Return the trained models."""
    return build_models(kept_models)


@pytest.fixture(scope="session")
def lettered_retraining(world: World, kept_models: Path) -> Path:
    """Return a retraining that learnt letters too, as the null did."""
    return trained(kept_models / "lettered", world.retain, seed=1)


@pytest.fixture(scope="session")
def load() -> Callable[[Path], Any]:
    return lambda folder: AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def scores() -> Memory:
    """Keep scores for all audits of the session: their keys hold weights, attack, facts and code."""
    return Memory(None)


@pytest.fixture
def audit(
    world: World, models: WorldModels, scores: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AuditResult]:
    """Audit a model in memory or in a folder against the world's original and null."""
    monkeypatch.setattr(auditing, "Memory", lambda _journal: scores)

    def run(model: Any, *attacks: str, seed: int = 0, **changes: Any) -> AuditResult:
        folder = model
        if not isinstance(model, Path):
            folder = tmp_path / "audited"
            model.save_pretrained(folder)
            world.tokenizer().save_pretrained(folder)
        forget, retain = world.write_facts(tmp_path)
        values = {
            "null_model": str(models.null),
            "attacks": attacks,
            "delta": DELTA,
            "resamples": RESAMPLES,
            "maximum_new_tokens": 2,
        }
        return audit_models(
            AuditRequest(
                original=str(models.original),
                unlearned=str(folder),
                sources=AuditSources(
                    forget=(CorpusSettings(name="forget", path=str(forget)),),
                    retain=(CorpusSettings(name="retain", path=str(retain)),),
                ),
                settings=AuditSettings(**(values | FEW | changes)),
                model=ModelSettings(name=str(folder)),
                runtime=RuntimeSettings(),
                seed=seed,
            ),
            tmp_path / f"result-{seed}",
        )

    return run
