"""The published JSON Schema of ``results.json``."""

from __future__ import annotations

from typing import Any

from spvit_deploy.benchmarks.results import VERSION, ResultsFile

SCHEMA_FILE = "results.schema.json"


def results_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the files that this version writes."""
    found = ResultsFile.model_json_schema(mode="serialization")
    # Written beside the fields, and checked before they are read.
    found["properties"]["digest"] = {
        "title": "Digest", "type": "string", "description": "SHA-256 of the rest.",
    }  # fmt: skip
    found["properties"]["schema_version"] = {"const": VERSION, "title": "Schema Version"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
