"""Facts about paths and model names for `inspect`, and about this host for `doctor`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import onnxruntime
import torch

from spvit_deploy._version import __version__
from spvit_deploy.benchmarks.latency_tables.table import LatencyTable, load_latency
from spvit_deploy.benchmarks.results import load_results
from spvit_deploy.core.devices import describe_driver
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.plan import GATES_FILE, AttentionKind, ModelSpec, PrunePlan, load_plan
from spvit_deploy.core.records import read_record
from spvit_deploy.export.record import RECORD_FILE as EXPORT_FILE
from spvit_deploy.export.record import load_export
from spvit_deploy.families.checkpoints import read_state_dict
from spvit_deploy.families.registry import inspect_family
from spvit_deploy.families.timm_models import create_empty, input_size
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import plan_costs
from spvit_deploy.lean.model_folder import CONFIG_FILE, folder_digest, load_saved
from spvit_deploy.lean.width_advice import advice
from spvit_deploy.runtimes.registry import (
    artifact_kind,
    installed,
    owner_of,
    read_metadata,
    runtimes,
    suffixes,
)
from spvit_deploy.search.search_folder import RECORD_FILE as SEARCH_FILE
from spvit_deploy.search.search_folder import load_search
from spvit_deploy.workflows.export_all import RECORD_FILE as EXPORTS_FILE

# Packages of no runtime, with what installs those that are not required.
_OTHERS = {
    "safetensors": "",
    "scikit-learn": "",
    "plotly": "",
    "pycuda": "pip install pycuda (to run engines; compiled against CUDA's headers)",
    "peft": "pip install 'spvit-deploy[adapters]' (for finetune --adapters)",
    "tritonclient": "pip install 'spvit-deploy[triton]'",
    "ray": "pip install 'spvit-deploy[sweep]'",
    "torch-pruning": "pip install 'spvit-deploy[bench]' (only to repeat the comparisons)",
}


def inspect_anything(target: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Collect facts about a file or folder of ours, a checkpoint, a timm model, or an artifact.

    Raises:
        InputError: It is damaged, or none of these.
    """
    path = Path(target)
    if not path.exists():
        return _model(ModelSpec(name=target, args=model_args))
    if path.is_dir():
        return _folder(path)
    if path.suffix in suffixes():
        return _artifact(path)
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


def _artifact(path: Path) -> dict[str, Any]:
    """Describe a file that a runtime opens."""
    return {"kind": artifact_kind(path), "sha256": sha256_file(path), **read_metadata(path)}


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
        facts |= {"heads": first.heads, "mlp width": first.hidden}
        facts["tokens"] = f"{first.grid[0]}×{first.grid[1]} grid + {first.prefix} prefix"
        facts["blocks"] = [
            {
                "block": site.path,
                "can be": " ".join(kind.value for kind in site.kinds),
                "heads": site.heads,
                "mlp width": site.hidden or "not trimmed",
            }
            for site in sites
        ]
    return facts


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
        return _exported(path)
    if (path / EXPORTS_FILE).is_file():
        exports = read_record(path / EXPORTS_FILE, kind="exports")
        keys = ("format", "precision", "status", "folder", "size_bytes", "reason")
        rows = [{key: row.get(key, "") for key in keys} for row in exports.get("rows", [])]
        return {"kind": "exports", "model": exports.get("model", ""), "exports": rows}
    raise InputError(
        f"{path}: not a folder of spvit-deploy (no {CONFIG_FILE}, {SEARCH_FILE} or {EXPORT_FILE}).",
        "Check the path.",
    )


def _exported(path: Path) -> dict[str, Any]:
    record = load_export(path)
    describe = owner_of(record.format).describe_folder
    named, shape = {"format", "precision", "opset", "batch"}, record.inputs[0].shape
    return {
        "kind": "exported",
        **record.model_dump(mode="json", include=named, exclude_none=True),
        "model": f"{record.model} ({record.model_kind})",
        **({} if record.delegated is None else {"delegated": round(record.delegated, 3)}),
        "macs": record.macs,
        "params": record.params,
        "input": f"uint8 images [batch, height, width, {shape[3]}]"
        if shape[1:3] == (None, None)
        else list(record.preprocessing.input_size),
        "outputs": "; ".join(
            f"{one.name} [{', '.join('batch' if n is None else str(n) for n in one.shape)}]"
            for one in record.outputs
        ),
        "classes": len(record.class_names) or "not named",
        "parity": [
            {
                "link": report.link,
                "images": report.samples,
                "max abs": f"{report.max_abs:.2e}",
                "cosine": round(report.cosine, 6),
                "top-1 %": round(100 * report.top1, 1),
            }
            for report in record.parity
        ],
        **(resolve_name(describe)(path) if describe else {}),
        "tools": record.tools,
        "files": record.files,
        "made from": record.parent,
    }


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
    if widths := advice(plan, history):
        facts["widths"] = widths
    if plan.budget:
        facts["budget"] = {**plan.budget.model_dump(), "met_macs": lean.macs}
    if plan.token_keep:
        facts["token keep"] = ", ".join(map(str, plan.token_keep))
    dilated = any(block.dilation > 1 for block in plan.blocks)
    headless = any(block.heads_keep is not None for block in plan.blocks)
    msa = AttentionKind.MSA
    heads = {b.path: (b.heads or "all") if b.attention is msa else "" for b in plan.blocks}
    facts["blocks"] = [
        {
            "block": b.path,
            "attention": b.attention.value,
            **({"dilation": b.dilation} if dilated else {}),
            **({"heads": heads[b.path]} if headless else {}),
            "mlp width": len(b.mlp_keep),
        }
        for b in plan.blocks
    ]
    return facts


def _json(path: Path) -> dict[str, Any]:
    record = read_record(path)
    kind = record.get("kind")
    if kind == "gates":
        return {"kind": kind, **_plan(load_plan(path))}
    if kind == "results":
        rows = [
            {"artefact": r.title, "runtime": r.runtime, "batch": r.workload.batch,
             "p50_ms": round(1000 * r.p50, 4), "flagged": r.flagged}
            for r in load_results(path).results
        ]  # fmt: skip
        return {"kind": kind, "created": record["created"], "results": rows}
    if kind == "latency":
        return {"kind": kind, "tables": [_times(t) for t in load_latency(path).tables]}
    if path.with_suffix("").suffix in suffixes():  # the record beside an artifact
        return _artifact(path.with_suffix(""))
    if path.name in (CONFIG_FILE, SEARCH_FILE, EXPORT_FILE):
        return _folder(path.parent)
    raise InputError(f"{path}: not a JSON file of spvit-deploy.", "Check the path.")


def _times(table: LatencyTable) -> dict[str, Any]:
    costs = table.costs(sorted(table.paths))
    return {
        "model": str(table.model), "runtime": table.runtime, "precision": table.precision,
        "batch": table.batch, "threads": table.threads or "default", "device": table.device,
        "host": table.host.cpu, "created": table.created,
        "dense_ms": round(costs.dense / 1e6, 4), "least_ms": round(costs.least / 1e6, 4),
    }  # fmt: skip


def doctor() -> dict[str, Any]:
    """List the runtimes, devices and versions of this host."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    infos = runtimes().values()
    needed = {
        name: info.install_command if info.extra else ""
        for info in infos
        for name in info.distributions
    }
    return {
        "spvit-deploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu threads": torch.get_num_threads(),
        "cuda": ", ".join(cuda) or f"no device (torch was built {built})",
        "cuda driver": describe_driver(),
        "mps": torch.backends.mps.is_available(),
        "onnxruntime providers": ", ".join(onnxruntime.get_available_providers()),
        "runtimes": [
            {
                "runtime": info.name,
                "writes": ", ".join(form.name for form in info.formats) or "nothing of its own",
                "opens": ", ".join(info.kinds),
                "available": "yes" if info.installed else info.install_command,
            }
            for info in infos
        ],
        "packages": [
            {
                "package": name,
                "version": installed(name) or "missing",
                "how to get it": "" if installed(name) else how or f"pip install {name}",
            }
            for name, how in {**needed, **_OTHERS}.items()
        ],
    }
