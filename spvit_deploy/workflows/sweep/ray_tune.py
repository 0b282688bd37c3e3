"""Run trials on Ray Tune, which assigns processors and GPUs and retries what fails.

Tune's own state is not kept: a trial resumes from its folder.
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
    """Shows the progress of trials and reports their end; called by Tune."""

    bar: Bar
    retries: int
    ended: Callable[[str, str], None]
    reached: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune stores its callbacks, and a bar belongs to this process only."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Show the stage that began, or end a trial."""
        name, stage = trial.config["job"], result.get("stage")
        if stage in STAGES:
            self._advance(name, STAGES.index(stage), f"{name}: {stage}")
        if "reason" in result:
            self.reasons[name] = result["reason"]
        if "failed" in result:
            self._end(name, result["failed"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Show why a trial is retried."""
        self.bar.log(
            f"{trial.config['job']}: {self._reason(trial)} Trying again, "
            f"{trial.num_failures} of {self.retries}."
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """End a trial that has no retries left."""
        self._end(trial.config["job"], self._reason(trial))

    def _reason(self, trial: Any) -> str:
        """Return the reason that the trial reported before it failed, or else Ray's."""
        reported = self.reasons.pop(trial.config["job"], "")
        return reported or _ray_reason(Path(trial.error_file))

    def _end(self, name: str, failed: str) -> None:
        self._advance(name, len(STAGES), name)
        self.bar.log(f"{name}: failed: {failed}" if failed else f"{name}: finished")
        self.ended(name, failed)

    def _advance(self, name: str, stages: int, note: str) -> None:
        """Advance the bar, but not for stages that a retried trial passes again."""
        before = self.reached.get(name, 0)
        self.reached[name] = max(before, stages)
        self.bar.advance(self.reached[name] - before, note)


def tune_trials(
    jobs: Sequence[TrialJob],
    root: Path,
    each: Portion,
    retries: int,
    ended: Callable[[str, str], None],
) -> None:
    """Run trials in ``root``; one that fails does not stop the others.

    ``ended`` is called as each ends, with its budget and the reason of its failure, or "".
    """
    by_name = {job.budget: job for job in jobs}
    store = root / ".ray"
    shutil.rmtree(store, ignore_errors=True)
    work = tune.with_parameters(_work, jobs=by_name)
    try:
        with progress_bar("trials", len(jobs) * len(STAGES)) as bar:
            tune.Tuner(
                tune.with_resources(work, {"cpu": each.cpus, "gpu": each.gpus}),
                param_space={"job": tune.grid_search(list(by_name))},
                tune_config=tune.TuneConfig(max_concurrent_trials=each.concurrent),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(store.absolute()), verbose=0,
                    failure_config=tune.FailureConfig(max_failures=retries),
                    callbacks=[_Listener(bar, retries, ended)],
                ),
            ).fit()  # fmt: skip
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _work(config: dict[str, Any], jobs: dict[str, TrialJob]) -> None:
    """Run a trial in a process of Ray; errors that a retry would not fix are not raised."""
    try:
        run_trial(jobs[config["job"]], lambda stage: tune.report({"stage": stage}))
    except InputError as error:
        tune.report({"failed": str(error)})
    except JobError as error:
        tune.report({"reason": str(error)})
        raise
    else:
        tune.report({"failed": ""})


def _ray_reason(trace: Path) -> str:
    """Summarize Ray's trace of a trial that could not report its failure."""
    text = trace.read_text()
    if "worker process has died" in text or "actor died" in text:
        return "its process died: it was killed, or memory ran out."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed."
