"""From a trained Vision Transformer to the fastest engine whose outputs match.

This is the public API. Importing it loads no torch: each function is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spvit_deploy._version import __version__

if TYPE_CHECKING:
    from spvit_deploy.workflows.benchmark import benchmark, evaluate
    from spvit_deploy.workflows.export import export_model
    from spvit_deploy.workflows.latency_profile import merge_latencies, profile_latency
    from spvit_deploy.workflows.materialize import import_model, load_lean, materialize
    from spvit_deploy.workflows.predict import predict
    from spvit_deploy.workflows.training import finetune, search_gates

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
# Modules of `workflows` whose name is not that of their function.
_MODULES = {
    "evaluate": "benchmark",
    "export_model": "export",
    "finetune": "training",
    "import_model": "materialize",
    "load_lean": "materialize",
    "merge_latencies": "latency_profile",
    "profile_latency": "latency_profile",
    "search_gates": "training",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'spvit_deploy' has no attribute '{name}'")
    module = f"spvit_deploy.workflows.{_MODULES.get(name, name)}"
    return getattr(importlib.import_module(module), name)
