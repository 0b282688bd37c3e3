"""Runtimes and formats by name: the built-in ones, and those that other packages add.

Another package adds a runtime by an entry point of the group ``spvit_deploy.runtimes`` that names a
:class:`~spvit_deploy.runtimes.info.RuntimeInfo`, or a tuple of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from spvit_deploy.core.devices import parse_device
from spvit_deploy.core.errors import InputError, RuntimeMissingError
from spvit_deploy.core.plugins import load_plugins
from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo

if TYPE_CHECKING:
    from spvit_deploy.runtimes.base import Session

# One line per built-in runtime: the folder that its info.py lies in.
_BUILT_IN = ("onnxruntime", "torch", "openvino", "tensorrt", "executorch")
ENTRY_POINTS = "spvit_deploy.runtimes"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@cache
def runtimes(plugins: bool = True) -> Mapping[str, RuntimeInfo]:
    """Return all runtimes by name, built-in ones first; only these where ``plugins`` is False.

    Raises:
        InputError: a plug-in cannot be loaded.
    """
    found: list[RuntimeInfo] = []
    for name in _BUILT_IN:
        found += importlib.import_module(f"spvit_deploy.runtimes.{name}.info").RUNTIMES
    for added in load_plugins(ENTRY_POINTS) if plugins else ():
        found += added if isinstance(added, tuple) else (added,)
    return {info.name: info for info in found}


def shown_runtimes() -> Mapping[str, RuntimeInfo]:
    """Return the runtimes for ``--help``: the built-in ones where a plug-in cannot be loaded."""
    try:
        return runtimes()
    except InputError:
        return runtimes(plugins=False)


def formats(among: Mapping[str, RuntimeInfo] | None = None) -> Mapping[str, FormatInfo]:
    """Return the formats that can be written, by name; of all runtimes for None."""
    infos = (runtimes() if among is None else among).values()
    return {form.name: form for info in infos for form in info.formats if form.exporter}


def triton_backends(among: Mapping[str, RuntimeInfo]) -> dict[str, RuntimeInfo]:
    """Return the runtime behind each backend of Triton; ``python`` runs ONNX Runtime."""
    found = {info.triton_backend: info for info in among.values() if info.triton_backend}
    return {**found, "python": among["onnxruntime"]}


def find_runtime(name: str) -> RuntimeInfo:
    """Return a runtime by name.

    Raises:
        RuntimeMissingError: unknown, or not installed.
    """
    info = runtimes().get(name)
    if info is None:
        raise RuntimeMissingError(f"Unknown runtime '{name}'.", f"Choose {', '.join(runtimes())}.")
    if not info.installed:
        raise RuntimeMissingError(f"Runtime '{name}' is not installed.", info.install_command)
    return info


def find_format(name: str, precision: str = "fp32") -> FormatInfo:
    """Return a format by name.

    Raises:
        InputError: no such format, or one that has no such precision.
    """
    form = formats().get(name)
    if form is None:
        raise InputError(f"Unknown format '{name}'.", f"Choose {', '.join(formats())}.")
    if precision not in form.precisions:
        others = [other for other, f in formats().items() if precision in f.precisions]
        raise InputError(
            f"Format '{name}' is written in {', '.join(form.precisions)}, not in {precision}.",
            f"{', '.join(others)} can be." if others else "Choose one of them.",
        )
    return form


def load_exporter(form: FormatInfo) -> Any:
    """Import the function that writes a format: ``(ExportJob, folder, note) -> WrittenFiles``.

    Raises:
        RuntimeMissingError: the package of its runtime is not installed.
    """
    info = runtimes()[form.runtime]
    if not info.installed:
        raise RuntimeMissingError(
            f"Format '{form.name}' needs {info.package}, which is not installed.",
            info.install_command,
        )
    return resolve_name(form.exporter)


def artifact_kind(path: Path) -> str:
    """Tell what an artifact is by its record or its suffix: ``dense``, ``lean``, or a format.

    Raises:
        InputError: nothing that a runtime opens.
    """
    from spvit_deploy.core.records import read_record

    for info in runtimes().values() if path.is_file() else ():
        for form in info.formats:
            if form.suffix == path.suffix:
                return resolve_name(info.identify)(path) if info.identify else form.name
    for name in ("export.json", "config.json"):
        if (path / name).is_file():
            record = read_record(path / name)
            return str(record.get("format") or record.get("kind"))
    raise InputError(
        f"{path}: not a dense, lean or exported folder, nor a file of {', '.join(suffixes())}.",
        "`spvit-deploy inspect PATH` shows what a path is.",
    )


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of files that a runtime opens."""
    return tuple(
        dict.fromkeys(form.suffix for info in runtimes().values() for form in info.formats)
    )


def runtimes_for(path: Path, requested: Sequence[str] = ()) -> list[str]:
    """List the installed runtimes that open this artifact, its own first.

    Runtimes that are not measured by default are listed only if requested by name. Where none is
    installed, those that would open it: opening it in one reports what is missing.
    """
    kind = artifact_kind(path)
    opening = [
        name
        for name, info in runtimes().items()
        if kind in info.kinds and (info.default or name in requested)
    ]
    fitting = [name for name in opening if runtimes()[name].installed] or opening
    return sorted(fitting, key=lambda name: runtimes()[name].kinds.index(kind))


def open_session(
    path: Path, runtime: str, device: str = "cpu", threads: int | None = None
) -> Session:
    """Open a file, or a dense, lean or exported folder, in a runtime.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or an execution provider.
        threads: of the runtime; None for its default.

    Raises:
        RuntimeMissingError: runtime or device are not available.
        InputError: the runtime does not open this artifact, or it is damaged.
        JobError: an engine, and no GPU.
    """
    parse_device(device)
    kind, info = artifact_kind(path), runtimes().get(runtime)
    if info is not None and kind not in info.kinds:
        raise InputError(
            f"{path} is {kind}; runtime '{runtime}' opens {' and '.join(info.kinds)}.",
            "Export it, or choose another --runtime.",
        )
    # A session on a GPU checks both itself: a missing GPU comes before a missing package.
    if info is None or not info.needs_gpu:
        info = find_runtime(runtime)
    opened: Session = resolve_name(info.session)(_checked_file(path, kind), device, threads)
    return opened


def _checked_file(path: Path, kind: str) -> Path:
    """Return the main file of an exported folder, checked against its record, or another path."""
    from spvit_deploy.core.records import check_files, read_record

    if not (path / "export.json").is_file():
        return path
    check_files(path, read_record(path / "export.json", kind="exported").get("files", {}))
    form = next(f for info in runtimes().values() for f in info.formats if f.name == kind)
    return path if "*" in form.file else path / form.file


def installed(name: str) -> str | None:
    """Return the version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions_of(*others: str) -> dict[str, str | None]:
    """Return the versions of these distributions, and of those that runtimes name."""
    names = {name for info in runtimes().values() for name in info.distributions}
    return {name: installed(name) for name in sorted(names.union(others))}


def owner_of(kind: str) -> RuntimeInfo:
    """Return the runtime that writes this format, or opens this kind of model folder first."""
    return min(
        (info for info in runtimes().values() if kind in info.kinds),
        key=lambda info: (all(kind != f.name for f in info.formats), info.kinds.index(kind)),
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what an artifact's file records about itself, and further facts of some formats."""
    info = owner_of(artifact_kind(path))
    # What engines record lies beside them, and is read without their library.
    if not info.needs_gpu:
        find_runtime(info.name)
    return resolve_name(info.metadata)(path) if info.metadata else {}
