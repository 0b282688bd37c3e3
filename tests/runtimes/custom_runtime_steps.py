"""Steps of test_custom_runtime.py, in one process in which the toy runtime is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from spvit_deploy.runtimes.info import RuntimeInfo
from spvit_deploy.runtimes.registry import runtimes
from spvit_deploy.workflows.recommend.candidates import _order
from tests.helpers.calls import good, refused
from tests.helpers.runtime_tables import render_tables


def main(dense: Path, scratch: Path) -> None:
    engine = scratch / "engine"
    usage = good("export", "--help").stdout
    assert "|numpy|" in usage.replace(" ", "").replace("\n", "")
    assert "numpy" in good("evaluate", "--help").stdout

    rows = json.loads(good("doctor", "--json").stdout)["runtimes"]
    assert [row["available"] for row in rows if row["runtime"] == "numpy"] == ["yes"]

    shown = good("export", dense, "--format", "numpy", "-o", engine).stdout
    assert "→ numpy: equal" in shown
    refused("export", dense, "--format", "numpy", "--profile", "1,2,3", "-o", scratch / "o",
            error="'numpy' was requested")  # fmt: skip
    refused("export", dense, "--format", "numpy", "--precision", "fp16", "-o", scratch / "o",
            error="Format 'numpy' is written in fp32")  # fmt: skip

    facts = json.loads(good("inspect", engine, "--json").stdout)
    assert facts["format"] == "numpy"
    assert "numpy" in facts["tools"]
    bare = json.loads(good("inspect", engine / "model.npm", "--json").stdout)
    assert bare["kind"] == "numpy"
    assert bare["spvit_deploy.kind"] in ("dense", "lean")

    found = json.loads(good("evaluate", engine, "--data", "digits", "--json").stdout)
    assert found["runtime"] == "numpy"
    measure = ["benchmark", dense, engine, "--quick", "--duration", 0.05, "-o", scratch / "r.json"]
    assert "NumPy" in good(*measure).stdout
    results = json.loads((scratch / "r.json").read_text())["results"]
    assert {row["runtime"] for row in results} == {"torch", "numpy"}

    assert _order()[-1] == ("numpy", "fp32")
    table = render_tables(runtimes())
    assert "| `numpy`: NumPy | `numpy` |" in table
    assert "| `numpy` | `model.npm` | fp32 | ONNX |" in table
    assert isinstance(runtimes()["numpy"], RuntimeInfo)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
