"""The stages as functions. Paths in, folders out; the command line is a thin skin over these."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spvit_deploy.benchmarks.evaluate import Evaluation, evaluate_artifact
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import ResultsFile, Workload
from spvit_deploy.core.distributed import Processes, first_process_only, join_processes
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.core.output_folders import ensure_free, new_folder
from spvit_deploy.core.plan import GATES_FILE, PrunePlan, load_plan, save_plan
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.progress import warn
from spvit_deploy.data.batches import Batches, open_batches
from spvit_deploy.data.sources import open_source
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.load_model import ModelRequest, check_request, load_model
from spvit_deploy.lean.model_folder import SavedModel, is_model_folder, load_saved, save_model
from spvit_deploy.search.candidates.token_merging import require_no_merges
from spvit_deploy.search.published.import_model import import_lean, import_plan
from spvit_deploy.search.search import SearchResult, SearchSettings, run_search, supernet_of
from spvit_deploy.search.search_folder import (
    SearchRecord,
    is_search_folder,
    load_search,
    materialize_plan,
    materialize_search,
    save_search,
)
from spvit_deploy.training.distillation import check_teacher
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model, top1
from spvit_deploy.training.lora import require_peft
from spvit_deploy.training.run import RunSettings, check_run, open_run, run_inputs
from spvit_deploy.workflows.export import Pathish, export_model
from spvit_deploy.workflows.export_inputs import warn_if_constant
from spvit_deploy.workflows.latency_budget import times_of_run
from spvit_deploy.workflows.latency_profile import merge_latencies, profile_latency
from spvit_deploy.workflows.predict import Prediction, predict_images


def search_gates(
    model: str,
    data: DataSettings | str,
    output: Pathish,
    budget: str = "50%",
    model_args: dict[str, Any] | None = None,
    checkpoint: Pathish | None = None,
    pretrained: bool = False,
    settings: SearchSettings | None = None,
    device: str = "auto",
    force: bool = False,
    run: RunSettings | None = None,
    teacher: str | None = None,
) -> SearchResult:
    """Train a supernet and its gates (arXiv 2111.11802), and write a search folder.

    Args:
        model: timm name, or a dense folder.
        data: training data.
        output: folder to write.
        budget: ``50%`` of the dense MACs, or ``3.2G``; ``4ms@openvino`` or ``70%@onnxruntime``,
            with ``:FILE`` for times of :func:`profile_latency`, which are measured first
            otherwise; takes the place of the settings' own.
        model_args: arguments of ``timm.create_model``.
        checkpoint: dense weights, file or folder.
        pretrained: start from timm's pretrained weights.
        settings: see :class:`SearchSettings`.
        device: ``auto|cpu|cuda|cuda:N|mps``.
        force: replace an old output, and start again where a run was cut short.
        run: checkpoints, resuming and logs; see :class:`RunSettings`.
        teacher: where the settings' ``distill_weight`` is not 0, what to distil from, as in
            :func:`finetune`; None for the dense model that the search starts from.

    Raises:
        InputError: a wrong model, checkpoint, budget or data, or an output that exists.
        JobError: training failed, or the disk is full.
    """
    target, run = Path(output), run or RunSettings()
    chosen = (settings or SearchSettings()).model_copy(update={"budget": budget})
    asked = chosen.requested
    require_no_merges(asked, chosen.token_keep)
    check_run(target, run, force, reads=(model, checkpoint, asked.file, teacher))
    processes, where = join_processes(device)
    torch.manual_seed(chosen.seed)
    request = ModelRequest.of(model, model_args, checkpoint, pretrained)
    saved, digest = load_model(request, _classes(DataSettings.of(data)))
    if saved.kind != "dense":
        raise InputError(f"{model} is lean already.", "Search from a dense model.")
    if not (digest or pretrained):
        warn(f"{model} has random weights; search from trained ones, or there is little to keep.")
    taught: nn.Module | None = None
    of_teacher = ""
    if chosen.distill_weight:
        taught, of_teacher = _teacher(teacher, saved, bool(digest or pretrained), where)
    batches = _open(data, saved, where, chosen.seed, processes)
    same = run_inputs("search", saved.spec, digest or _origin(pretrained), batches, chosen)
    same["teacher"] = of_teacher or (teacher if chosen.distill_weight else None)
    with open_run(target, same, run, processes, where) as opened:
        times = times_of_run(chosen, saved, opened, where)
        supernet = supernet_of(saved.module.to(where), saved.spec, chosen)
        result = run_search(supernet.to(where), batches, chosen, times, opened, taught)
        hashes = {"checkpoint": digest, "teacher": of_teacher}
        sources = {name: found for name, found in hashes.items() if found}
        result = replace(result, plan=result.plan.model_copy(update={"sources": sources}))
        record = _search_record(result, chosen, saved, batches)
        with first_process_only(processes, where) as mine:
            if mine:
                save_search(supernet.cpu(), result.plan, record, target, force, opened.files)
    return result


def _origin(pretrained: bool) -> str:
    """Name weights that have no hash, for :func:`run_inputs`."""
    return "timm's pretrained" if pretrained else ""


def _teacher(
    teacher: str | None, saved: SavedModel, trained: bool, device: torch.device
) -> tuple[nn.Module, str]:
    """What a search distils from, frozen, and the SHA-256 of what it was loaded from.

    Without a name it is the dense model as the search starts from it, resumed or not.
    """
    found, digest = saved, ""
    if teacher is not None:
        with torch.random.fork_rng(devices=[]):  # what it draws is no part of the search
            found, digest = load_model(_teaching(teacher))
        check_teacher(saved, found)
    elif not trained:
        warn("the teacher is the dense model that the search starts from; its weights are random.")
    return copy.deepcopy(found.module).to(device).requires_grad_(False), digest


def _teaching(teacher: str) -> ModelRequest:
    """A teacher as a user names it: a folder, or a timm name with its pretrained weights."""
    return ModelRequest(teacher, pretrained=not Path(teacher).exists())


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
    return SearchRecord(
        preprocessing=_whole(saved.preprocessing, batches),
        candidates=settings.offered,
        class_names=batches.class_names or saved.class_names,
        data=batches.settings.spec,
        sources=result.plan.sources,
        history=(*saved.history, history),
    )


def _whole(prep: Preprocessing, batches: Batches) -> Preprocessing:
    return prep.model_copy(update={"crop_pct": 1.0}) if batches.no_crop else prep


def materialize(
    search: Pathish,
    output: Pathish,
    align: int = 1,
    force: bool = False,
    checkpoint: Pathish | None = None,
    pretrained: bool = False,
) -> SavedModel:
    """Turn a search folder, or gates and dense weights, into a lean folder without gates.

    Args:
        search: folder of :func:`search_gates`, or a ``gates.json``, or a folder with one.
        output: lean folder to write.
        align: MLP widths become multiples of this, chosen by gate probability.
        force: replace an old output.
        checkpoint: dense weights, file or folder, for gates alone. Convolutions then start from
            a head map that nobody trained: fine-tune the result.
        pretrained: take timm's pretrained weights instead.

    Raises:
        InputError: neither, damaged, or gates that do not fit.
        JobError: the disk is full.
    """
    ensure_free(Path(output), force, reads=(search, checkpoint))
    source = Path(search)
    with_weights = checkpoint is not None or pretrained
    if is_search_folder(source):
        if with_weights:
            raise InputError(
                f"{source} holds weights of its own; --checkpoint and --pretrained do not apply.",
                "Leave them out, or name its gates.json.",
            )
        saved = materialize_search(load_search(source), align)
    else:
        saved = _from_gates(source, checkpoint, pretrained, align)
    warn_if_constant(saved)
    save_model(saved, Path(output), force)
    return saved


def _from_gates(
    source: Path, checkpoint: Pathish | None, pretrained: bool, align: int
) -> SavedModel:
    if source.is_dir() and not (source / GATES_FILE).is_file():
        raise InputError(
            f"{source}: not a search folder, and it has no {GATES_FILE}.",
            "`spvit-deploy inspect PATH` says what a path is.",
        )
    if is_model_folder(source):
        raise InputError(f"{source} is a model already.", "Name a search folder, or a gates.json.")
    plan = load_plan(source)
    if checkpoint is None and not pretrained:
        raise InputError(
            f"{source} holds gates alone.", "Give the dense weights with --checkpoint."
        )
    if checkpoint is not None and is_model_folder(Path(checkpoint)):
        dense, digest = load_model(ModelRequest(str(checkpoint)))
        if dense.kind != "dense":
            raise InputError(f"{checkpoint} is lean already.", "Give dense weights.")
    else:
        weights = Path(checkpoint) if checkpoint is not None else None
        request = ModelRequest(plan.model.name, dict(plan.model.args), weights, pretrained)
        dense, digest = load_model(request)
    return materialize_plan(plan, dense, digest, align)


def import_model(
    config: Pathish,
    output: Pathish,
    gates: Pathish | None = None,
    checkpoint: Pathish | None = None,
    force: bool = False,
) -> SavedModel | PrunePlan:
    """Import what SPViT's authors publish.

    Args:
        config: DeiT's JSON or Swin's YAML, of a fine-tuning run.
        output: with a checkpoint the lean folder to write, else a folder for ``gates.json``.
        gates: FFN indicator file; None for the one that the config names, beside it.
        checkpoint: fine-tuned or "optimized" weights.
        force: replace an old output.

    Raises:
        InputError: files that are missing, damaged, or of different models.
        JobError: the disk is full.
    """
    target = Path(output)
    ensure_free(target, force, reads=(config, gates, checkpoint))
    indicators = Path(gates) if gates is not None else None
    if checkpoint is None:
        plan = import_plan(Path(config), indicators)
        with new_folder(target, force) as staging:
            save_plan(plan, staging)
        return plan
    saved = import_lean(Path(config), indicators, Path(checkpoint))
    save_model(saved, target, force)
    return saved


def finetune(
    model: str,
    data: DataSettings | str,
    output: Pathish,
    teacher: str | None = None,
    model_args: dict[str, Any] | None = None,
    checkpoint: Pathish | None = None,
    pretrained: bool = False,
    settings: FinetuneSettings | None = None,
    device: str = "auto",
    force: bool = False,
    run: RunSettings | None = None,
) -> SavedModel:
    """Train a lean folder, a dense folder or a timm model, with or without a teacher.

    Args:
        model: a folder, or a timm name.
        data: training data.
        output: folder to write.
        teacher: a dense or lean folder, or a timm name (pretrained), to distil from.
        model_args, checkpoint, pretrained: as in :func:`search_gates`, with a timm name.
        settings: see :class:`FinetuneSettings`.
        device, force, run: as in :func:`search_gates`.

    Raises:
        InputError, JobError: as :func:`search_gates`.
    """
    target, run = Path(output), run or RunSettings()
    chosen = settings or FinetuneSettings()
    require_peft(chosen.adapters)
    check_run(target, run, force, reads=(model, checkpoint, teacher))
    processes, where = join_processes(device)
    torch.manual_seed(chosen.seed)
    request = ModelRequest.of(model, model_args, checkpoint, pretrained)
    teaching = None
    if teacher is not None:
        teaching = _teaching(teacher)
        check_request(teaching)
    saved, digest = load_model(request, _classes(DataSettings.of(data)))
    if chosen.adapters and not digest and not pretrained:
        warn(f"adapters leave the weights of {model} as they are, and these are random.")
    taught = None
    sources = {"model": digest} if digest else {}
    if teaching is not None:
        taught, sources["teacher"] = load_model(teaching)
        check_teacher(saved, taught)
    batches = _open(data, saved, where, chosen.seed, processes)
    asked = run_inputs("finetune", saved.spec, digest or _origin(pretrained), batches, chosen)
    asked["teacher"] = sources.get("teacher") or teacher
    with open_run(target, asked, run, processes, where) as opened:
        trained = finetune_model(saved, batches, chosen, taught, where, run=opened)
        trained = replace(trained, sources=sources)
        if chosen.epochs:
            trained = _validated(trained, DataSettings.of(data), where, processes)
        with first_process_only(processes, where) as mine:
            if mine:
                save_model(trained, target, force, opened.files if chosen.epochs else ())
    return trained


def _validated(
    saved: SavedModel, data: DataSettings, device: torch.device, processes: Processes
) -> SavedModel:
    """The model with its accuracy in its history, where there is a split to take it on."""
    try:
        batches = open_batches(
            data, saved.preprocessing, False, device,
            classes=saved.class_names, rank=processes.rank,
        )  # fmt: skip
    except DataError as error:
        warn(f"no accuracy was taken: {error.message}")
        return saved
    accuracy = top1(saved.module.to(device), batches, processes)
    last = {**saved.history[-1], "top1": round(accuracy, 3)}
    return replace(saved, module=saved.module.cpu(), history=(*saved.history[:-1], last))


def evaluate(
    artefact: Pathish,
    data: DataSettings | str,
    runtime: str | None = None,
    device: str = "auto",
) -> Evaluation:
    """Accuracy of a lean, dense or exported folder in its own runtime.

    Raises:
        InputError: nothing that can be evaluated, or data that do not fit.
    """
    return evaluate_artifact(Path(artefact), DataSettings.of(data), runtime, device)


def predict(
    artefact: Pathish,
    images: Sequence[Pathish],
    top: int = 5,
    runtime: str | None = None,
    device: str = "auto",
) -> list[Prediction]:
    """Classes of image files, and of all below folders; see :func:`predict_images`.

    Raises:
        InputError: a file or folder that is not there, or an artefact without class scores.
    """
    names = [str(image) for image in images]
    return list(predict_images(Path(artefact), names, top, runtime=runtime, device=device))


def benchmark(
    artefacts: Sequence[Pathish],
    runtimes: Sequence[str] | None = None,
    workloads: Sequence[Workload] | None = None,
    device: str = "cpu",
) -> ResultsFile:
    """Latency of every artefact on every runtime that takes it, interleaved.

    Raises:
        InputError: a runtime that is not here, or takes none of the artefacts.
    """
    paths = [Path(artefact) for artefact in artefacts]
    return run_benchmark(paths, runtimes, workloads or [Workload()], device)


def load_lean(path: Pathish) -> nn.Module:
    """The network of a lean (or dense) folder, in evaluation mode on the CPU.

    Takes images [B, C, H, W], normalized as the folder's ``config.json`` says; gives scores.
    The dense weights behind a lean folder are not needed.

    Raises:
        InputError: no such folder, or damaged.
    """
    return load_saved(Path(path)).module


def _classes(data: DataSettings) -> int | None:
    return open_source(data, train=True).classes or None


def _open(
    data: DataSettings | str,
    saved: SavedModel,
    device: torch.device,
    seed: int,
    processes: Processes,
) -> Batches:
    batches = open_batches(
        DataSettings.of(data), saved.preprocessing, True, device, seed, saved.class_names,
        rank=processes.rank,
    )  # fmt: skip
    if batches.size is not None and batches.size < processes.rank.world_size:
        raise DataError(
            f"--data {batches.settings.spec} has {batches.size} images for "
            f"{processes.rank.world_size} processes.",
            "Start fewer.",
        )
    outputs = getattr(saved.module, "num_classes", None)
    if outputs is not None and batches.classes > outputs:
        largest = batches.largest_label
        odd = f" ({largest()} is of class {batches.classes - 1})" if largest else ""
        raise DataError(
            f"--data {batches.settings.spec} has {batches.classes} classes{odd}; the model "
            f"has {outputs} outputs.",
            f"Set --model-arg num_classes={batches.classes}, or mend the labels.",
        )
    return batches


__all__ = [
    "benchmark",
    "evaluate",
    "export_model",
    "finetune",
    "import_model",
    "load_lean",
    "materialize",
    "merge_latencies",
    "predict",
    "profile_latency",
    "search_gates",
]
