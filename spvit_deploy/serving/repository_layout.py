"""Layout of a Triton model repository: folders of models, with configuration and versions.

Imports no torch, so that `serve` starts at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import CorruptFileError, InputError, first_line
from spvit_deploy.serving.tritonclient_import import import_tritonclient

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
_HEADER = "# Written by spvit-deploy. You may edit it; later versions leave it as it is.\n"
# Files in folders that other commands write.
_RECORDS = ("export.json", "config.json", "search.json", "gates.json", "exports.json")


def read_models(repository: Path) -> dict[str, Any]:
    """Read the configurations of a repository's models, by name; none where it does not exist.

    Raises:
        InputError: The folder is not a repository.
        CorruptFileError: A configuration is not valid.
    """
    if not repository.exists():
        return {}
    if not repository.is_dir():
        raise InputError(f"{repository} is a file.", "Choose a folder for the repository.")
    if (repository / CONFIG_FILE).is_file():
        raise InputError(
            f"{repository} is a model in a repository.", f"Choose {repository.parent} instead."
        )
    folders = sorted(f for f in repository.iterdir() if f.is_dir() and f.name[0] != ".")
    strange = [folder.name for folder in folders if not (folder / CONFIG_FILE).is_file()]
    if strange or any((repository / record).is_file() for record in _RECORDS):
        inside = f": {strange[0]} has no {CONFIG_FILE}" if strange else ""
        raise InputError(
            f"{repository} is not a Triton repository{inside}.", "Choose another folder."
        )
    return {folder.name: read_config(folder / CONFIG_FILE) for folder in folders}


def list_versions(model: Path) -> list[int]:
    """List the versions in a model's folder, in order."""
    numbered = [f.name for f in model.iterdir() if f.is_dir() and f.name.isdecimal()]
    return sorted(int(name) for name in numbered if name[0] != "0")


def config_text(config: Any) -> str:
    """Return the text of a ``config.pbtxt``."""
    from google.protobuf import text_format

    return _HEADER + str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def read_config(file: Path) -> Any:
    """Read a ``config.pbtxt`` as Triton's ``ModelConfig``.

    Raises:
        InputError: The file cannot be read.
        CorruptFileError: It is not a valid configuration.
    """
    from google.protobuf import text_format

    proto = import_tritonclient("grpc.model_config_pb2")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.", "Check the path.") from None
    try:
        return text_format.Parse(text, proto.ModelConfig())
    except text_format.ParseError as error:
        raise CorruptFileError(
            f"{file} is not a valid Triton configuration: {first_line(error)}.", "Fix it."
        ) from None
