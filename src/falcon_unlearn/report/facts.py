"""List the plain facts of a run: pairs of a label and a value in words."""

from __future__ import annotations

import shlex

from falcon_unlearn.config.paths import public_name
from falcon_unlearn.report.format import operations, plural, quantity
from falcon_unlearn.report.records import RunRecords
from falcon_unlearn.results import SelectionResult
from falcon_unlearn.runs import format_bytes

ESTIMATOR_NAMES = {
    "paired": "information between forget and retain states over random pairings",
    "pooled": "information between state and domain",
    "gradient_conflict": "gradient conflict",
}

Fact = tuple[str, str]


def request(records: RunRecords) -> list[Fact]:
    """Say what the run was asked to do."""
    recipe, training = records.recipe, records.training
    batch = recipe.train.batch_size
    names = {role: [c.name for c in records.data.corpora if c.role == role] for role in ("forget", "retain")}
    offset, conflict = recipe.objective.offset, recipe.objective.conflict
    targets = [
        (
            "Targets",
            f"{offset.mode} mode, one per {offset.resolved_granularity}, "
            f"{offset.directions} principal directions avoided",
        ),
        ("Temperature", quantity(recipe.objective.temperature)),
    ]
    return [
        ("Model", f"{records.base_model} ({training.total_parameters:,} parameters)"),
        ("To forget", ", ".join(names["forget"])),
        ("To keep", ", ".join(names["retain"])),
        ("Method", training.method),
        *(targets if recipe.method == "falcon" else []),
        ("Conflict rule", f"{conflict.rule}, decided per {conflict.scope}"),
        ("Retain multiplier", quantity(recipe.objective.retain_multiplier)),
        (
            "Update",
            f"{recipe.train.optimizer}, learning rate {quantity(training.learning_rate)}, "
            f"{plural(training.steps_planned, 'step')} of {batch} + {batch} texts",
        ),
        ("Seed", str(recipe.seed)),
    ]


def selection_facts(selection: SelectionResult) -> list[Fact]:
    """Say how the layer was chosen."""
    if selection.estimator == "none":
        return [("Chosen layer", "none; the method acts on the outputs of the whole model")]
    facts = [("Chosen layer", f"{selection.layer} (0 is the first block)")]
    if selection.fixed:
        return [*facts, ("Chosen by", "the user; no estimate was made")]
    facts += [
        ("Estimator", f"{selection.estimator}: {ESTIMATOR_NAMES.get(selection.estimator, 'custom')}"),
        ("Best candidate on its own", str(selection.best_layer)),
        ("Rule", selection.rule.replace("_", " ")),
        ("Samples", ", ".join(f"{name} {number:,}" for name, number in selection.samples.items())),
        ("Token position", selection.pooling),
    ]
    if selection.rank_stability is not None:
        facts.append(
            ("Rank stability", f"{selection.rank_stability:.2f} (1: resampling never reorders the layers)")
        )
    if selection.trial is not None:
        trial = selection.trial
        facts.append(
            (
                "Trial of layers",
                f"{plural(trial.updates, 'step')} at {trial.speed:g} times the learning rate, measured on "
                f"{plural(trial.measured, 'forget text')}; a layer needs {trial.share:.0%} of the "
                "largest fall",
            )
        )
    return [(label, value) for label, value in facts if value]


def training_facts(records: RunRecords) -> list[Fact]:
    """Say what was trained."""
    training = records.training
    first, last = training.window
    return [
        ("Steps", f"{training.steps_done} of {training.steps_planned}; kept: step {training.kept_step}"),
        ("Blocks executed", f"{first} to {last}"),
        ("Trained tensors", f"{len(training.trained)}, {training.trained_parameters:,} parameters"),
        ("Number format", f"{training.compute_dtype} products, float32 masters"),
    ]


def tensor_sentence(records: RunRecords) -> str:
    """Say how many tensors of the checkpoint changed."""
    changed = len(records.training.changes)
    if records.num_tensors is None:
        return f"{plural(changed, 'tensor')} changed; every other tensor is the original, unchanged."
    total = plural(records.num_tensors, "tensor")
    return f"{changed} of {total} changed; the others are copies of the original."


def stage_seconds(records: RunRecords) -> dict[str, float]:
    """Return the wall time of every stage, from the manifest or, before it exists, from the stages."""
    if records.manifest and records.manifest.seconds:
        return records.manifest.seconds
    stages = {
        "selection, forward": records.selection.seconds_forward,
        "selection, estimator": records.selection.seconds_estimator,
        "evaluation before": records.before.seconds if records.before else 0.0,
        "caching": records.training.seconds_cache,
        "training": records.training.seconds_train,
        "evaluation after": records.after.seconds if records.after else 0.0,
    }
    return {name: seconds for name, seconds in stages.items() if seconds > 0}


def cost_facts(records: RunRecords) -> list[Fact]:
    """Say what the run cost besides time."""
    training, environment = records.training, records.environment
    facts = [
        ("Peak memory of the process", format_bytes(training.peak_memory_bytes)),
        ("Cached states", f"{format_bytes(training.cache_bytes)} for {training.cached_tokens:,} tokens"),
    ]
    facts += [(f"Arithmetic, {name}", operations(value)) for name, value in training.flops.items()]
    machine = (
        f"{environment.processor}, {plural(environment.cores, 'core')}, "
        f"{plural(environment.threads, 'thread')}"
    )
    facts.append(
        (
            "Machine",
            f"{machine}, {format_bytes(environment.memory_bytes)} memory, device {environment.device}",
        )
    )
    return facts


def repeat_command(records: RunRecords) -> str:
    """Return a command that repeats the run."""
    if records.manifest and records.manifest.command:
        return records.manifest.command
    model = shlex.quote(public_name(records.recipe.model.name))
    return f"falcon-unlearn run {model} --recipe falcon/recipe.resolved.yaml --output NEW_FOLDER"


def repeat_facts(records: RunRecords) -> list[Fact]:
    """List what identifies the run: seed, versions and hashes."""
    environment, manifest = records.environment, records.manifest
    facts = [
        ("Seed", str(records.recipe.seed)),
        ("Started", f"{environment.started} (UTC)"),
        ("Python", f"{environment.python} on {environment.platform}"),
        ("Packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
    ]
    facts += [
        (f"Data, {corpus.name}", f"{corpus.source}, sha256 {corpus.sha256}")
        for corpus in records.data.corpora
    ]
    if manifest is None:
        return [*facts, ("Hashes", "of the weights and the output: see falcon/manifest.json")]
    facts.append(("falcon-unlearn", manifest.package_version))
    facts.append(("Fingerprint of the run", manifest.fingerprint))
    return [
        *facts,
        *[(f"Weights, {name}", f"sha256 {value}") for name, value in manifest.base_weights_sha256.items()],
    ]
