"""`inspect` and `doctor`."""

from __future__ import annotations

import json

from tests.helpers.calls import good


def test_inspect_of_model_names_and_doctor() -> None:
    facts = json.loads(good("inspect", "deit_small_patch16_224", "--json").stdout)
    assert facts["searchable"]
    assert round(facts["macs"] / 1e9, 1) == 4.6
    facts = json.loads(good("inspect", "convnext_atto", "--json").stdout)
    assert not facts["searchable"]
    assert "no family takes a ConvNeXt" in facts["reason"]
    text = good("doctor").stdout
    assert "onnxruntime" in text
    assert "pip install 'spvit-deploy[" in text
