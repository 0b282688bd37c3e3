"""The folder that a search writes: plan, supernet weights and their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import InputError, PlanError
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.output_folders import new_folder
from spvit_deploy.core.plan import GATES_FILE, ModelSpec, PrunePlan, load_plan
from spvit_deploy.core.records import check_files, load_record
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty, create_model, create_shell, input_size
from spvit_deploy.lean.block_costs import cost_table
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import check_plan, materialize_weights
from spvit_deploy.lean.model_folder import FolderRecord, SavedModel, fill_folder, shared_fields
from spvit_deploy.lean.operations.base import EXTRAS_PREFIX
from spvit_deploy.search.candidates.registry import needed_by, offered_in
from spvit_deploy.search.candidates.token_merging import sites_with_merges
from spvit_deploy.search.choices import Choice, align
from spvit_deploy.search.supernet import Supernet

RECORD_FILE = "search.json"
WEIGHTS_FILE = "supernet.safetensors"
_APART = "Its gates and weights are of two models. Restore the gates that it was written with."


class SearchRecord(FolderRecord):
    """``search.json``; files from before :func:`find_candidates` name no candidates."""

    kind: Literal["search"] = "search"
    candidates: tuple[str, ...] | None = None


@dataclass
class SavedSearch:
    """A search folder, read and checked.

    Attributes:
        dense: Supernet weights under timm's own names.
        extras: ``spvit.*``: head maps, BatchNorms, gate logits.
        digest: SHA-256 of ``search.json``.
    """

    plan: PrunePlan
    record: SearchRecord
    dense: dict[str, Tensor]
    extras: dict[str, Tensor]
    digest: str

    def dense_module(self) -> nn.Module:
        """Build the timm model with the supernet's weights."""
        module = create_shell(self.plan.model)
        load_weights(module, self.dense, WEIGHTS_FILE, _APART)
        return module

    def supernet(self) -> Supernet:
        """Build the supernet with its gates fixed as planned, in evaluation mode."""
        module = create_model(self.plan.model)
        load_weights(module, self.dense, WEIGHTS_FILE, _APART)
        names, plan = self.record.candidates, self.plan
        offered = offered_in(list(self.extras)) if names is None else names
        net = Supernet(module, plan.model, plan.semantics, offered, plan.token_keep)
        net.load_extras(self.extras)
        net.fix(self.plan)
        return net.eval()

    def aligned_plan(self, step: int) -> PrunePlan:
        """Round the plan's MLP widths to multiples of ``step``, at no higher cost."""
        if step <= 1:
            return self.plan
        module = create_empty(self.plan.model)
        sites = sites_with_merges(module, self.plan.model, self.plan.token_keep)
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
    """Write a search folder atomically; files ``beside`` it are copied into it."""
    with new_folder(folder, force) as staging:
        dense, extras = supernet.dense_and_extras()
        state = {**dense, **extras}
        fill_folder(staging, record, RECORD_FILE, state, WEIGHTS_FILE, plan, beside)


def is_search_folder(path: Path) -> bool:
    """Whether ``path`` looks like a search folder."""
    return (path / RECORD_FILE).is_file()


def load_search(folder: Path) -> SavedSearch:
    """Read a search folder.

    Raises:
        InputError: It is not a search folder, or a file of it is missing or damaged.
    """
    if not is_search_folder(folder):
        raise InputError(
            f"{folder}: not a search folder (no {RECORD_FILE}).",
            "`spvit-deploy inspect PATH` shows what a path is.",
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
    """Build the lean model of a search folder; MLP widths become multiples of ``align``."""
    plan = saved.aligned_plan(align)
    module = materialize_weights(saved.dense_module(), saved.extras, plan)
    if plan.budget is not None:  # gates may have been edited since it was met
        macs = count_cost(module, saved.record.preprocessing.input_size).macs
        budget = plan.budget.model_copy(update={"met_macs": macs})
        plan = plan.model_copy(update={"budget": budget})
    lean = SavedModel(module=module, spec=plan.model, plan=plan, **shared_fields(saved.record))
    history = (*lean.history, {"stage": "materialize", "align": align})
    return replace(lean, sources={"search": saved.digest}, history=history)


def materialize_plan(plan: PrunePlan, dense: SavedModel, digest: str, align: int = 1) -> SavedModel:
    """Build a lean model from gates and a dense model that never was a supernet.

    Convolutions start from untrained head maps and BatchNorms: fine-tune the result. ``digest`` is
    the SHA-256 of what the dense model was loaded from.
    """
    offered = needed_by(plan.blocks)
    net = Supernet(dense.module, dense.spec, plan.semantics, offered, plan.token_keep)
    check_plan(plan, net.sites, net.candidates.operations)
    _check_same_blocks(plan, dense.spec, net.sites)
    plan = plan.model_copy(update={"model": dense.spec})
    weights, extras = net.dense_and_extras()
    for block in plan.blocks:
        kept = set(block.mlp_keep)
        key = f"{EXTRAS_PREFIX}{block.path}.unit_logits"
        extras[key] = torch.tensor([1.0 if i in kept else -1.0 for i in range(len(extras[key]))])
    record = SearchRecord(**shared_fields(dense))
    saved = SavedSearch(plan, record, weights, extras, plan.digest)
    lean = materialize_search(saved, align)
    return replace(lean, sources={"gates": plan.digest, "checkpoint": digest})


def _check_same_blocks(plan: PrunePlan, spec: ModelSpec, sites: Sequence[BlockSite]) -> None:
    """Refuse gates whose model has blocks of other sizes, whatever its name."""
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
