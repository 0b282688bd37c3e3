"""Runs the pipeline of a recipe, stage by stage.

Each stage has a key: the hash of its settings and of what it reads. A stage whose key and
outputs match ``state.json`` is skipped, so an interrupted or changed run continues where needed;
an interrupted training continues from its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spvit_deploy._version import __version__
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import sha256_bytes, sha256_file
from spvit_deploy.core.locks import lock_folder
from spvit_deploy.core.output_folders import OUTPUT_KINDS, ensure_parent
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.core.records import read_record, write_record
from spvit_deploy.data.sources import fingerprint
from spvit_deploy.training.finetune import FinetuneSettings
from spvit_deploy.workflows import benchmark, report
from spvit_deploy.workflows import console as show
from spvit_deploy.workflows import stages as api
from spvit_deploy.workflows.recipe import Recipe, check_recipe, load_recipe

STATE_FILE = "state.json"


@dataclass
class Runner:
    """Runs stages and records which are done.

    Attributes:
        root: Folder of all results.
        force: Whether to run every stage again.
        ran: Names of the stages that ran; the others were skipped.
        begun: Called with the name of each stage before it runs or is skipped.
    """

    root: Path
    force: bool = False
    ran: list[str] = field(default_factory=list)
    begun: Callable[[str], None] = lambda _: None

    def stage(
        self, name: str, settings: Any, inputs: list[Path], output: Path, work: Callable[[], Any]
    ) -> Path:
        """Do ``work`` unless its key and output are unchanged."""
        self.begun(name)
        key = sha256_bytes(
            json.dumps(
                [__version__, name, settings, [digest_of(path) for path in inputs]],
                sort_keys=True,
                default=str,
            ).encode()
        )
        state = self._state()
        done = state.get(name, {})
        current = done.get("key") == key and done.get("output") == digest_of(output)
        if current and not self.force:
            stderr_console().print(f"{name}: unchanged, skipped", highlight=False)
            return output
        self.ran.append(name)
        work()
        state[name] = {"key": key, "output": digest_of(output)}
        write_record(self.root / STATE_FILE, {"kind": "state", "stages": state})
        return output

    def _state(self) -> dict[str, Any]:
        file = self.root / STATE_FILE
        if not file.is_file():
            return {}
        try:
            stages = read_record(file, kind="state").get("stages")
        except InputError as error:
            warn(f"{error.message} Every stage runs again.")
            return {}
        return stages if isinstance(stages, dict) else {}


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 of a file or an output folder; None if there is none."""
    for kind in OUTPUT_KINDS:
        if (path / kind.record).is_file():
            parts = sorted(file for file in path.iterdir() if file.is_file())
            return sha256_bytes("".join(sha256_file(part) for part in parts).encode())
    return sha256_file(path) if path.is_file() else None


def run_file(path: Path | None, force: bool = False) -> Runner:
    """Run a recipe file, by default ``recipe.yaml``.

    Raises:
        InputError: as :func:`load_recipe`.
        SpvitError: as the stages raise it.
    """
    return run_recipe(load_recipe(path or Path("recipe.yaml")), force)


def run_recipe(recipe: Recipe, force: bool = False, png: bool = False) -> Runner:
    """Run every stage whose settings or inputs changed, and print the summary."""
    check_recipe(recipe)
    root, images = Path(recipe.output), fingerprint(recipe.data)
    ensure_parent(root / STATE_FILE)
    root.mkdir(parents=True, exist_ok=True)
    with lock_folder(root):
        return _run(recipe, images, force, png)


def _run(recipe: Recipe, images: str, force: bool, png: bool) -> Runner:
    runner = Runner(Path(recipe.output), force)
    dense = dense_stage(runner, recipe, images)
    tuned = lean_stages(runner, recipe, images, dense)
    folders = {"dense": dense, "lean": tuned}
    engines = {name: export_stage(runner, recipe, name, path) for name, path in folders.items()}
    _measure(runner, recipe, folders, engines, png, images)
    return runner


def lean_stages(runner: Runner, recipe: Recipe, images: str, dense: Path) -> Path:
    """Search, materialize and fine-tune; the folder of the lean model."""
    root = runner.root
    search = runner.stage(
        "search", [recipe.search.model_dump(), images], [dense, *_profile(recipe)],
        root / "search",
        lambda: show.search(
            api.search_gates(
                str(dense), recipe.data, root / "search", recipe.search.budget,
                settings=recipe.search, device=recipe.device, force=True,
                run=recipe.run_settings(),
            ), root / "search", recipe.search.align,
        ),
    )  # fmt: skip
    lean = runner.stage(
        "materialize", None, [search], root / "lean",
        lambda: api.materialize(search, root / "lean", force=True),
    )  # fmt: skip
    return runner.stage(
        "finetune", [recipe.finetune.model_dump(), images], [lean, dense],
        root / "tuned",
        lambda: show.accuracy(
            api.finetune(
                str(lean), recipe.data, root / "tuned", str(dense), settings=recipe.finetune,
                device=recipe.device, force=True, run=recipe.run_settings(),
            ), root / "tuned",
        ),
    )  # fmt: skip


def _profile(recipe: Recipe) -> list[Path]:
    """The file of times that the budget is read from, if it is."""
    file = recipe.search.requested.file
    return [] if file is None else [file]


def dense_stage(runner: Runner, recipe: Recipe, images: str) -> Path:
    """Train, or take over, the dense model; ``images`` is the fingerprint of the data."""
    output, model = runner.root / "dense", recipe.model
    settings = recipe.train or FinetuneSettings(epochs=0)
    spec = ModelSpec(name=model.name, args=model.args)
    sources = [Path(model.checkpoint)] if model.checkpoint else []
    return runner.stage(
        "train", [settings.model_dump(), model.model_dump(), images], sources,
        output,
        lambda: show.accuracy(api.finetune(
            spec.name, recipe.data, output, model_args=spec.args, checkpoint=model.checkpoint,
            pretrained=model.pretrained, settings=settings, device=recipe.device, force=True,
            run=recipe.run_settings(),
        ), output),
    )  # fmt: skip


def export_stage(runner: Runner, recipe: Recipe, name: str, folder: Path) -> Path:
    """Export a model to ``FORMAT-NAME``."""
    output, asked = runner.root / f"{recipe.export.format}-{name}", recipe.export
    return runner.stage(
        f"export {name}", asked.model_dump(), [folder], output,
        lambda: show.export(
            api.export_model(
                str(folder), output, data=recipe.data, force=True, **asked.model_dump()
            ), output,
        ),
    )  # fmt: skip


def _measure(
    runner: Runner,
    recipe: Recipe,
    folders: dict[str, Path],
    engines: dict[str, Path],
    png: bool,
    images: str,
) -> None:
    root, asked = runner.root, recipe.benchmark
    artefacts = [*folders.values(), *engines.values()]
    results = runner.stage(
        "benchmark", [asked.model_dump(), images], artefacts,
        root / "results.json",
        lambda: benchmark.bench_to_file(
            artefacts, root / "results.json", True, recipe.data, runtimes=asked.runtimes,
            batches=asked.batches, duration=asked.duration, device=asked.device,
        ),
    )  # fmt: skip
    runner.stage(
        "report", png, [results, folders["lean"]], root / "report.html",
        lambda: report.report_to_file(
            [results], root / "report.html", folders["lean"], png, force=True,
            search=root / "search",
        ),
    )  # fmt: skip
    benchmark.print_summary(results)
    stderr_console().print(f"report: {root / 'report.html'}", highlight=False)
