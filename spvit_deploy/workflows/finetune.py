"""Fine-tuning as a function: from a model and data to a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spvit_deploy.core.distributed import first_process_only
from spvit_deploy.core.errors import DataError
from spvit_deploy.core.progress import warn
from spvit_deploy.data.batches import open_batches
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import SavedModel, check_request, load_model, save_model
from spvit_deploy.training.distillation import check_teacher
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model, top1
from spvit_deploy.training.lora import require_peft
from spvit_deploy.training.run import RunSettings, check_run, open_run, run_inputs
from spvit_deploy.workflows.keywords import Pathish, StageSettings, TrainOptions, replace_fields
from spvit_deploy.workflows.training_inputs import TrainingInputs, load_inputs, teacher_request

if TYPE_CHECKING:
    from typing_extensions import Unpack


class FinetuneOptions(TrainOptions, total=False):
    """Fields of :class:`StageSettings` and :class:`FinetuneSettings`."""

    adapters: Any


def finetune(
    model: Pathish,
    data: DataSettings | str,
    output: Pathish,
    settings: FinetuneSettings | None = None,
    *,
    run: RunSettings | None = None,
    **options: Unpack[FinetuneOptions],
) -> SavedModel:
    """Train a lean folder, a dense folder or a timm model, with or without a teacher.

    Args:
        run: Checkpoints, resuming and logs.
        options: Fields of :class:`FinetuneSettings`, which take the place of those in ``settings``
            (``epochs=30``), and of :class:`StageSettings` (``teacher``, ``model_args``,
            ``checkpoint``, ``pretrained``, ``device``, ``force``).

    Raises:
        InputError: The model, weights, data or options are wrong, or the output exists.
        JobError: The training failed, or the disk is full.
    """
    stage = replace_fields(StageSettings(), options, FinetuneSettings)
    chosen = replace_fields(settings or FinetuneSettings(), options, StageSettings)
    target, run = Path(output), run or RunSettings()
    require_peft(chosen.adapters)
    check_run(target, run, stage.force, reads=(model, stage.checkpoint, stage.teacher))
    if stage.teacher is not None:
        check_request(teacher_request(stage.teacher))
    inputs = load_inputs(model, data, stage, chosen.seed)
    if chosen.adapters and not inputs.weights:
        warn(f"adapters leave the weights of {model} as they are, and these are random.")
    teacher, sources = None, {"model": inputs.digest} if inputs.digest else {}
    if stage.teacher is not None:
        teacher, sources["teacher"] = load_model(teacher_request(stage.teacher))
        check_teacher(inputs.saved, teacher)
    batches = inputs.open_training_split(chosen.seed)
    same = run_inputs("finetune", inputs.saved.spec, inputs.weights, batches, chosen)
    same["teacher"] = sources.get("teacher") or (str(stage.teacher) if stage.teacher else None)
    with open_run(target, same, run, inputs.processes, inputs.device) as opened:
        trained = finetune_model(inputs.saved, batches, chosen, teacher, inputs.device, run=opened)
        trained = replace(trained, sources=sources)
        if chosen.epochs:
            trained = _with_accuracy(trained, inputs)
        with first_process_only(inputs.processes, inputs.device) as mine:
            if mine:
                save_model(trained, target, stage.force, opened.files if chosen.epochs else ())
    return trained


def _with_accuracy(trained: SavedModel, inputs: TrainingInputs) -> SavedModel:
    """Add the accuracy on the validation split to the history; a warning where there is none."""
    device, processes = inputs.device, inputs.processes
    try:
        batches = open_batches(
            inputs.data, trained.preprocessing, False, device,
            classes=trained.class_names, rank=processes.rank,
        )  # fmt: skip
    except DataError as error:
        warn(f"the accuracy was not measured: {error.message}")
        return trained
    accuracy = top1(trained.module.to(device), batches, processes)
    last = {**trained.history[-1], "top1": round(accuracy, 3)}
    return replace(trained, module=trained.module.cpu(), history=(*trained.history[:-1], last))
