"""Trainings in processes of their own, which can be killed; torch is loaded once for all."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def server() -> ForkServerContext:
    """Forks processes that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.helpers.training_processes", "spvit_deploy.workflows.training", "sklearn.datasets"]
    )
    return context


def start(work: Any, *args: Any) -> BaseProcess:
    process = server().Process(target=work, args=args)
    process.start()
    return process


def finish(work: Any, *args: Any) -> None:
    process = start(work, *args)
    process.join(120)
    assert process.exitcode == 0


def command(*parts: object) -> None:
    """The command line, whose exit code becomes that of the process."""
    import torch

    from spvit_deploy.cli.main import main

    torch.set_num_threads(1)
    main([str(part) for part in parts])


def finetune(model: Path, output: Path) -> None:
    """A quick training on digits, with a teacher: 4 epochs of 5 steps."""
    import torch

    from spvit_deploy.data.spec import DataSettings
    from spvit_deploy.training.finetune import FinetuneSettings
    from spvit_deploy.training.run import RunSettings
    from spvit_deploy.workflows.training import finetune as train

    torch.set_num_threads(1)
    train(
        str(model),
        DataSettings(spec="digits", batch_size=256),
        output,
        teacher=str(model),
        settings=FinetuneSettings(epochs=4, lr=2e-3),
        force=True,
        run=RunSettings(checkpoint_every="1", resume="auto"),
    )
