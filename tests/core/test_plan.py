"""`gates.json`: keys that came later leave the digests of older plans as they were."""

from __future__ import annotations

from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.core.records import record_digest


def test_a_plan_without_later_keys_keeps_its_digest() -> None:
    blocks = [{"path": "blocks.0", "attention": "conv3x3", "mlp_keep": [0, 2]}]
    old = {
        "schema_version": 1, "kind": "gates", "model": {"name": "vit", "args": {}},
        "blocks": blocks, "sources": {}, "budget": None,
        "semantics": {"head_temperature": 0.01, "kernel_order": "row-major"},
    }  # fmt: skip
    assert PrunePlan.model_validate(old).digest == record_digest(old)
    blocks[0]["dilation"] = 2
    assert PrunePlan.model_validate(old).digest == record_digest(old)
