"""Trials on Ray Tune, which shares out processors and GPUs and repeats what fails.

Tune keeps no state that is needed again: a trial's own folder tells how far it came.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.workflows.sweep.ray_cluster import Portion
from spvit_deploy.workflows.sweep.trial import STAGES, TrialJob, run_trial


@dataclass(eq=False)
class _Listener(tune.Callback):  # type: ignore[misc]
    """Follows the trials; Tune calls it."""

    bar: Bar
    retries: int
    ended: Callable[[str, str], None]
    reached: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks on disk, and a bar is of this process alone."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A stage began, or the trial is done."""
        name, stage = trial.config["job"], result.get("stage")
        if stage in STAGES:
            self._advance(name, STAGES.index(stage), f"{name}: {stage}")
        if "reason" in result:
            self.reasons[name] = result["reason"]
        if "failed" in result:
            self._end(name, result["failed"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """It failed, and will be tried again."""
        self.bar.log(
            f"{trial.config['job']}: {self._reason(trial)} Trying again, "
            f"{trial.num_failures} of {self.retries}."
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """It failed for the last time."""
        self._end(trial.config["job"], self._reason(trial))

    def _reason(self, trial: Any) -> str:
        """What the trial said before it failed, or else what Ray says of it."""
        said = self.reasons.pop(trial.config["job"], "")
        return said or _died(Path(trial.error_file))

    def _end(self, name: str, failed: str) -> None:
        self._advance(name, len(STAGES), name)
        self.bar.log(f"{name}: failed: {failed}" if failed else f"{name}: finished")
        self.ended(name, failed)

    def _advance(self, name: str, stages: int, note: str) -> None:
        """A trial that is tried again passes its first stages a second time."""
        more = stages - self.reached.get(name, 0)
        if more > 0:
            self.reached[name] = stages
        self.bar.advance(max(0, more), note)


def tune_trials(
    jobs: Sequence[TrialJob],
    root: Path,
    share: Portion,
    retries: int,
    ended: Callable[[str, str], None],
) -> None:
    """Run trials; one that fails does not stop the others.

    Args:
        jobs: what is left to do.
        root: the sweep's folder.
        share: what each gets.
        retries: how often a trial that failed is tried again.
        ended: told the budget and the reason of its failure, or nothing, as each ends.
    """
    by_name = {job.budget: job for job in jobs}
    store = root / ".ray"
    shutil.rmtree(store, ignore_errors=True)
    work = tune.with_parameters(_work, jobs=by_name)
    try:
        with progress_bar("trials", len(jobs) * len(STAGES)) as bar:
            tune.Tuner(
                tune.with_resources(work, {"cpu": share.cpus, "gpu": share.gpus}),
                param_space={"job": tune.grid_search(list(by_name))},
                tune_config=tune.TuneConfig(max_concurrent_trials=share.concurrent),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(store.absolute()), verbose=0,
                    failure_config=tune.FailureConfig(max_failures=retries),
                    callbacks=[_Listener(bar, retries, ended)],
                ),
            ).fit()  # fmt: skip
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _work(config: dict[str, Any], jobs: dict[str, TrialJob]) -> None:
    """In a process of Ray: the trial. What no repetition mends is reported, and not raised."""
    try:
        run_trial(jobs[config["job"]], lambda stage: tune.report({"stage": stage}))
    except InputError as error:
        tune.report({"failed": str(error)})
    except JobError as error:
        tune.report({"reason": str(error)})
        raise
    else:
        tune.report({"failed": ""})


def _died(trace: Path) -> str:
    """One line of a failure that the trial could not tell."""
    text = trace.read_text()
    if "worker process has died" in text or "actor died" in text:
        return "its process died: it was killed, or memory ran out."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed."
