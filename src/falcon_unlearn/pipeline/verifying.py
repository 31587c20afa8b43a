"""Verify a finished run: files, changed tensors, headline numbers, environment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from falcon_unlearn.checkpoints.comparing import changed_tensors
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import FalconError
from falcon_unlearn.events import EventSink, ignore_events
from falcon_unlearn.models.access import pick_device, resolve_folder
from falcon_unlearn.pipeline.remeasuring import remeasure
from falcon_unlearn.pipeline.workspace import timed_stage
from falcon_unlearn.report.records import RunRecords, read_records
from falcon_unlearn.results import EnvironmentDifference, Manifest
from falcon_unlearn.results_verify import Check, MetricCheck, VerifyResult
from falcon_unlearn.runs import capture_environment, public_name, sha256_file
from falcon_unlearn.runs.grading import grade_environment, worst
from falcon_unlearn.runs.manifest import changed_files, read_manifest


def verify_run(
    folder: Path,
    *,
    base: str | None = None,
    data: Iterable[Path] = (),
    sink: EventSink = ignore_events,
) -> VerifyResult:
    """Check everything about a finished run that can be checked with what is given.

    Args:
        folder: Output folder of a run.
        base: Original model; with it the changed tensors are proved and the divergence is measured again.
        data: Files, or folders of files, with the texts and evaluation sets of the run, found by name.
        sink: Receives progress.

    Raises:
        DataError: `folder` is no finished run.
        FalconError: `base` or `data` cannot be used.
    """
    manifest = read_manifest(folder)
    checks = [_check_files(folder, manifest)]
    if checks[0].status == "failed":
        # The records themselves may be forged: nothing is concluded from them.
        return _result(folder, [*checks, _skipped("tensors"), _skipped("metrics")], None, [], [], "")
    records = read_records(folder)
    changed: list[str] | None = None
    with timed_stage("verify", "comparing tensors", sink, {}):
        if base is None:
            checks.append(_skip("tensors", "no --base was given"))
        else:
            changed, found = _check_tensors(folder, base, manifest, records)
            checks += found
    environment = _environment(records)
    metrics, tolerance, found = remeasure(
        folder, records, base=base, data=data, exact=worst(environment) in {None, "low"}, sink=sink
    )
    return _result(folder, [*checks, *found], changed, metrics, environment, tolerance)


def _result(
    folder: Path,
    checks: list[Check],
    changed: list[str] | None,
    metrics: list[MetricCheck],
    environment: list[EnvironmentDifference],
    tolerance: str,
) -> VerifyResult:
    return VerifyResult(
        run=public_name(folder.resolve()),
        passed=all(check.status != "failed" for check in checks),
        checks=checks,
        changed_tensors=changed,
        metrics=metrics,
        environment=environment,
        tolerance=tolerance,
    )


def _check_files(folder: Path, manifest: Manifest) -> Check:
    problems = changed_files(folder, manifest)
    if problems:
        return Check(name="files", status="failed", detail="; ".join(problems[:10]))
    total = sum(file.bytes for file in manifest.files)
    return Check(
        name="files",
        status="passed",
        detail=f"{len(manifest.files)} files, {total} bytes, sha256 as recorded",
    )


def _check_tensors(
    folder: Path, base: str, manifest: Manifest, records: RunRecords
) -> tuple[list[str] | None, list[Check]]:
    original = resolve_folder(ModelSettings(name=base))
    if original is None:
        return None, [_skip("tensors", "the base is a GGUF file; tensors are compared between folders")]
    checks = [_check_base(original, manifest)]
    try:
        changed = changed_tensors(original, folder)
    except FalconError as error:
        return None, [*checks, Check(name="tensors", status="failed", detail=error.message)]
    foreign = sorted(set(changed) - set(records.training.trained))
    if foreign:
        detail = f"{len(foreign)} tensors changed that were not trained, first {foreign[0]!r}"
        return changed, [*checks, Check(name="tensors", status="failed", detail=detail)]
    detail = f"{len(changed)} of {len(records.training.trained)} trained tensors changed, and no other"
    return changed, [*checks, Check(name="tensors", status="passed", detail=detail)]


def _check_base(original: Path, manifest: Manifest) -> Check:
    """Compare the weights of the base with those the run recorded."""
    if not manifest.base_weights_sha256:
        return _skip("base", "the run started from a model in memory, whose weights have no hash")
    wrong = [
        name
        for name, recorded in sorted(manifest.base_weights_sha256.items())
        if not (original / name).is_file() or sha256_file(original / name) != recorded
    ]
    if wrong:
        detail = f"{', '.join(wrong[:5])}: missing or other weights than those the run started from"
        return Check(name="base", status="failed", detail=detail)
    return Check(name="base", status="passed", detail="weights of the base as recorded")


def _environment(records: RunRecords) -> list[EnvironmentDifference]:
    threads = records.recipe.runtime.threads or torch.get_num_threads()
    device = str(pick_device(records.recipe.runtime.device))
    return grade_environment(records.environment, capture_environment(device, threads))


def _skip(name: str, why: str) -> Check:
    return Check(name=name, status="skipped", detail=why)


def _skipped(name: str) -> Check:
    return _skip(name, "the files of the run were changed, so its records prove nothing")
