"""Evaluation as a function: the accuracy of an artifact in its own runtime."""

from __future__ import annotations

from pathlib import Path

from spvit_deploy.benchmarks.evaluate import Evaluation, evaluate_artifact
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.workflows.keywords import Pathish


def evaluate(
    artifact: Pathish,
    data: DataSettings | str,
    runtime: str | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate a lean, dense or exported folder, or a file of one, on the validation split.

    Raises:
        InputError: The path is not an artifact, or the data do not fit it.
    """
    return evaluate_artifact(Path(artifact), DataSettings.of(data), runtime, device)
