"""`search`: budgets, and models that cannot be searched."""

from __future__ import annotations

import json
from pathlib import Path

from spvit_deploy.core.records import read_record
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import good, refused


def test_the_budget_is_met_and_the_lean_model_has_no_gates(work: Path) -> None:
    plan = read_record(work / "search" / "gates.json")
    budget = plan["budget"]
    assert 0.99 * budget["asked_macs"] <= budget["met_macs"] <= budget["asked_macs"]
    facts = json.loads(good("inspect", work / "lean", "--json").stdout)
    assert facts["macs"] == budget["met_macs"]
    from spvit_deploy.families.checkpoints import read_state_dict

    keys = list(read_state_dict(work / "lean" / "model.safetensors"))
    assert not [key for key in keys if "gate" in key or "logits" in key or "spvit" in key]


def test_a_search_that_diverges_is_reported(tmp_path: Path) -> None:
    data = ["--data", "digits", "--epochs", 2, "--budget", "50%", "-o", tmp_path / "out"]
    refused("search", "--model", NAME, *TINY_ARGS, *data, "--lr", "1e10", code=1,
            error="Try a smaller --lr")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_unsupported_models(tmp_path: Path) -> None:
    budget = ["--data", "digits", "--budget", "50%", "-o", tmp_path / "out"]
    refused("search", "--model", "vit_tiny_patch16_225", *budget, error="vit_tiny_patch16_224")
    refused("search", "--model", "resnet18", *budget, error="no family takes a ResNet")
    odd = ["--model-arg", "depth=minus"]
    refused("search", "--model", NAME, *odd, *budget, error="timm cannot build")
    for typo, name in (("depht=6", "depth"), ("img_szie=32", "img_size")):
        refused("search", "--model", NAME, "--model-arg", typo, *budget,
                error=f"'{typo.partition('=')[0]}'. Did you mean {name}?")  # fmt: skip
    refused("search", "--model", NAME, "--model-arg", "q=1", *budget, error="Check the --model-arg")
    bad_heads = ["--model-arg", "num_heads=5"]
    refused("search", "--model", NAME, *bad_heads, *budget, error="timm cannot build")
    refused("export", "no/such/folder", "-o", tmp_path / "out", error="no such folder")
    assert list(tmp_path.iterdir()) == []


def test_budgets_that_cannot_be(tmp_path: Path) -> None:
    args = ["search", "--model", NAME, *TINY_ARGS, "--data", "digits", "-o", tmp_path / "out"]
    refused(*args, "--budget", "200%", error="above the dense model")
    refused(*args, "--budget", "lots", error="not understood")
    refused(
        *args,
        "--budget",
        "0.1%",
        error="below the smallest model",
    )
