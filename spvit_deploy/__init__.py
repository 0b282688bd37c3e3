"""From a trained Vision Transformer to the fastest engine that still answers right.

Importing this package loads no torch: each name is looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spvit_deploy._version import __version__

if TYPE_CHECKING:
    from spvit_deploy.workflows.export import export_model
    from spvit_deploy.workflows.latency_profile import merge_latencies, profile_latency
    from spvit_deploy.workflows.stages import (
        benchmark,
        evaluate,
        finetune,
        import_model,
        load_lean,
        materialize,
        predict,
        search_gates,
    )

__all__ = [
    "__version__",
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'spvit_deploy' has no attribute '{name}'")
    from spvit_deploy.workflows import stages as api

    return getattr(api, name)
