"""The trainer: unlearning in the manner of TRL, on a model and data sets that may be in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from falcon_unlearn.api.config import UnlearnConfig
from falcon_unlearn.api.datasets import MemoryData
from falcon_unlearn.api.hub import upload_folder
from falcon_unlearn.config.base import Settings
from falcon_unlearn.config.model import ModelSettings
from falcon_unlearn.errors import FalconError, UsageError
from falcon_unlearn.evaluation.sets import load_sets
from falcon_unlearn.events import Event, EventSink, TrainingStepped, ignore_events
from falcon_unlearn.models.access import LoadedModel, load_model, load_tokenizer, pick_device, wrap_model
from falcon_unlearn.models.engine import tensors_replaced
from falcon_unlearn.pipeline.evaluating import evaluate_in
from falcon_unlearn.pipeline.running import Stages, original_weights, train_in, write_evidence, write_model
from falcon_unlearn.pipeline.selecting import select_in
from falcon_unlearn.pipeline.separating import separate_sets
from falcon_unlearn.pipeline.workspace import Workspace, check_layer, fill_workspace, seeded, timed_stage
from falcon_unlearn.results import EvaluationResult, SelectionResult, TrainingResult
from falcon_unlearn.runs import check_output, public_name, staged_folder
from falcon_unlearn.training.session import Session


class UnlearnTrainer:
    """Select, unlearn, measure and save one model.

    All data are read and all settings checked when the trainer is made; the model is changed by `train` only,
    in place, and in nothing but its trained tensors.
    """

    def __init__(
        self,
        model: Any,
        args: UnlearnConfig | None = None,
        *,
        forget_dataset: Any,
        retain_dataset: Any,
        processing_class: Any | None = None,
        eval_sets: Any | None = None,
        sink: EventSink | None = None,
    ) -> None:
        """Read the data and load the model, unless it is loaded already.

        Args:
            model: Hub id, local folder, GGUF file, or a transformers causal language model.
            args: Settings.
            forget_dataset: A list of texts or of rows (text; question and answer; prompt and completion;
                messages), a `datasets.Dataset`, a path or hub id, or a mapping from names to these.
            retain_dataset: The same, or `self` to sample text from the model.
            processing_class: The tokenizer; loaded from where the model came from by default.
            eval_sets: Evaluation sets: mappings with name, role, kind and `items` (rows) or `path`.
            sink: Receives progress events; nothing is printed.

        Raises:
            FalconError: A setting, a data set or the model cannot be used; says which.
        """
        self.args = args or UnlearnConfig()
        name = _model_name(model)
        self._memory = MemoryData()
        forget = self._memory.add_corpora(forget_dataset, "forget")
        retain = self._memory.add_corpora(retain_dataset, "retain")
        sets = self._memory.add_evaluation_sets(eval_sets)
        self.recipe = self.args.to_recipe(name, forget=forget, retain=retain, evaluation_sets=sets)
        self._typed = self.args.typed_recipe(name, forget=forget, retain=retain, evaluation_sets=sets)
        self._memory.load_all(self.recipe.data)
        self._sets = load_sets(
            self.recipe.evaluation, seed=self.recipe.seed, read=self._memory.evaluation_rows
        )
        self._remarks = separate_sets(self.recipe, self._sets, self._memory.load)
        if self.args.output_dir is not None:
            check_output(Path(self.args.output_dir))
        self._has_own_tokenizer = processing_class is not None
        self._loaded = _load(model, self.recipe.model, self.recipe.runtime.device, processing_class)
        check_layer(self.recipe, self._loaded.structure.num_blocks)
        self._sink = _thinned(sink or ignore_events, self.args.logging_steps)
        self._seconds: dict[str, float] = {}
        self._workspace: Workspace | None = None
        self._selection: SelectionResult | None = None
        self._session: Session | None = None
        self._before: EvaluationResult | None = None
        self._after: EvaluationResult | None = None
        self._saved: Path | None = None

    @property
    def model(self) -> Any:
        """The model; after `train` it holds the result."""
        return self._loaded.model

    @property
    def processing_class(self) -> Any:
        """The tokenizer."""
        return self._loaded.tokenizer

    def select(self) -> SelectionResult:
        """Choose the loss layer (step 1); `train` uses the result, and does this itself where it must.

        Raises:
            FalconError: The data or the activations cannot be used.
        """
        if self._selection is None:
            with self._running() as workspace, TemporaryDirectory(prefix="falcon-") as scratch:
                self._selection = select_in(workspace, self.recipe, self._sink, self._seconds, Path(scratch))
        return self._selection

    def train(self) -> TrainingResult:
        """Unlearn (steps 2 and 3): the trained tensors of the model hold the result, in their own dtype.

        Raises:
            UsageError: This trainer has trained before.
            FalconError: The run diverged; the model holds its original tensors again.
        """
        if self._session is not None:
            raise UsageError(
                "this trainer has trained already",
                hint="Make a new UnlearnTrainer; the model as it is now is its starting point.",
            )
        with self._running() as workspace, TemporaryDirectory(prefix="falcon-") as scratch:
            self._selection, self._session = train_in(
                workspace, self.recipe, self._sink, self._seconds, Path(scratch), self._selection
            )
        return self._session.result

    def evaluate(self) -> EvaluationResult:
        """Measure the model on the evaluation sets and the held-out texts.

        After `train`, the divergence from the original is measured too, and so is the original itself where
        `evaluate` was not called before: a number after means nothing without the number before.

        Raises:
            FalconError: A set cannot be used, or the model's outputs are not finite.
        """
        with self._running() as workspace:
            if self._session is None:
                self._before = self._measure(workspace, trained=False)
                return self._before
            if self._before is None:
                with tensors_replaced(self.model, self._session.original):
                    self._before = self._measure(workspace, trained=False)
            self._after = self._measure(workspace, trained=True)
            return self._after

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        """Write a folder that `from_pretrained` loads, with records and report in `falcon/`; return its path.

        Args:
            output_dir: New folder; `args.output_dir` by default.

        Raises:
            UsageError: Nothing was trained yet, no folder was named, or it is in use.
            PrerequisiteError: The disk is full.
        """
        session = self._require_session("save")
        workspace = self._workspace
        chosen = output_dir if output_dir is not None else self.args.output_dir
        if chosen is None or workspace is None:
            raise UsageError("no output folder: give save_model(FOLDER) or UnlearnConfig(output_dir=FOLDER)")
        target = check_output(Path(chosen))
        stages = Stages(self.select(), session, self._before, self._after)
        with staged_folder(target) as staging:
            with timed_stage("write", "writing the model", self._sink, self._seconds):
                write_model(staging, workspace, session, self.recipe.runtime, self._sink)
                if self._has_own_tokenizer:
                    self.processing_class.save_pretrained(staging)
            with timed_stage("report", "writing the report", self._sink, self._seconds):
                write_evidence(
                    staging,
                    workspace,
                    self.recipe,
                    stages,
                    typed=self._typed,
                    command=self._command(),
                    seconds=self._seconds,
                )
        self._saved = target
        return target

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Upload the saved folder, or what `save_model` would write, to the hub and return its address.

        Args:
            repo_id: OWNER/NAME, created where it does not exist.
            private: Visibility of a repository that is created.

        Raises:
            UsageError: Nothing was trained yet, or `repo_id` is not a name.
            PrerequisiteError: The hub cannot be reached, or refused.
        """
        self._require_session("upload")
        if self._saved is not None and self._saved.is_dir():
            return upload_folder(self._saved, repo_id, private=private)
        with TemporaryDirectory(prefix="falcon-") as folder:
            saved = self.save_model(Path(folder) / "model")
            try:
                return upload_folder(saved, repo_id, private=private)
            finally:
                self._saved = None

    @contextmanager
    def _running(self) -> Iterator[Workspace]:
        """Prepare the data on first use; seed everything, and put the model at rest meanwhile."""
        with model_at_rest(self.model), seeded(self.recipe.seed, self.recipe.runtime.threads):
            if self._workspace is None:
                self._workspace = fill_workspace(
                    self._loaded,
                    self.recipe,
                    self._sink,
                    self._seconds,
                    self._memory.load,
                    self._remarks,
                )
            yield self._workspace

    def _measure(self, workspace: Workspace, *, trained: bool) -> EvaluationResult:
        original = original_weights(workspace, self._session) if trained and self._session else None
        return evaluate_in(
            workspace,
            self.recipe,
            "after" if trained else "before",
            self._sets,
            original,
            self._sink,
            self._seconds,
        )

    def _require_session(self, purpose: str) -> Session:
        if self._session is None:
            raise UsageError(
                f"nothing was trained yet, so there is nothing to {purpose}", hint="Call train() first."
            )
        return self._session

    def _command(self) -> str:
        """Return the Python expression that repeats the run, given the same data sets."""
        # Groups may hold local paths; they stand in falcon/recipe.yaml.
        shown = {
            n: "..." if isinstance(v, Mapping | Settings) else repr(v) for n, v in self.args.given().items()
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        model = public_name(self.recipe.model.name)
        return (
            f"UnlearnTrainer({model!r}, UnlearnConfig({settings}), "
            "forget_dataset=..., retain_dataset=...).train()"
        )


@contextmanager
def model_at_rest(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode without gradients meanwhile, and restore modes and flags."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def _model_name(model: Any) -> str:
    if isinstance(model, str | Path):
        return str(model)
    if not hasattr(model, "named_parameters") or not hasattr(model, "config"):
        raise UsageError(
            f"model: got {type(model).__name__}",
            hint="Give a hub id, a local folder, a GGUF file or a transformers causal language model.",
        )
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def _load(model: Any, settings: ModelSettings, device: str, tokenizer: Any | None) -> LoadedModel:
    if isinstance(model, str | Path):
        loaded = load_model(settings, pick_device(device))
        return loaded if tokenizer is None else replace(loaded, tokenizer=tokenizer)
    if tokenizer is None:
        try:
            tokenizer = load_tokenizer(settings)
        except FalconError as error:
            raise UsageError(
                f"processing_class: none was given, and none was found beside the model: {error.message}",
                hint="Pass processing_class=TOKENIZER.",
            ) from error
    return wrap_model(model, tokenizer, settings.name, None)


def _thinned(sink: EventSink, every: int) -> EventSink:
    """Pass every n-th training step and the last; all other events pass."""

    def forward(event: Event) -> None:
        if not isinstance(event, TrainingStepped) or event.step % every == 0 or event.step == event.total:
            sink(event)

    return forward
