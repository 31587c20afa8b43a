"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from falcon_unlearn.config.recipe import Recipe
    from falcon_unlearn.events import EventSink

ModelArgument = Annotated[
    str | None,
    Parameter(name="--model", help="Hub id, local folder or GGUF file; a .yaml file is read as --recipe."),
]
OutputFolder = Annotated[
    Path, Parameter(name=["--output", "--output-dir", "-o"], metavar="DIR", help="New folder for the result.")
]
OutputFormat = Annotated[
    Literal["model", "delta"] | None,
    Parameter(
        name="--output-format",
        metavar="FORMAT",
        help="`model` writes a whole model (default), `delta` only what changed; see `export`.",
    ),
]
SeedArgument = Annotated[str | None, Parameter(metavar="N", help="Seed of everything random; 0 by default.")]
ResumeArgument = Annotated[
    Literal["auto", "must", "never"],
    Parameter(
        metavar="auto|must|never",
        help="Go on with the unfinished work of a killed command (auto), insist on it, or start again.",
    ),
]
AuditTier = Annotated[
    str | None,
    Parameter(metavar="off|quick|full", help="Attack the result and say what comes back; see `audit`."),
]
_SOURCE = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9_-]{0,63})=(?P<path>.+)$", re.DOTALL)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Say what to do; whatever is not given comes from the recipe, the environment or the defaults."""

    forget: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="[NAME=]FILE", help="Texts to forget: JSONL, text, parquet or hub data set. Repeatable."
        ),
    ] = ()
    retain: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="[NAME=]FILE", help="Texts to keep, or `self` to sample them from the model. Repeatable."
        ),
    ] = ()
    recipe: Annotated[Path | None, Parameter(metavar="YAML", help="Recipe file; see `init`.")] = None
    set: Annotated[
        tuple[str, ...],
        Parameter(metavar="KEY.PATH=VALUE", help="Change any setting of the recipe. Repeatable."),
    ] = ()
    method: Annotated[
        str | None, Parameter(metavar="NAME", help="Unlearning method, FALCON by default; see `methods`.")
    ] = None
    seed: SeedArgument = None
    max_utility_loss: Annotated[
        str | None,
        Parameter(
            metavar="SHARE",
            help="Utility budget: largest rise of the perplexity of held-out retain text; 0.05 is 5 %.",
        ),
    ] = None
    memory_limit: Annotated[
        str | None,
        Parameter(
            metavar="SIZE",
            help="Largest memory of the process, such as 6GiB; a larger model is read block by block.",
        ),
    ] = None

    def with_audit(self, tier: str | None) -> RecipeOptions:
        """Return the options with the tier of the audit set, if one is given."""
        return self if tier is None else replace(self, set=(*self.set, f"audit.tier={tier}"))

    def load(
        self, model: str | None, *, check: bool = True, output_format: str | None = None
    ) -> tuple[Recipe, str]:
        """Merge the flags with recipe and environment.

        Args:
            model: the positional argument.
            check: refuse local files that do not exist.
            output_format: `model` or `delta`; None leaves the setting.

        Returns:
            The recipe and the text as typed.
        """
        from falcon_unlearn.config.load import load_recipe
        from falcon_unlearn.config.preflight import check_files

        recipe_path = self.recipe
        if recipe_path is None and model is not None and model.lower().endswith((".yaml", ".yml")):
            recipe_path, model = Path(model), None
        overrides = {
            "model.name": model,
            "data.forget": corpora(self.forget, "forget") or None,
            "data.retain": corpora(self.retain, "retain") or None,
            "method": self.method,
            "seed": parse_seed(self.seed),
            "train.maximum_utility_loss": _parse_share(self.max_utility_loss),
            "runtime.memory_limit": self.memory_limit,
            "runtime.output_format": output_format,
        }
        recipe, typed = load_recipe(recipe_path, overrides, list(self.set))
        if check:
            check_files(recipe)
        return recipe, typed


def parse_seed(text: str | None) -> int | None:
    """Read a seed; the parser of the command line would round 1.5 silently.

    Raises:
        UsageError: `text` is not an integer.
    """
    from falcon_unlearn.errors import UsageError

    if text is None or re.fullmatch(r"-?[0-9]{1,18}", text):
        return None if text is None else int(text)
    raise UsageError(f"--seed: got {text[:40]!r}, an integer >= 0 is needed")


def _parse_share(text: str | None) -> float | None:
    from falcon_unlearn.errors import UsageError

    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise UsageError(f"--max-utility-loss: got {text!r}, a number such as 0.05 is needed") from error


def corpora(sources: tuple[str, ...], role: str) -> list[dict[str, Any]]:
    """Read `[NAME=]FILE` arguments; a file that exists under the whole text wins over the split."""
    from falcon_unlearn.config.paths import domain_name, exists

    result = []
    for source in sources:
        match = None if exists(source) else _SOURCE.match(source)
        path = os.path.expanduser(match["path"] if match else source)
        name = match["name"] if match else domain_name(path, role)
        result.append({"name": name, "path": path})
    return result


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DisplayOptions:
    """Say what is shown: the result on standard output, progress on standard error."""

    json: Annotated[bool, Parameter(help="Print the result as one JSON document.")] = False
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], help="Show no progress.")] = False
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Show every step.")] = False

    @contextmanager
    def progress(self) -> Iterator[EventSink]:
        """Yield the sink for the events of the pipeline."""
        from falcon_unlearn.cli.console import progress_sink
        from falcon_unlearn.cli.ranks import is_silent
        from falcon_unlearn.errors import UsageError

        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose exclude each other", hint="Keep one of the two.")
        with progress_sink(quiet=self.quiet or is_silent(), verbose=self.verbose) as sink:
            yield sink


DEFAULT_RECIPE = RecipeOptions()
DEFAULT_DISPLAY = DisplayOptions()
