"""The stages as functions. Paths in, folders out; the command line is a thin skin over these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spvit_deploy.benchmarks.evaluate import Evaluation, evaluate_artefact
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import ResultsFile, Workload
from spvit_deploy.benchmarks.runtimes import open_session
from spvit_deploy.data import Batches, DataSettings, open_batches
from spvit_deploy.device import pick_device
from spvit_deploy.errors import DataError, InputError, SpvitError
from spvit_deploy.export.calibration import Calibration
from spvit_deploy.export.exporting import (
    ExportJob,
    ExportSettings,
    OpenRunner,
    module_runner,
    run_export,
)
from spvit_deploy.export.formats import EngineFlags, EngineSettings, check_flags, find_format
from spvit_deploy.export.outputs import OutputChoice
from spvit_deploy.export.parity import (
    Array,
    OutputsRunner,
    ParityReport,
    compare,
    random_inputs,
    require,
)
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.export.timing_cache import check_file
from spvit_deploy.lean.folder import SavedModel, is_model_folder, load_saved, save_model
from spvit_deploy.lean.grain import advice
from spvit_deploy.lean.sight import BLIND, sees_images
from spvit_deploy.loading import ModelRequest, load_model
from spvit_deploy.models import Preprocessing
from spvit_deploy.plan import GATES_FILE, PrunePlan, load_plan, save_plan
from spvit_deploy.progress import warn
from spvit_deploy.search.finetuning import FinetuneSettings, finetune_model, top1
from spvit_deploy.search.folder import (
    SearchRecord,
    is_search_folder,
    load_search,
    materialize_plan,
    materialize_search,
    save_search,
)
from spvit_deploy.search.importing import import_lean, import_plan
from spvit_deploy.search.searching import SearchResult, SearchSettings, run_search
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.sources import open_source
from spvit_deploy.store import ensure_free, new_folder

Pathish = str | Path


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
) -> SearchResult:
    """Train a supernet and its gates (arXiv 2111.11802), and write a search folder.

    Args:
        model: timm name, or a dense folder.
        data: training data.
        output: folder to write.
        budget: ``50%`` of the dense MACs, or ``3.2G``; takes the place of the settings' own.
        model_args: arguments of ``timm.create_model``.
        checkpoint: dense weights, file or folder.
        pretrained: start from timm's pretrained weights.
        settings: see :class:`SearchSettings`.
        device: ``auto|cpu|cuda|cuda:N|mps``.
        force: replace an old output.

    Raises:
        InputError: a wrong model, checkpoint, budget or data, or an output that exists.
        JobError: training failed, or the disk is full.
    """
    target = Path(output)
    ensure_free(target, force)
    where = pick_device(device)
    chosen = (settings or SearchSettings()).model_copy(update={"budget": budget})
    torch.manual_seed(chosen.seed)
    request = _request(model, model_args, checkpoint, pretrained)
    saved, digest = load_model(request, _classes(_data(data)))
    if saved.kind != "dense":
        raise InputError(f"{model} is lean already.", "Search from a dense model.")
    supernet = Supernet(saved.module.to(where), saved.spec).to(where)
    batches = _open(data, saved, where, chosen.seed)
    result = run_search(supernet, batches, chosen)
    history = {
        "stage": "search",
        "data": batches.settings.spec,
        "settings": chosen.model_dump(),
        "loss": [round(loss, 5) for loss in result.loss],
        "gates_flipped_by_projection": result.projection.flipped,
    }
    plan = result.plan.model_copy(update={"sources": {"checkpoint": digest} if digest else {}})
    record = SearchRecord(
        preprocessing=_whole(saved.preprocessing, batches),
        class_names=batches.class_names or saved.class_names,
        data=batches.settings.spec,
        sources=plan.sources,
        history=(*saved.history, history),
    )
    save_search(supernet.cpu(), plan, record, target, force)
    return replace(result, plan=plan)


def _whole(prep: Preprocessing, batches: Batches) -> Preprocessing:
    return prep.model_copy(update={"crop_pct": 1.0}) if batches.whole else prep


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
    ensure_free(Path(output), force)
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
    _warn_if_blind(saved)
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
    ensure_free(target, force)
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
) -> SavedModel:
    """Train a lean folder, a dense folder or a timm model, with or without a teacher.

    Args:
        model: a folder, or a timm name.
        data: training data.
        output: folder to write.
        teacher: a dense or lean folder, or a timm name (pretrained), to distil from.
        model_args, checkpoint, pretrained: as in :func:`search_gates`, with a timm name.
        settings: see :class:`FinetuneSettings`.
        device: ``auto|cpu|cuda|cuda:N|mps``.
        force: replace an old output.

    Raises:
        InputError, JobError: as :func:`search_gates`.
    """
    target = Path(output)
    ensure_free(target, force)
    where = pick_device(device)
    chosen = settings or FinetuneSettings()
    torch.manual_seed(chosen.seed)
    request = _request(model, model_args, checkpoint, pretrained)
    saved, digest = load_model(request, _classes(_data(data)))
    taught = None
    sources = {"model": digest} if digest else {}
    if teacher is not None:
        is_folder = Path(teacher).exists()
        taught, sources["teacher"] = load_model(ModelRequest(teacher, pretrained=not is_folder))
    batches = _open(data, saved, where, chosen.seed)
    trained = finetune_model(saved, batches, chosen, taught, where)
    trained = replace(trained, sources=sources)
    if chosen.epochs:
        trained = _validated(trained, _data(data), where)
    save_model(trained, target, force)
    return trained


def _validated(saved: SavedModel, data: DataSettings, device: torch.device) -> SavedModel:
    """The model with its accuracy in its history, where there is a split to take it on."""
    try:
        batches = open_batches(data, saved.preprocessing, False, device, classes=saved.class_names)
    except DataError:
        return saved
    last = {**saved.history[-1], "top1": round(top1(saved.module.to(device), batches), 3)}
    return replace(saved, module=saved.module.cpu(), history=(*saved.history[:-1], last))


def export_model(
    model: str,
    output: Pathish,
    format: str = "onnx",
    precision: str = "fp32",
    batch: str | int = "dynamic",
    opset: int | None = None,
    data: DataSettings | str | None = None,
    model_args: dict[str, Any] | None = None,
    checkpoint: Pathish | None = None,
    pretrained: bool = False,
    force: bool = False,
    outputs: str | None = None,
    feature_layers: Sequence[int] | None = None,
    calibration: int = 300,
    max_drop: float | None = 1.0,
    gpus: Sequence[str] = (),
    profile: Sequence[int] = (1, 8, 32),
    engine_flags: EngineFlags | None = None,
) -> ExportRecord:
    """Export, and prove that the result answers as the model does.

    Args:
        model: a lean, dense or search folder, or a timm name. With a search folder the chain is
            proven link by link: hard gates against lean, lean against the artefact.
        output: folder to write.
        format: ``onnx``, ``openvino``, ``tensorrt-rtx``, ``tensorrt``, ``torch``, ``executorch``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, as far as the format has it.
        batch: ``dynamic``, or a fixed number of images.
        opset: ONNX operator set; None for the default.
        data: real images for the proof; None for those that the model was trained on.
        model_args, checkpoint, pretrained: as in :func:`search_gates`, with a timm name.
        force: replace an old output.
        outputs: ``logits``, ``features`` (maps [B, C, H, W] for dense prediction) or ``all``;
            None for what the model's own forward returns.
        feature_layers: whose features, as timm counts them; None for the last of every stage, or
            for four evenly spaced blocks of a model without stages.
        calibration: images that int8 is fitted on, from the training split.
        max_drop: points of top-1 that int8 may lose; layers return to fp32 until it holds. None
            for any loss.
        gpus: compute capabilities (``sm86``) that TensorRT for RTX builds engines for.
        profile: smallest, usual and largest batch of an engine with a dynamic one.
        engine_flags: timing cache and compatibility of TensorRT engines.

    Raises:
        ParityError: the answers differ; nothing is written.
        InputError, JobError: as :func:`search_gates`.
    """
    target = Path(output)
    ensure_free(target, force)
    layers = None if feature_layers is None else tuple(feature_layers)
    asked = OutputChoice(outputs, layers)
    chosen = ExportSettings(
        format, precision, str(batch), outputs=asked, engine=_engine(gpus, profile, engine_flags)
    )
    check_flags(format, chosen.engine.flags)
    find_format(format, precision).load()
    if opset is not None:
        chosen = replace(chosen, opset=opset)
    _ = chosen.fixed_batch
    earlier: tuple[ParityReport, ...] = ()
    if is_search_folder(Path(model)):
        saved, digest, earlier = _lean_of_search(Path(model))
    else:
        saved, digest = load_model(_request(model, model_args, checkpoint, pretrained))
    _warn_if_blind(saved)
    if saved.plan is not None and advice(saved.plan):
        warn(advice(saved.plan))
    real = _real_images(data or saved.data, saved.preprocessing, strict=data is not None)
    spec = data or saved.data

    def calibrate() -> Calibration:
        return _calibration(spec, saved, calibration, max_drop)

    job = ExportJob(saved, chosen, _open_runner(), real, calibrate, digest, earlier)
    return run_export(job, target, force)


def _warn_if_blind(saved: SavedModel) -> None:
    if saved.plan is not None and not sees_images(saved.module, saved.preprocessing.input_size):
        warn(f"{BLIND}.")


def _lean_of_search(folder: Path) -> tuple[SavedModel, str, tuple[ParityReport, ...]]:
    search = load_search(folder)
    saved = materialize_search(search)
    link = "hard gates → lean"
    inputs = random_inputs(saved.preprocessing.input_size, [1, 2])
    hard, lean = module_runner(search.supernet()), module_runner(saved.module)
    return saved, search.digest, (require(compare(link, hard, lean, inputs)),)


def _open_runner() -> OpenRunner:
    def open_artefact(file: Path, runtime: str) -> tuple[OutputsRunner, Callable[[], None]]:
        session = open_session(file, runtime)
        return session.run_all, session.close

    return open_artefact


def _real_images(data: DataSettings | str, prep: Preprocessing, strict: bool) -> Array:
    """Five photographs or validation images, [5, C, H, W]."""
    if data:
        with suppress(*(() if strict else (SpvitError,))):
            images, _ = next(iter(open_batches(_small(_data(data)), prep, train=False)))
            array: Array = images.numpy()
            return array
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from spvit_deploy.sources import Source

    photos = [(Image.fromarray(photo), 0) for photo in load_sample_images().images]
    source = Source(photos, (), False, len(photos))
    images, _ = next(iter(Batches(source, prep, DataSettings(spec="photographs"), train=False)))
    photographs: Array = images.numpy()
    return photographs


def _engine(
    gpus: Sequence[str], profile: Sequence[int], flags: EngineFlags | None
) -> EngineSettings:
    if len(profile) != 3 or not 0 < profile[0] <= profile[1] <= profile[2]:
        raise InputError(
            f"A profile of {list(profile)} is not understood.",
            "Give the smallest, the usual and the largest batch: 1,8,32.",
        )
    chosen = flags or EngineFlags()
    if chosen.timing_cache is not None:
        check_file(chosen.timing_cache)
    return EngineSettings(tuple(gpus), (profile[0], profile[1], profile[2]), chosen)


def _calibration(
    data: DataSettings | str, saved: SavedModel, count: int, max_drop: float | None
) -> Calibration:
    if not data:
        raise InputError("int8 is fitted on images.", "Give --data.")
    plain = _data(data).model_copy(update={"augment": "none"})
    train = open_batches(plain, saved.preprocessing, True, classes=saved.class_names)
    images: list[Array] = []
    for batch, _ in train:
        images += list(batch.numpy())
        if len(images) >= count:
            break
    valid = open_batches(plain, saved.preprocessing, False, classes=saved.class_names)

    def labelled() -> Iterator[tuple[Array, Array]]:
        for batch, labels in valid:
            yield batch.numpy(), labels.numpy()

    return Calibration(np.stack(images[:count]), labelled, max_drop)


def _small(data: DataSettings) -> DataSettings:
    return data.model_copy(update={"batch_size": 5, "workers": 0})


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
    return evaluate_artefact(Path(artefact), _data(data), runtime, device)


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


def _request(
    model: str,
    args: dict[str, Any] | None,
    checkpoint: Pathish | None,
    pretrained: bool,
) -> ModelRequest:
    weights = Path(checkpoint) if checkpoint is not None else None
    return ModelRequest(str(model), dict(args or {}), weights, pretrained)


def _data(data: DataSettings | str) -> DataSettings:
    return data if isinstance(data, DataSettings) else DataSettings(spec=data)


def _classes(data: DataSettings) -> int | None:
    return len(open_source(data, train=True).class_names) or None


def _open(data: DataSettings | str, saved: SavedModel, device: torch.device, seed: int) -> Batches:
    batches = open_batches(_data(data), saved.preprocessing, True, device, seed, saved.class_names)
    outputs = getattr(saved.module, "num_classes", None)
    if batches.class_names and outputs is not None and len(batches.class_names) > outputs:
        raise DataError(
            f"--data {batches.settings.spec} has {len(batches.class_names)} classes; the model "
            f"has {outputs} outputs.",
            f"Set --model-arg num_classes={len(batches.class_names)}.",
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
    "search_gates",
]
