"""The Python API: its names, its keyword arguments, and what it does with wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

import spvit_deploy
import spvit_deploy as sp
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.errors import InputError
from spvit_deploy.search.search import SearchSettings
from spvit_deploy.training.finetune import FinetuneSettings
from spvit_deploy.workflows.benchmark import WorkloadOptions
from spvit_deploy.workflows.keywords import ModelOptions, replace_fields
from spvit_deploy.workflows.latency_profile import ProfileOptions, ProfileSettings
from spvit_deploy.workflows.training import FinetuneOptions, SearchOptions
from tests.conftest import NAME


def test_every_public_name_is_found() -> None:
    assert "predict" in spvit_deploy.__all__
    for name in spvit_deploy.__all__:
        assert getattr(spvit_deploy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'predicts'"):
        spvit_deploy.predicts  # noqa: B018


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (SearchOptions, SearchSettings),
        (FinetuneOptions, FinetuneSettings),
        (ProfileOptions, ProfileSettings),
        (WorkloadOptions, Workload),
    ],
)
def test_typed_keywords_are_the_fields_of_the_settings(
    options: type, settings: type[BaseModel]
) -> None:
    of_model = set(ModelOptions.__annotations__)
    assert set(options.__annotations__) - of_model == set(settings.model_fields)
    assert options is WorkloadOptions or of_model < set(options.__annotations__)


def test_keywords_take_the_place_of_fields() -> None:
    settings = SearchSettings(budget="30%", epochs=2)
    found = replace_fields(settings, {"epochs": 5})
    assert (found.budget, found.epochs) == ("30%", 5)
    assert replace_fields(settings, {"token_keep": "0.7@3"}).token_keep[0].after == 3


def test_wrong_keywords_are_named_with_the_nearest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"argument 'epoch'. Did you mean epochs?"):
        spvit_deploy.finetune(NAME, "digits", out, epoch=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"argument 'bugdet'. Did you mean budget?"):
        spvit_deploy.search_gates(NAME, "digits", out, bugdet="50%")  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"argument 'durration'. Did you mean duration?"):
        spvit_deploy.benchmark([out], durration=5)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"epochs: Input should be greater than or equal to 0."):
        spvit_deploy.finetune(NAME, "digits", out, epochs=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda model, out: sp.export_model(model, out, precison="fp16"), "mean precision"),
        (lambda model, out: sp.export_model(model, out, opset=99), "opset: .* less than or equal"),
        (lambda model, out: sp.export_model(model, out, calibration=0), "calibration: .* greater"),
        (lambda model, out: sp.export_model(model, out, max_drop="x"), "max_drop: .* valid number"),
        (lambda model, out: sp.export_model(model, out, batch=0), "'dynamic' or a positive"),
        (lambda model, out: sp.export_model(model, out, data=5), "data: expected a spec"),
        (lambda model, out: sp.export_model(model, out, {"opset": 18}), "settings: expected Exp"),
        (lambda _, out: sp.export_model(None, out), "the model: expected str"),
        (lambda model, out: sp.finetune(model, 5, out), "data: expected a spec"),
        (lambda model, out: sp.finetune(model, "digits", out, {"lr": 1}), "settings: expected"),
        (lambda _, out: sp.finetune(NAME, "digits", out, model_args=[1]), "model_args: expected"),
        (lambda model, out: sp.finetune(model, "digits", out, device=5), "--device 5: expected"),
        (lambda model, _: sp.evaluate(model, None), "data: expected a spec"),
        (lambda model, out: sp.materialize(model, out, align=-1), "align -1: expected a positive"),
        (lambda model, _: sp.predict(model, "nowhere.png"), "nowhere.png: no such file"),
        (lambda model, _: sp.predict(model, [], top=0), "top 0: expected a positive"),
        (lambda _model, _out: sp.benchmark([]), "no artifacts"),
    ],
)  # fmt: skip
def test_wrong_values_of_the_python_api_are_input_errors(
    call: Callable[[Path, Path], object], error: str, dense_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        call(dense_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())
