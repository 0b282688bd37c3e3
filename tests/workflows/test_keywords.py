"""The Python API: its names, its keyword arguments, and what it does with wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

import spvit_deploy
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
