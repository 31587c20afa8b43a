"""Score one model on one benchmark and write the result file, and the per-sample log beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.bench.muse.evaluate import Reference, evaluate_muse
from falcon_unlearn.bench.muse.privacy import read_reference
from falcon_unlearn.bench.muse.small import small_muse
from falcon_unlearn.bench.records import BenchResult
from falcon_unlearn.bench.tofu.data import HUB_ID, load_tofu
from falcon_unlearn.bench.tofu.evaluate import evaluate_tofu
from falcon_unlearn.bench.tofu.log import write_log
from falcon_unlearn.bench.tofu.settings import TofuSetting, official_setting, tofu_setting
from falcon_unlearn.bench.wmdp.evaluate import TASKS, WmdpOptions, WmdpSources, evaluate_wmdp
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.errors import UsageError
from falcon_unlearn.evaluation.suite import evaluation_mode
from falcon_unlearn.events import EventSink
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.models.access import load_model, pick_device
from falcon_unlearn.runs import write_json_atomic

Role = Literal["base", "target", "retain", "retain_replicate", "unlearned", "other"]
ROLES: tuple[Role, ...] = ("base", "target", "retain", "retain_replicate", "unlearned", "other")


def setting_of(tier: str | None, split: str | None) -> TofuSetting:
    """Return the TOFU setting that tier and split name together.

    Raises:
        UsageError: They contradict each other, or one does not exist.
    """
    if tier is None or tier == "full":
        return official_setting(split or "forget10")  # type: ignore[arg-type]  # checked there
    setting = tofu_setting(tier)  # type: ignore[arg-type]  # checked there
    if split is not None and split != setting.forget:
        raise UsageError(
            f"--split: got {split!r}, but tier {tier} forgets {setting.forget}", hint="Leave one of them out."
        )
    return setting


def score_tofu(
    model: str,
    source: str | None,
    setting: TofuSetting,
    output: Path,
    *,
    retain_log: Path | None,
    sink: EventSink,
    **kwargs: Any,
) -> BenchResult:
    """Score a model on TOFU; `output` is the result file.

    Raises:
        FalconError: Model, data or retain log cannot be used.
    """
    reference = read_log(retain_log) if retain_log is not None else None
    data = load_tofu(source or HUB_ID, setting.forget)
    loaded = load_model(ModelSettings(name=model), pick_device("auto"))
    result, log = evaluate_tofu(loaded, data, setting, retain_log=reference, sink=sink, **kwargs)
    write_log(log_path(output), log)
    write_json_atomic(output, result)
    return result


def score_muse(
    model: str,
    source: str | None,
    tier: str | None,
    output: Path,
    *,
    corpus: Literal["News", "Books"],
    retain_log: Path | None,
    sink: EventSink,
    **kwargs: Any,
) -> BenchResult:
    """Score a model on MUSE; without a retain log PrivLeak has no value.

    Raises:
        FalconError: Model, data or retain log cannot be used.
    """
    reference: Reference = read_reference(retain_log) if retain_log is not None else "no reference"
    data = load_muse(source or f"muse-bench/MUSE-{corpus}", corpus)
    if tier not in (None, "full"):
        data = small_muse(data, str(tier))
    loaded = load_model(ModelSettings(name=model), pick_device("auto"))
    with evaluation_mode(loaded.model):
        result, log = evaluate_muse(loaded, data, reference=reference, sink=sink, **kwargs)
    write_json_atomic(log_path(output), dict(getattr(log, "entries", log)))
    write_json_atomic(output, result)
    return result


def score_wmdp(
    model: str,
    folder: str | None,
    output: Path,
    *,
    tasks: tuple[str, ...],
    options: WmdpOptions,
    backend: Literal["native", "lm-eval"],
    retain_files: Sequence[str],
    sink: EventSink,
    **kwargs: Any,
) -> BenchResult:
    """Score a model on WMDP, MMLU and WikiText; `folder` holds `wmdp`, `mmlu` and `wikitext2`.

    `retain_files` are texts that the model was trained to keep: the result warns where they occur in the
    pages that perplexity is measured on.

    Raises:
        FalconError: Model or data cannot be used.
    """
    corpora = [load_examples(CorpusSettings(name="retain", path=path)) for path in retain_files]
    retain_texts = [example.plain_text for corpus in corpora for example in corpus.examples]
    sources = None
    if folder is not None:
        home = Path(folder).expanduser()
        sources = WmdpSources(wmdp=home / "wmdp", mmlu=home / "mmlu", wikitext=home / "wikitext2")
    loaded = load_model(ModelSettings(name=model), pick_device("auto"))
    with evaluation_mode(loaded.model):
        result = evaluate_wmdp(
            loaded,
            tasks=tasks or TASKS,
            sources=sources,
            options=options,
            backend=backend,
            retain_texts=retain_texts,
            sink=sink,
            **kwargs,
        )
    write_json_atomic(output, result)
    return result


def log_path(output: Path) -> Path:
    """Return where the per-sample log of a result file goes."""
    return output.with_name(output.name.removesuffix(".json").removesuffix(".bench") + ".log.json")
