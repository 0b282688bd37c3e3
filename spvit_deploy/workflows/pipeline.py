"""Runs the pipeline of a recipe, stage by stage, and that of the demo.

Each stage has a key: the hash of its settings and of what it reads. A stage whose key and
outputs match ``state.json`` is skipped, so an interrupted or changed run continues where needed;
an interrupted training continues from its last checkpoint.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spvit_deploy._version import __version__
from spvit_deploy.benchmarks.results import load_results
from spvit_deploy.core.errors import InputError, OutputExistsError
from spvit_deploy.core.files import sha256_bytes, sha256_file, write_bytes
from spvit_deploy.core.output_folders import OUTPUT_KINDS, ensure_parent, lock_folder
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.core.records import read_record, write_record
from spvit_deploy.data.sources import fingerprint
from spvit_deploy.training.finetune import FinetuneSettings
from spvit_deploy.workflows.benchmark import bench_to_file, report_to_file
from spvit_deploy.workflows.console import (
    print_accuracy,
    print_benchmark,
    print_export,
    print_search,
)
from spvit_deploy.workflows.export import export_model
from spvit_deploy.workflows.materialize import materialize
from spvit_deploy.workflows.recipe import TEMPLATE, Recipe, check_recipe, load_recipe
from spvit_deploy.workflows.training import finetune, search_gates

STATE_FILE = "state.json"
_BUDGET = re.compile(r"^(  budget: )\S+", re.MULTILINE)


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
            stderr_console().print(f"{name}: unchanged, skipped")
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
    """Run a recipe file, by default ``recipe.yaml``; errors as of its stages."""
    return run_recipe(load_recipe(path or Path("recipe.yaml")), force)


def run_recipe(recipe: Recipe, force: bool = False, png: bool = False) -> Runner:
    """Run every stage whose settings or inputs changed, and print the summary."""
    check_recipe(recipe)
    images, runner = fingerprint(recipe.data), Runner(Path(recipe.output), force)
    ensure_parent(runner.root / STATE_FILE)
    runner.root.mkdir(parents=True, exist_ok=True)
    with lock_folder(runner.root):
        dense = dense_stage(runner, recipe, images)
        tuned = lean_stages(runner, recipe, images, dense)
        engines = [
            export_stage(runner, recipe, name, folder)
            for name, folder in (("dense", dense), ("lean", tuned))
        ]
        _measure(runner, recipe, [dense, tuned, *engines], png, images)
    return runner


def lean_stages(runner: Runner, recipe: Recipe, images: str, dense: Path) -> Path:
    """Search, materialize and fine-tune; return the folder of the lean model."""
    root, run, device = runner.root, recipe.run_settings(), recipe.device
    search, lean, tuned = root / "search", root / "lean", root / "tuned"

    def do_search() -> None:
        found = search_gates(
            dense, recipe.data, search, recipe.search, run=run, device=device, force=True
        )
        print_search(found, search, recipe.search.align)

    def do_finetune() -> None:
        saved = finetune(
            lean, recipe.data, tuned, recipe.finetune, run=run, teacher=dense, device=device,
            force=True,
        )  # fmt: skip
        print_accuracy(saved, tuned)

    latencies = recipe.search.requested.file
    reads = [dense, *([] if latencies is None else [latencies])]
    runner.stage("search", [recipe.search.model_dump(), images], reads, search, do_search)
    runner.stage("materialize", None, [search], lean, lambda: materialize(search, lean, force=True))
    settings = [recipe.finetune.model_dump(), images]
    return runner.stage("finetune", settings, [lean, dense], tuned, do_finetune)


def dense_stage(runner: Runner, recipe: Recipe, images: str) -> Path:
    """Train, or take over, the dense model; ``images`` is the fingerprint of the data."""
    output, model = runner.root / "dense", recipe.model
    settings = recipe.train or FinetuneSettings(epochs=0)

    def do_train() -> None:
        saved = finetune(
            model.name, recipe.data, output, settings, run=recipe.run_settings(),
            model_args=model.args, checkpoint=model.checkpoint, pretrained=model.pretrained,
            device=recipe.device, force=True,
        )  # fmt: skip
        print_accuracy(saved, output)

    reads = [Path(model.checkpoint)] if model.checkpoint else []
    facts = [settings.model_dump(), model.model_dump(), images]
    return runner.stage("train", facts, reads, output, do_train)


def export_stage(runner: Runner, recipe: Recipe, name: str, folder: Path) -> Path:
    """Export a model to ``FORMAT-NAME``."""
    section = recipe.export.model_dump()
    output = runner.root / f"{recipe.export.format}-{name}"

    def do_export() -> None:
        print_export(export_model(folder, output, data=recipe.data, force=True, **section), output)

    return runner.stage(f"export {name}", section, [folder], output, do_export)


def _measure(runner: Runner, recipe: Recipe, artifacts: list[Path], png: bool, images: str) -> None:
    """Benchmark all models and engines, and write the report."""
    root, section = runner.root, recipe.benchmark.model_dump()
    results, page, lean = root / "results.json", root / "report.html", root / "tuned"
    runner.stage(
        "benchmark", [section, images], artifacts, results,
        lambda: bench_to_file(artifacts, results, True, recipe.data, **section),
    )  # fmt: skip
    runner.stage(
        "report", png, [results, lean], page,
        lambda: report_to_file([results], page, lean, png, force=True, search=root / "search"),
    )  # fmt: skip
    print_benchmark(load_results(results))
    stderr_console().print(f"report: {page}")


def demo_text(output: Path, budget: str) -> str:
    """Return the text of a demo's ``recipe.yaml``: the one in ``output``, or the template's.

    A recipe is a demo's if its settings are the template's, but for the budget: comments may
    differ, by a user's hand or in another version, and are kept.

    Raises:
        OutputExistsError: ``output`` contains something other than a demo.
    """
    file, text = output / "recipe.yaml", TEMPLATE.replace("output: run ", "output: .   ")
    if file.is_file() and _settings(file.read_text()) == _settings(text):
        text = file.read_text()
    elif output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputExistsError(f"{output} exists and is not a demo.", "Choose another -o.")
    return _BUDGET.sub(lambda line: line.group(1) + budget, text)


def _settings(recipe: str) -> Any:
    """Return the content of a recipe without its budget; None if it is not YAML."""
    try:
        return yaml.safe_load(_BUDGET.sub(r"\1x", recipe))
    except yaml.YAMLError:
        return None


def demo_recipe(output: Path, seed: int, budget: str = "50%") -> Recipe:
    """Return the recipe of ``run --init`` with this seed and budget, writing to ``output``."""
    content = yaml.safe_load(TEMPLATE)
    content["search"]["budget"] = budget
    content["output"] = str(output.absolute())
    for section in ("train", "search", "finetune"):
        content[section]["seed"] = seed
    return Recipe.model_validate(content)


def run_demo(output: Path, seed: int, png: bool, force: bool, budget: str) -> None:
    """Run the whole pipeline, or what an interrupted demo left; errors as :func:`demo_text`."""
    recipe_file, text = output / "recipe.yaml", demo_text(output, budget)
    ensure_parent(output)
    start = time.perf_counter()
    recipe = demo_recipe(output, seed, budget)
    write_bytes(recipe_file, text.encode())
    run_recipe(recipe, force, png)
    stderr_console().print(
        f"done in {time.perf_counter() - start:.0f} s; `spvit-deploy run {recipe_file}` repeats "
        "it with your own settings"
    )
