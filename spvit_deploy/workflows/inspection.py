"""What a path, a model name or this host is."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
import torch

from spvit_deploy._version import __version__
from spvit_deploy.benchmarks.latency_tables.table import LatencyTable, load_latency
from spvit_deploy.benchmarks.results import load_results
from spvit_deploy.core.cuda_driver import describe_driver
from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.core.files import read_record, sha256_file
from spvit_deploy.core.plan import (
    GATES_FILE,
    AttentionKind,
    BlockPlan,
    ModelSpec,
    PrunePlan,
    load_plan,
)
from spvit_deploy.export.parity import ParityReport
from spvit_deploy.export.record import RECORD_FILE as EXPORT_FILE
from spvit_deploy.export.record import ExportRecord, TensorInfo, load_export
from spvit_deploy.families import BlockSite, inspect_family
from spvit_deploy.families.checkpoints import read_state_dict
from spvit_deploy.families.timm_models import create_empty, input_size
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import plan_costs
from spvit_deploy.lean.model_folder import CONFIG_FILE, folder_digest, load_saved
from spvit_deploy.lean.width_advice import advice
from spvit_deploy.runtimes.registry import artefact_format, read_metadata
from spvit_deploy.runtimes.tensorrt.engine_record import (
    SUFFIX,
    Engine,
    EngineRecord,
    find_engines,
    parse_record,
)
from spvit_deploy.search.search_folder import RECORD_FILE as SEARCH_FILE
from spvit_deploy.search.search_folder import load_search
from spvit_deploy.workflows.export_all import RECORD_FILE as EXPORTS_FILE


def inspect_anything(target: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Facts about one of our files or folders, a checkpoint, a timm model, or a file of ONNX,
    torch.export or ExecuTorch.

    Raises:
        InputError: damaged, or nothing that we know.
    """
    path = Path(target)
    if not path.exists():
        return _model(ModelSpec(name=target, args=model_args))
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == SUFFIX:
        (engine,) = find_engines(path)
        return {"kind": "engine", **_engine(engine.record), "sha256": engine.record.sha256}
    if path.suffix in (".pt2", ".pte", ".xml"):
        kind = artefact_format(path)
        return {"kind": kind, "sha256": sha256_file(path), **read_metadata(path)}
    if path.suffix == ".json":
        return _json(path)
    state = read_state_dict(path)
    return {
        "kind": "checkpoint",
        "tensors": len(state),
        "params": sum(tensor.numel() for tensor in state.values()),
        "sha256": sha256_file(path),
        "first": ", ".join(f"{k} {list(v.shape)}" for k, v in list(state.items())[:4]),
    }


def _model(spec: ModelSpec) -> dict[str, Any]:
    model = create_empty(spec)
    family, refusal = inspect_family(model)
    size = input_size(model)
    cost = count_cost(model, size)
    facts: dict[str, Any] = {
        "kind": "timm model",
        "model": str(spec),
        "class": type(model).__name__,
        "searchable": refusal is None,
        "family": family.name if family else None,
        "input": list(size),
        "macs": cost.macs,
        "params": cost.params,
    }
    if refusal is not None:
        facts["reason"] = f"{refusal.reason}. {refusal.hint}".strip()
    elif family is not None:
        sites = family.sites(model)
        first = sites[0]
        facts["heads"] = first.heads
        facts["mlp width"] = first.hidden
        facts["tokens"] = f"{first.grid[0]}×{first.grid[1]} grid + {first.prefix} prefix"
        facts["blocks"] = [_site(site) for site in sites]
    return facts


def _site(site: BlockSite) -> dict[str, Any]:
    return {
        "block": site.path,
        "can be": " ".join(kind.value for kind in site.kinds),
        "heads": site.heads,
        "mlp width": site.hidden or "not trimmed",
    }


def _folder(path: Path) -> dict[str, Any]:
    if (path / CONFIG_FILE).is_file():
        return _saved(path)
    if (path / SEARCH_FILE).is_file():
        saved = load_search(path)
        facts = {"kind": "search", "sha256": saved.digest, "data": saved.record.data}
        plan = _plan(saved.plan, saved.record.history)
        return {**facts, **plan, "classes": len(saved.record.class_names)}
    if (path / GATES_FILE).is_file():
        return {"kind": "gates", **_plan(load_plan(path))}
    if (path / EXPORT_FILE).is_file():
        record = load_export(path)
        engines = find_engines(path) if any(path.glob(f"*{SUFFIX}")) else ()
        return {
            "kind": "exported",
            **record.model_dump(
                mode="json", include={"format", "precision", "opset", "batch"}, exclude_none=True
            ),
            "model": f"{record.model} ({record.model_kind})",
            **({} if record.delegated is None else {"XNNPACK's share": round(record.delegated, 3)}),
            "macs": record.macs,
            "params": record.params,
            "input": _taken(record),
            "outputs": "; ".join(_tensor(tensor) for tensor in record.outputs),
            "classes": len(record.class_names) or "not named",
            "parity": [_parity(report) for report in record.parity],
            **({"engines": [_engine_row(engine) for engine in engines]} if engines else {}),
            "tools": record.tools,
            "files": record.files,
            "made from": record.parent,
        }
    if (path / EXPORTS_FILE).is_file():
        exports = read_record(path / EXPORTS_FILE, kind="exports")
        keys = ("format", "precision", "status", "folder", "size_bytes", "reason")
        rows = [{key: row.get(key, "") for key in keys} for row in exports.get("rows", [])]
        return {"kind": "exports", "model": exports.get("model", ""), "exports": rows}
    raise InputError(
        f"{path}: none of our folders (no {CONFIG_FILE}, {SEARCH_FILE} or {EXPORT_FILE}).",
        "Check the path.",
    )


def _engine(record: EngineRecord) -> dict[str, Any]:
    """What a sidecar says."""
    inputs, outputs = (
        "; ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in side.items())
        for side in (record.inputs, record.outputs)
    )
    return {
        "library": f"{record.library} {record.library_version}",
        "gpu": record.compute_capability,
        "precision": record.precision,
        "batches": _batches(record),
        "input": inputs,
        "outputs": outputs,
        "runs on": _runs_on(record),
        "refittable": record.refittable,
        "products": _percent(record.products),
        f"layers of the {record.layers_of}": _percent(record.layers),
        "made from": record.source_sha256,
    }


def _engine_row(engine: Engine) -> dict[str, Any]:
    record = engine.record
    return {
        "engine": engine.file.name,
        "gpu": record.compute_capability,
        "library": f"{record.library} {record.library_version}",
        "precision": record.precision,
        "batches": _batches(record),
    }


def _batches(record: EngineRecord) -> str:
    if record.largest == record.smallest:
        return str(record.smallest)
    return f"{record.smallest} to {record.largest}, best at {record.usual}"


def _runs_on(record: EngineRecord) -> str:
    gpu, library = record.compute_capability, f"{record.library} {record.library_version}"
    if record.hardware_compatible:
        gpu = "every GPU from sm80 on"
    if record.version_compatible:
        library += " and newer ones of the same major version"
    return f"{gpu}, with {library}"


def _percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{100 * share:.0f}% {name}" for name, share in shares.items())


def _parity(report: ParityReport) -> dict[str, Any]:
    return {
        "link": report.link,
        "images": report.samples,
        "max abs": f"{report.max_abs:.2e}",
        "cosine": round(report.cosine, 6),
        "top-1 %": round(100 * report.top1, 1),
    }


def _taken(record: ExportRecord) -> list[int] | str:
    """Size of the images that it takes; or that it takes pictures."""
    if record.inputs[0].shape[1:3] == (None, None):
        return f"uint8 pictures [batch, height, width, {record.inputs[0].shape[3]}]"
    return list(record.preprocessing.input_size)


def _tensor(tensor: TensorInfo) -> str:
    sizes = ", ".join("batch" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name} [{sizes}]"


def _saved(path: Path) -> dict[str, Any]:
    saved = load_saved(path)
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    facts: dict[str, Any] = {
        "kind": saved.kind,
        "model": str(saved.spec),
        "sha256": folder_digest(path),
        "input": list(saved.preprocessing.input_size),
        "classes": len(saved.class_names),
        "data": saved.data,
        "macs": cost.macs,
        "params": cost.params,
        "made from": saved.sources,
    }
    return {**facts, **_plan(saved.plan, saved.history)} if saved.plan else facts


def _plan(plan: PrunePlan, history: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": str(plan.model), "plan sha256": plan.digest}
    dense, lean = plan_costs(plan)
    facts |= {"macs": lean.macs, "dense macs": dense.macs}
    facts |= {"params": lean.params, "dense params": dense.params}
    if advice(plan, history):
        facts["widths"] = advice(plan, history)
    if plan.budget:
        facts["budget"] = {**plan.budget.model_dump(), "met_macs": lean.macs}
    if plan.token_keep:
        facts["token keep"] = ", ".join(map(str, plan.token_keep))
    dilated = any(block.dilation > 1 for block in plan.blocks)
    headless = any(block.heads_keep is not None for block in plan.blocks)
    facts["blocks"] = [
        {
            "block": b.path,
            "attention": b.attention.value,
            **({"dilation": b.dilation} if dilated else {}),
            **({"heads": _heads(b)} if headless else {}),
            "mlp width": len(b.mlp_keep),
        }
        for b in plan.blocks
    ]
    return facts


def _heads(block: BlockPlan) -> int | str:
    """Heads that are left, where there is attention."""
    return (block.heads or "all") if block.attention is AttentionKind.MSA else ""


def _onnx(path: Path) -> dict[str, Any]:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise CorruptFileError(f"{path}: damaged, or not ONNX.", "Get it again.") from error
    facts: dict[str, Any] = {
        "kind": "onnx",
        "sha256": sha256_file(path),
        "opset": model.opset_import[0].version if model.opset_import else None,
        "nodes": len(model.graph.node),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": "; ".join(_value(value) for value in model.graph.input),
        "outputs": "; ".join(_value(value) for value in model.graph.output),
        "params": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common(8)),
    }
    return {**facts, **{entry.key: entry.value for entry in model.metadata_props}}


def _value(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{sizes}]"


def _json(path: Path) -> dict[str, Any]:
    record = read_record(path)
    kind = record.get("kind")
    if kind == "gates":
        return {"kind": "gates", **_plan(load_plan(path))}
    if kind == "results":
        results = load_results(path)
        rows = [
            {"artefact": r.title, "runtime": r.runtime, "batch": r.workload.batch,
             "p50_ms": round(1000 * r.p50, 4), "flagged": r.flagged}
            for r in results.results
        ]  # fmt: skip
        return {"kind": "results", "created": str(results.created), "results": rows}
    if kind == "latency":
        return {"kind": "latency", "tables": [_times(t) for t in load_latency(path).tables]}
    if kind == "engine":
        return {"kind": "engine", **_engine(parse_record(path))}
    if path.name in (CONFIG_FILE, SEARCH_FILE, EXPORT_FILE):
        return _folder(path.parent)
    raise InputError(f"{path}: a JSON file that is none of ours.", "Check the path.")


def _times(table: LatencyTable) -> dict[str, Any]:
    costs = table.costs(sorted(table.paths))
    return {
        "model": str(table.model), "runtime": table.runtime, "precision": table.precision,
        "batch": table.batch, "threads": table.threads or "default", "device": table.device,
        "host": table.host.cpu, "created": table.created,
        "dense_ms": round(costs.dense / 1e6, 4), "least_ms": round(costs.least / 1e6, 4),
    }  # fmt: skip


_PACKAGES = {
    "torch": "", "torchvision": "", "timm": "", "onnx": "", "onnxruntime": "",
    "onnxscript": "", "onnxslim": "", "safetensors": "", "scikit-learn": "", "plotly": "",
    "openvino": "pip install 'spvit-deploy[openvino]'",
    "nncf": "pip install 'spvit-deploy[openvino]' (for int8 in OpenVINO)",
    "tensorrt-rtx": "pip install 'spvit-deploy[tensorrt-rtx]'",
    "tensorrt": "pip install 'spvit-deploy[tensorrt]'",
    "pycuda": "pip install pycuda (to run engines; compiled against CUDA's headers)",
    "executorch": "pip install 'spvit-deploy[executorch]'",
    "peft": "pip install 'spvit-deploy[adapters]' (for finetune --adapters)",
    "tritonclient": "pip install 'spvit-deploy[triton]'",
    "ray": "pip install 'spvit-deploy[sweep]'",
    "torch-pruning": "pip install 'spvit-deploy[bench]' (only to repeat the comparisons)",
}  # fmt: skip


def doctor() -> dict[str, Any]:
    """Runtimes, devices and versions of this host."""
    packages = [
        {"package": name, "version": _version(name) or "missing",
         "how to get it": "" if _version(name) else how or f"pip install {name}"}
        for name, how in _PACKAGES.items()
    ]  # fmt: skip
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "spvit-deploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu threads": torch.get_num_threads(),
        "cuda": ", ".join(cuda)
        or "no device (torch was built "
        + (f"for CUDA {torch.version.cuda})" if torch.version.cuda else "without CUDA)"),
        "cuda driver": describe_driver(),
        "mps": torch.backends.mps.is_available(),
        "onnxruntime providers": ", ".join(_providers()),
        "packages": packages,
    }


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return ["none: pip install onnxruntime"]
    return list(onnxruntime.get_available_providers())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
