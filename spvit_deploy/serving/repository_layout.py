"""Triton model repositories: folders of models, each with its configuration and its versions.

Loads no torch: `serve` reads repositories, and is to start at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import CorruptFileError, InputError, first_line
from spvit_deploy.serving.tritonclient_import import triton_module

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
_HEADER = "# Written by spvit-deploy. It is yours to edit; later versions leave it as it is.\n"
# Of folders that other commands write.
_RECORDS = ("export.json", "config.json", "search.json", "gates.json", "exports.json")


def models_of(repository: Path) -> dict[str, Any]:
    """The configurations of a repository's models, by name; nothing where it does not exist yet.

    Raises:
        InputError: it is no repository.
        CorruptFileError: a configuration that Triton does not take.
    """
    if not repository.exists():
        return {}
    if not repository.is_dir():
        raise InputError(f"{repository} is a file.", "Name a folder for the repository.")
    if (repository / CONFIG_FILE).is_file():
        raise InputError(
            f"{repository} is a model of a repository.", f"Name {repository.parent} instead."
        )
    folders = sorted(f for f in repository.iterdir() if f.is_dir() and f.name[0] != ".")
    strange = [folder.name for folder in folders if not (folder / CONFIG_FILE).is_file()]
    if strange or any((repository / record).is_file() for record in _RECORDS):
        inside = f": {strange[0]} has no {CONFIG_FILE}" if strange else ""
        raise InputError(f"{repository} is no Triton repository{inside}.", "Choose another folder.")
    return {folder.name: read_config(folder / CONFIG_FILE) for folder in folders}


def versions_of(model: Path) -> list[int]:
    """Versions in a model's folder, in order."""
    numbered = [f.name for f in model.iterdir() if f.is_dir() and f.name.isdecimal()]
    return sorted(int(name) for name in numbered if name[0] != "0")


def to_text(config: Any) -> str:
    """The text of ``config.pbtxt``."""
    from google.protobuf import text_format

    return _HEADER + str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def read_config(file: Path) -> Any:
    """A ``config.pbtxt``, ours or not.

    Raises:
        InputError: it cannot be read.
        CorruptFileError: Triton's protobuf does not take it.
    """
    from google.protobuf import text_format

    proto = triton_module("grpc.model_config_pb2")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.", "Check the path.") from None
    try:
        return text_format.Parse(text, proto.ModelConfig())
    except text_format.ParseError as error:
        raise CorruptFileError(
            f"{file} is no configuration of Triton: {first_line(error)}.", "Mend it."
        ) from None
