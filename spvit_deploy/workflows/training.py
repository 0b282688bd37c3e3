"""Trainings as functions: from a model and data to a search folder, or a tuned model folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from spvit_deploy.core.distributed import Processes, first_process_only, join_processes
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.core.progress import warn
from spvit_deploy.data.batches import Batches, open_batches
from spvit_deploy.data.sources import open_source
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import (
    ModelRequest,
    SavedModel,
    check_request,
    load_model,
    save_model,
)
from spvit_deploy.search.candidates.token_merging import require_no_merges
from spvit_deploy.search.search import SearchResult, SearchSettings, run_search, supernet_of
from spvit_deploy.search.search_folder import SearchRecord, save_search
from spvit_deploy.training.distillation import check_teacher
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model, top1
from spvit_deploy.training.lora import require_peft
from spvit_deploy.training.run import RunSettings, check_run, open_run, run_inputs
from spvit_deploy.workflows.keywords import Pathish, TrainOptions, replace_fields, request_of
from spvit_deploy.workflows.latency_budget import find_latencies


class SearchOptions(TrainOptions, total=False):
    """Of the model to search, and fields of :class:`SearchSettings`."""

    budget: str
    budget_on: str
    budget_method: str
    cost_weight: float
    gate_lr: float | None
    sharpness: float
    probe: int | None
    align: int
    allow_host: bool
    stop_when_settled: int | None
    head_map: str
    dilated: bool
    head_gates: bool
    candidates: Sequence[str]
    token_keep: Any


def search_gates(
    model: Pathish,
    data: DataSettings | str,
    output: Pathish,
    settings: SearchSettings | None = None,
    *,
    run: RunSettings | None = None,
    teacher: Pathish | None = None,
    device: str = "auto",
    force: bool = False,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """Train a supernet and its gates (arXiv 2111.11802), and write a search folder.

    Args:
        model: timm name, or a dense folder.
        run: Checkpoints, resuming and logs.
        teacher: A dense or lean folder, or a timm name (pretrained), to distil from; without one,
            a ``distill_weight`` distils from the dense model itself.
        device: ``auto|cpu|cuda|cuda:N|mps``.
        force: Replace an old output, and the checkpoints of an old run.
        options: Fields of :class:`SearchSettings`, which take the place of those in ``settings``
            (``budget="50%"``, ``epochs=30``), and of a timm model.

    Raises:
        InputError: The model, weights, budget, data or options are wrong, or the output exists.
        JobError: The training failed, or the disk is full.
    """
    given: dict[str, Any] = {**options}
    request, target, run = request_of(model, given), Path(output), run or RunSettings()
    chosen = replace_fields(settings or SearchSettings(), given)
    requested = chosen.requested
    require_no_merges(requested, chosen.token_keep)
    reads = (model, request.checkpoint, requested.file, teacher)
    check_run(target, run, force, reads=reads)
    inputs = _load_inputs(request, data, device, chosen.seed)
    if inputs.saved.kind != "dense":
        raise InputError(f"{model} is lean already.", "Search from a dense model.")
    if not inputs.weights:
        warn(f"{model} has random weights; search from trained ones, or there is little to keep.")
    teaching, of_teacher = _load_teacher(chosen, teacher, inputs)
    batches, saved = inputs.open_training_split(chosen.seed), inputs.saved
    same = run_inputs("search", saved.spec, inputs.weights, batches, chosen)
    named = str(teacher) if teacher and chosen.distill_weight else None
    same["teacher"] = of_teacher or named
    with open_run(target, same, run, inputs.processes, inputs.device) as opened:
        latencies = find_latencies(chosen, saved, opened, inputs.device)
        supernet = supernet_of(saved.module, saved.spec, chosen).to(inputs.device)
        result = run_search(supernet, batches, chosen, latencies, opened, teaching)
        hashes = {"checkpoint": inputs.digest, "teacher": of_teacher}
        sources = {name: digest for name, digest in hashes.items() if digest}
        result = replace(result, plan=result.plan.model_copy(update={"sources": sources}))
        record = _search_record(result, chosen, saved, batches)
        with first_process_only(inputs.processes, inputs.device) as mine:
            if mine:
                save_search(supernet.cpu(), result.plan, record, target, force, opened.files)
    return result


def _load_teacher(
    settings: SearchSettings, teacher: Pathish | None, inputs: _TrainingInputs
) -> tuple[nn.Module | None, str]:
    """Load what a search distils from, frozen, and the SHA-256 of what it was loaded from.

    Without a name it is the dense model as the search starts from it, resumed or not.
    """
    if not settings.distill_weight:
        return None, ""
    found, digest = inputs.saved, ""
    if teacher is not None:
        with torch.random.fork_rng(devices=[]):  # its draws do not change those of the search
            found, digest = load_model(_teacher_request(teacher))
        check_teacher(inputs.saved, found)
    elif not inputs.weights:
        warn("the teacher is the dense model that the search starts from; its weights are random.")
    return copy.deepcopy(found.module).to(inputs.device).requires_grad_(False), digest


def _search_record(
    result: SearchResult, settings: SearchSettings, saved: SavedModel, batches: Batches
) -> SearchRecord:
    history = {
        "stage": "search",
        "data": batches.settings.spec,
        "settings": settings.model_dump(),
        "loss": [round(loss, 5) for loss in result.loss],
        "expected_cost": round(result.expected, 4),
        "gates_flipped_by_projection": result.projection.flipped,
    }
    prep = saved.preprocessing
    return SearchRecord(
        preprocessing=prep.model_copy(update={"crop_pct": 1.0}) if batches.no_crop else prep,
        candidates=settings.offered,
        class_names=batches.class_names or saved.class_names,
        data=batches.settings.spec,
        sources=result.plan.sources,
        history=(*saved.history, history),
    )


class FinetuneOptions(TrainOptions, total=False):
    """Of the model to train, and fields of :class:`FinetuneSettings`."""

    adapters: Any


def finetune(
    model: Pathish,
    data: DataSettings | str,
    output: Pathish,
    settings: FinetuneSettings | None = None,
    *,
    run: RunSettings | None = None,
    teacher: Pathish | None = None,
    device: str = "auto",
    force: bool = False,
    **options: Unpack[FinetuneOptions],
) -> SavedModel:
    """Train a lean folder, a dense folder or a timm model, with or without a teacher.

    Args:
        run, teacher, device, force: As in :func:`search_gates`.
        options: Fields of :class:`FinetuneSettings`, which take the place of those in ``settings``
            (``epochs=30``), and of a timm model.

    Raises:
        InputError: The model, weights, data or options are wrong, or the output exists.
        JobError: The training failed, or the disk is full.
    """
    given: dict[str, Any] = {**options}
    request, target, run = request_of(model, given), Path(output), run or RunSettings()
    chosen = replace_fields(settings or FinetuneSettings(), given)
    require_peft(chosen.adapters)
    check_run(target, run, force, reads=(model, request.checkpoint, teacher))
    if teacher is not None:
        check_request(_teacher_request(teacher))
    inputs = _load_inputs(request, data, device, chosen.seed)
    if chosen.adapters and not inputs.weights:
        warn(f"adapters leave the weights of {model} as they are, and these are random.")
    teaching, sources = None, {"model": inputs.digest} if inputs.digest else {}
    if teacher is not None:
        teaching, sources["teacher"] = load_model(_teacher_request(teacher))
        check_teacher(inputs.saved, teaching)
    batches = inputs.open_training_split(chosen.seed)
    same = run_inputs("finetune", inputs.saved.spec, inputs.weights, batches, chosen)
    same["teacher"] = sources.get("teacher") or (str(teacher) if teacher else None)
    with open_run(target, same, run, inputs.processes, inputs.device) as opened:
        trained = finetune_model(inputs.saved, batches, chosen, teaching, inputs.device, run=opened)
        trained = replace(trained, sources=sources)
        if chosen.epochs:
            trained = _with_accuracy(trained, inputs)
        with first_process_only(inputs.processes, inputs.device) as mine:
            if mine:
                save_model(trained, target, force, opened.files if chosen.epochs else ())
    return trained


def _with_accuracy(trained: SavedModel, inputs: _TrainingInputs) -> SavedModel:
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


@dataclass(frozen=True)
class _TrainingInputs:
    """A model to train on the CPU, its data, and the processes that share the training.

    Attributes:
        digest: SHA-256 of what it was loaded from; empty for random and timm's own weights.
        weights: The same, with a name for timm's own weights.
        device: That this process computes on.
    """

    saved: SavedModel
    digest: str
    weights: str
    data: DataSettings
    processes: Processes
    device: torch.device

    def open_training_split(self, seed: int) -> Batches:
        """Open the training split, if it has an image per process and no class without output."""
        rank, saved = self.processes.rank, self.saved
        batches = open_batches(
            self.data, saved.preprocessing, True, self.device, seed, saved.class_names, rank=rank
        )
        if batches.size is not None and batches.size < rank.world_size:
            raise DataError(
                f"--data {self.data.spec} has {batches.size} images for {rank.world_size} "
                "processes.",
                "Start fewer.",
            )
        outputs = getattr(saved.module, "num_classes", None)
        if outputs is not None and batches.classes > outputs:
            largest = batches.largest_label
            odd = f" ({largest()} is of class {batches.classes - 1})" if largest else ""
            raise DataError(
                f"--data {self.data.spec} has {batches.classes} classes{odd}; the model has "
                f"{outputs} outputs.",
                f"Set --model-arg num_classes={batches.classes}, or fix the labels.",
            )
        return batches


def _load_inputs(
    request: ModelRequest, data: DataSettings | str, device: str, seed: int
) -> _TrainingInputs:
    """Connect the processes, seed torch, and load the model, by name with an output per class."""
    processes, where = join_processes(device)
    torch.manual_seed(seed)
    images = DataSettings.of(data)
    classes = open_source(images, train=True).classes or None
    saved, digest = load_model(request, classes)
    weights = digest or ("timm's pretrained" if request.pretrained else "")
    return _TrainingInputs(saved, digest, weights, images, processes, where)


def _teacher_request(teacher: Pathish) -> ModelRequest:
    """Build the request for a teacher: a folder, or a timm name with its pretrained weights."""
    return ModelRequest(str(teacher), pretrained=not Path(teacher).exists())
