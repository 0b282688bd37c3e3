"""The folder that a search writes: plan, supernet weights, and how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from spvit_deploy.core.errors import InputError, PlanError
from spvit_deploy.core.files import sha256_file, write_bytes
from spvit_deploy.core.output_folders import new_folder
from spvit_deploy.core.plan import GATES_FILE, ModelSpec, PrunePlan, load_plan, save_plan
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.records import StrictModel, check_files, load_record, write_record
from spvit_deploy.families import BlockSite, find_sites
from spvit_deploy.families.timm_models import (
    create_empty,
    create_model,
    create_shell,
    input_size,
    load_weights,
    read_state_dict,
)
from spvit_deploy.lean.cost import cost_table, count_cost
from spvit_deploy.lean.materialize import EXTRAS_PREFIX, check_plan, materialize_weights
from spvit_deploy.lean.model_folder import SavedModel, tool_versions
from spvit_deploy.lean.token_merging import insert_merges
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.search.width_alignment import Choice, align

RECORD_FILE = "search.json"
WEIGHTS_FILE = "supernet.safetensors"
_APART = "Its gates and weights are of two models: put back the gates that it was written with."


class SearchRecord(StrictModel):
    """``search.json``."""

    schema_version: Literal[1] = 1
    kind: Literal["search"] = "search"
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    data: str = ""
    sources: dict[str, str] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()


@dataclass
class SavedSearch:
    """A search folder, read and checked.

    Attributes:
        plan: the gates.
        record: preprocessing, classes and history.
        dense: supernet weights under timm's own names.
        extras: ``spvit.*``: head maps, BatchNorms, gate logits.
        digest: SHA-256 of ``search.json``.
    """

    plan: PrunePlan
    record: SearchRecord
    dense: dict[str, Tensor]
    extras: dict[str, Tensor]
    digest: str

    def dense_module(self) -> nn.Module:
        """The timm model with the supernet's weights."""
        module = create_shell(self.plan.model)
        load_weights(module, self.dense, WEIGHTS_FILE, _APART)
        return module

    def supernet(self) -> Supernet:
        """The supernet with its gates hard as planned, in evaluation mode."""
        module = create_model(self.plan.model)
        load_weights(module, self.dense, WEIGHTS_FILE, _APART)
        dilated = any(key.endswith(".dilation_logit") for key in self.extras)
        heads = any(key.endswith(".head_gate_logits") for key in self.extras)
        net = Supernet(
            module, self.plan.model, self.plan.semantics, dilated, heads, self.plan.token_keep
        )
        net.load_extras(self.extras)
        net.fix(self.plan)
        return net.eval()

    def aligned_plan(self, step: int) -> PrunePlan:
        """The plan at no higher cost, with MLP widths rounded to multiples of ``step``."""
        if step <= 1:
            return self.plan
        module = create_empty(self.plan.model)
        sites = find_sites(module, str(self.plan.model))
        sites = insert_merges(module, sites, self.plan.token_keep)
        table = cost_table(module, sites, input_size(module))
        units = [
            self.extras[f"{EXTRAS_PREFIX}{block.path}.unit_logits"].sigmoid().tolist()
            for block in self.plan.blocks
        ]
        choices = [
            Choice(block.attention, block.mlp_keep, block.heads_keep) for block in self.plan.blocks
        ]
        aligned = align(choices, units, table, table.of_plan(self.plan), step)
        blocks = tuple(
            block.model_copy(update={"mlp_keep": choice.keep})
            for block, choice in zip(self.plan.blocks, aligned, strict=True)
        )
        return self.plan.model_copy(update={"blocks": blocks})


def save_search(
    supernet: Supernet,
    plan: PrunePlan,
    record: SearchRecord,
    folder: Path,
    force: bool = False,
    beside: Sequence[Path] = (),
) -> None:
    """Write a search folder, whole or not at all.

    Args:
        supernet, plan, record: what was searched.
        folder: to write.
        force: replace an old one.
        beside: files that are copied into it.

    Raises:
        OutputExistsError, StorageError: as :func:`new_folder`.
    """
    with new_folder(folder, force) as staging:
        dense, extras = supernet.dense_and_extras()
        tensors = {k: v.detach().cpu().contiguous() for k, v in {**dense, **extras}.items()}
        write_bytes(staging / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))
        save_plan(plan, staging)
        for file in beside:
            write_bytes(staging / file.name, file.read_bytes())
        files = {name: sha256_file(staging / name) for name in (WEIGHTS_FILE, GATES_FILE)}
        full = record.model_copy(update={"files": files, "tools": tool_versions()})
        write_record(staging / RECORD_FILE, full.model_dump(mode="json"))


def is_search_folder(path: Path) -> bool:
    """Whether ``path`` looks like a search folder."""
    return (path / RECORD_FILE).is_file()


def load_search(folder: Path) -> SavedSearch:
    """Read a search folder.

    Raises:
        InputError: none.
        CorruptFileError: a file is missing, truncated or changed.
        PlanError: gates of an unknown version.
    """
    if not is_search_folder(folder):
        raise InputError(
            f"{folder}: not a search folder (no {RECORD_FILE}).",
            "`spvit-deploy inspect PATH` says what a path is.",
        )
    record = load_record(folder / RECORD_FILE, "search", SearchRecord, "Search again")
    plan = load_plan(folder)
    # Gates may be edited by hand; weights may not.
    check_files(folder, {k: v for k, v in record.files.items() if k != GATES_FILE})
    tensors = read_state_dict(folder / WEIGHTS_FILE)
    extras = {k: v for k, v in tensors.items() if k.startswith(EXTRAS_PREFIX)}
    dense = {k: v for k, v in tensors.items() if not k.startswith(EXTRAS_PREFIX)}
    return SavedSearch(plan, record, dense, extras, sha256_file(folder / RECORD_FILE))


def materialize_search(saved: SavedSearch, align: int = 1) -> SavedModel:
    """The lean model of a search folder.

    Args:
        saved: what was searched.
        align: MLP widths become multiples of this, chosen by gate probability.

    Raises:
        PlanError, CheckpointError: as :func:`materialize_weights`.
    """
    plan = saved.aligned_plan(align)
    module = materialize_weights(saved.dense_module(), saved.extras, plan)
    if plan.budget is not None:  # gates may have been edited since it was met
        macs = count_cost(module, saved.record.preprocessing.input_size).macs
        budget = plan.budget.model_copy(update={"met_macs": macs})
        plan = plan.model_copy(update={"budget": budget})
    return SavedModel(
        module=module,
        spec=plan.model,
        preprocessing=saved.record.preprocessing,
        class_names=saved.record.class_names,
        plan=plan,
        data=saved.record.data,
        sources={"search": saved.digest},
        history=(*saved.record.history, {"stage": "materialize", "align": align}),
    )


def materialize_plan(plan: PrunePlan, dense: SavedModel, digest: str, align: int = 1) -> SavedModel:
    """A lean model from gates and a dense model that never was a supernet.

    Convolutions start from a head map and BatchNorms that nobody trained: fine-tune the result.

    Args:
        plan: gates, for the dense model's blocks; its model's name and size give way to these.
        dense: the weights.
        digest: SHA-256 of what they were loaded from.
        align: as in :func:`materialize_search`.

    Raises:
        PlanError: gates of another model.
    """
    dilated = any(block.dilation > 1 for block in plan.blocks)
    net = Supernet(dense.module, dense.spec, plan.semantics, dilated, token_keep=plan.token_keep)
    check_plan(plan, net.sites)
    _check_same_blocks(plan, dense.spec, net.sites)
    plan = plan.model_copy(update={"model": dense.spec})
    weights, extras = net.dense_and_extras()
    for block in plan.blocks:
        kept = set(block.mlp_keep)
        key = f"{EXTRAS_PREFIX}{block.path}.unit_logits"
        extras[key] = torch.tensor([1.0 if i in kept else -1.0 for i in range(len(extras[key]))])
    record = SearchRecord(
        preprocessing=dense.preprocessing,
        class_names=dense.class_names,
        data=dense.data,
        history=dense.history,
    )
    saved = SavedSearch(plan, record, weights, extras, plan.digest)
    lean = materialize_search(saved, align)
    return replace(lean, sources={"gates": plan.digest, "checkpoint": digest})


def _check_same_blocks(plan: PrunePlan, spec: ModelSpec, sites: Sequence[BlockSite]) -> None:
    """Gates fit a model whose blocks are those that they were searched for, whatever its name."""
    searched = find_sites(create_empty(plan.model), str(plan.model))
    check_plan(plan, searched)
    for old, new in zip(searched, sites, strict=True):
        found = [(s.dim, s.heads, s.hidden) for s in (old, new)]
        if found[0] != found[1]:
            raise PlanError(
                f"The gates are for {plan.model}, whose {old.path} has (channels, heads, hidden "
                f"units) {found[0]}; that of {spec} has {found[1]}.",
                "Use the gates of this model.",
            )
