"""``.pt2`` files of ``torch.export``: their metadata, and whether they are safe to load.

Loading one runs code of its maker's choice: torch unpickles weights, constants and sample inputs
that ask for it, evaluates shape expressions with sympy, and compiles guards and names into Python.
What we write holds none of that, so here a file is read only if it is plain tensors, aten
operators and arithmetic on shapes, and everything else is refused before torch sees it.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import CorruptFileError, InputError

METADATA_FILE = "spvit_deploy.json"
_AGAIN = "Export it again."
# Names inside the archive, below its root folder.
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.\w+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/[\w.-]+"
)
_TARGETS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|neg|pow|mod|floordiv|truediv|eq|ne|l[te]|g[te]|and_|or_)"
)
_WORDS = re.compile(r"[\w.+:-]*")
_TEXT = re.compile(r"[^\n\r]*")
_EXPRESSION = re.compile(r"([\w\s+*/(),<>=&|~-]|(?<=\d)\.(?=\d|$))*")
_SYMBOLS = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv"
    r"|CeilDiv|Eq|Ne|Equality|Unequality|int_oo|oo|True|False|integer|positive|nonnegative|real"
)
_QUOTED = re.compile(r"'([su]\d+)'")
# Nested tuples, lists and dicts with plain keys, as JSON in JSON.
_SPEC = re.compile(r'([\w\s\[\]{}:,\\"]|builtins\.(tuple|list|dict))*')
# Arguments of operators that are text: modes, never the name of a file.
_MODES = {"tanh", "none", "same", "valid", "constant", "reflect", "replicate", "circular"}


def read_metadata(path: Path) -> dict[str, str]:
    """What our export wrote into a file; nothing for one that is not ours.

    Raises:
        CorruptFileError: damaged, or no such file.
    """
    members = _members(path, (f"extra/{METADATA_FILE}",))
    text = members.get(f"extra/{METADATA_FILE}")
    try:
        found = json.loads(text) if text else {}
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise CorruptFileError(f"{path}: {METADATA_FILE} in it is damaged.", _AGAIN) from error


def check_archive(path: Path) -> None:
    """Refuse a file that is more than tensors, aten operators and arithmetic on shapes.

    Raises:
        CorruptFileError: truncated or changed.
        InputError: whole, but loading it could run code.
    """
    configs = (
        "data/weights/model_weights_config.json",
        "data/constants/model_constants_config.json",
    )
    samples = "data/sample_inputs/model.pt"
    members = _members(path, (*configs, "models/model.json", samples), whole=True)
    if members.get(samples):
        raise _unsafe(path, "pickled sample inputs")
    try:
        for name in configs:
            for entry in json.loads(members[name])["config"].values():
                if entry["use_pickle"]:
                    raise _unsafe(path, "pickled tensors")
        _check(path, "", json.loads(members["models/model.json"]))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: no program of torch.export.", _AGAIN) from error


def _members(path: Path, wanted: tuple[str, ...], whole: bool = False) -> dict[str, bytes]:
    """Contents of these members, as far as they are there; ``whole`` checks every checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = names[0].split("/")[0] + "/"
            inner = [name.removeprefix(root) for name in names]
            strange = [name for name in inner if not _MEMBERS.fullmatch(name)]
            if "archive_format" not in inner or len(set(names)) < len(names):
                raise CorruptFileError(f"{path}: no archive of torch.export.", _AGAIN)
            if strange:
                raise _unsafe(path, strange[0])
            damaged = archive.testzip() if whole else None
            if damaged is not None:
                raise CorruptFileError(f"{path}: {damaged} in it is damaged.", _AGAIN)
            return {name: archive.read(root + name) for name in wanted if name in inner}
    except (OSError, zipfile.BadZipFile, zlib.error, IndexError, NotImplementedError) as error:
        raise CorruptFileError(f"{path}: damaged, or no .pt2 file.", _AGAIN) from error


def _check(path: Path, key: str, value: Any) -> None:
    """Every text in a program, by the key that it stands under."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not _WORDS.fullmatch(name):
                raise _unsafe(path, name)
            _check(path, "metadata" if key == "metadata" else name, part)
            if key == "range_constraints":
                _check(path, "expr_str", name)
    elif isinstance(value, list):
        if key == "guards_code" and value:
            raise _unsafe(path, "guards")
        for part in value:
            _check(path, key, part)
    elif isinstance(value, str) and not _is_plain(key, value):
        raise _unsafe(path, f"{key} {value}")


def _is_plain(key: str, text: str) -> bool:
    if key == "target":
        return _TARGETS.fullmatch(text) is not None
    if key == "expr_str":
        text = _QUOTED.sub(r"\1", text)
        names = re.findall(r"[A-Za-z_]\w*", text)
        known = all(_SYMBOLS.fullmatch(name) for name in names)
        return known and _EXPRESSION.fullmatch(text) is not None
    if key == "as_string":
        return text in _MODES
    if key == "metadata":
        return _TEXT.fullmatch(text) is not None
    if key in ("in_spec", "out_spec"):
        return _SPEC.fullmatch(text) is not None
    return _WORDS.fullmatch(text) is not None


def _unsafe(path: Path, what: str) -> InputError:
    short = " ".join(what.split())[:60]
    return InputError(
        f"{path} holds more than tensors and aten operators ({short}), and loading it could run "
        "code.",
        "Load it with torch.export.load if you trust its maker.",
    )
