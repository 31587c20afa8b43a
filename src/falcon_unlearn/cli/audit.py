"""The command `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from falcon_unlearn.cli.options import DEFAULT_DISPLAY, DisplayOptions, SeedArgument, corpora, parse_seed

if TYPE_CHECKING:
    from falcon_unlearn.config.audit import AuditSettings

_FACTS = "rows with question and answer, options or distractors; texts work too. Repeatable."


def audit(
    original: Annotated[str, Parameter(help="Model before unlearning: hub id, folder or GGUF file.")],
    unlearned: Annotated[str, Parameter(help="Model to audit, such as the output folder of a run.")],
    *,
    forget: Annotated[tuple[str, ...], Parameter(metavar="[NAME=]FILE", help=f"Facts to forget: {_FACTS}")],
    retain: Annotated[tuple[str, ...], Parameter(metavar="[NAME=]FILE", help="Facts to keep. Repeatable.")],
    neighbour: Annotated[
        tuple[str, ...], Parameter(metavar="[NAME=]FILE", help="Related facts to keep. Repeatable.")
    ] = (),
    benign: Annotated[
        tuple[str, ...],
        Parameter(metavar="[NAME=]FILE", help="Unrelated texts for the attacker. Repeatable."),
    ] = (),
    null: Annotated[
        str | None,
        Parameter(metavar="MODEL", help="Model that never saw the forget data, the zero of the scale."),
    ] = None,
    tier: Annotated[
        str | None, Parameter(metavar="quick|full", help="Which attacks; quick by default.")
    ] = None,
    attack: Annotated[
        tuple[str, ...], Parameter(metavar="NAME", help="Run this attack only. Repeatable.")
    ] = (),
    seed: Annotated[
        tuple[str, ...], Parameter(metavar="N", help="Seed of the attacks. Repeatable; 0 by default.")
    ] = (),
    split_seed: SeedArgument = None,
    items: Annotated[int | None, Parameter(metavar="N", help="Most forget facts; 200 by default.")] = None,
    chat_template: Annotated[bool, Parameter(help="Ask through the tokenizer's chat template.")] = False,
    gate: Annotated[
        tuple[str, ...],
        Parameter(metavar="METRIC<=X", help="Exit with 4 if missed, such as worst<=0.2. Repeatable."),
    ] = (),
    set: Annotated[
        tuple[str, ...],
        Parameter(metavar="KEY=VALUE", help="Change a setting of the recipe's audit section. Repeatable."),
    ] = (),
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "--output-dir", "-o"],
            metavar="DIR",
            help="New folder for the result; otherwise falcon/ of the audited run.",
        ),
    ] = None,
    display: DisplayOptions = DEFAULT_DISPLAY,
) -> None:
    """Attack a model and measure what comes back."""
    from falcon_unlearn.cli.audit_table import show_audit
    from falcon_unlearn.cli.console import print_result

    given = {
        "null_model": null,
        "tier": tier,
        "attacks": attack,
        "seeds": tuple(parse_seed(entry) for entry in seed),
        "items": items,
        "chat_template": chat_template,
        "gates": gate,
    }
    settings = audit_settings({name: value for name, value in given.items() if value}, set)
    sources = {
        role: corpora(files, role)
        for role, files in (
            ("forget", forget),
            ("retain", retain),
            ("neighbour", neighbour),
            ("benign", benign),
        )
    }
    with display.progress() as sink:
        from falcon_unlearn.audit.gates import require_gates
        from falcon_unlearn.audit.gathering import AuditSources
        from falcon_unlearn.config.data import CorpusSettings
        from falcon_unlearn.config.model import ModelSettings
        from falcon_unlearn.config.runtime import RuntimeSettings
        from falcon_unlearn.pipeline import AuditRequest, audit_folder, audit_models

        folder = audit_folder(unlearned, output)
        request = AuditRequest(
            original=original,
            unlearned=unlearned,
            sources=AuditSources(
                **{role: tuple(CorpusSettings(**entry) for entry in files) for role, files in sources.items()}
            ),
            settings=settings,
            model=ModelSettings(name=unlearned),
            runtime=RuntimeSettings(),
            seed=parse_seed(split_seed) or 0,
        )
        result = audit_models(request, folder, sink=sink)
    print_result(result, show_audit, as_json=display.json)
    require_gates(result.gates)


def audit_settings(given: dict[str, Any], changes: tuple[str, ...]) -> AuditSettings:
    """Merge flags and `KEY=VALUE` changes into checked settings.

    Raises:
        UsageError: A key or a value is not allowed; says which.
    """
    import yaml
    from pydantic import ValidationError

    from falcon_unlearn.config.audit import AuditSettings
    from falcon_unlearn.errors import UsageError

    values = dict(given)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or key not in AuditSettings.model_fields:
            raise UsageError(
                f"--set {change[:60]!r}: write KEY=VALUE, KEY one of {', '.join(AuditSettings.model_fields)}"
            )
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {change[:60]!r}: the value is not YAML") from error
    try:
        return AuditSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"audit.{place}: got {str(first['input'])[:60]!r}, {first['msg']}") from error
