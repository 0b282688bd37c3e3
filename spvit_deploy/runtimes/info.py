"""What a runtime declares about itself: names, formats, precisions, package, options.

Everything that lists runtimes or formats (command line, ``doctor``, ``inspect``, ``recommend``, the
report, the docs table) reads these declarations. Nothing heavy is imported here, nor may the
``info.py`` of a runtime import anything heavy: functions and classes are named as
``module:attribute`` and imported on first use, by :func:`pkgutil.resolve_name`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spvit_deploy.core.errors import InputError

# Of formats that declare no rank.
UNRANKED = 100
# Smallest, usual and largest batch of an artifact with a dynamic one.
BatchProfile = tuple[int, int, int]
DEFAULT_PROFILE: BatchProfile = (1, 8, 32)


def parse_profile(value: str | Sequence[int] | None) -> BatchProfile:
    """Parse ``MIN,OPT,MAX``, or check three numbers; None is the default.

    Raises:
        InputError: not three rising positive integers.
    """
    text = value if isinstance(value, str) else ",".join(map(str, value or DEFAULT_PROFILE))
    try:
        smallest, usual, largest = map(int, text.split(","))
    except ValueError:
        smallest = usual = largest = 0
    if 0 < smallest <= usual <= largest:
        return smallest, usual, largest
    raise InputError(
        f"--profile {text}: expected the smallest, the usual and the largest batch.",
        "Give three rising numbers, such as 1,8,32.",
    )


@dataclass(frozen=True)
class ExportOption:
    """An option of ``spvit-deploy export`` that only some formats have.

    Attributes:
        name: keyword in Python, such as ``timing_cache``.
        flag: on the command line; ``--timing-cache`` by default.
        default: shown in ``--help``; applied by the format, not here.
        parse: turns the text into a value; raises InputError.
    """

    name: str
    help: str
    kind: Literal["flag", "file", "text", "texts"] = "text"
    flag: str = ""
    metavar: str | None = None
    default: str | None = None
    parse: Callable[[str], Any] | None = None

    @property
    def option(self) -> str:
        """The option as users type it."""
        return self.flag or f"--{self.name.replace('_', '-')}"


PROFILE_OPTION = ExportOption(
    name="profile",
    help="Batches of an artifact with a dynamic batch: the smallest, the usual, the largest.",
    metavar="MIN,OPT,MAX",
    default=",".join(map(str, DEFAULT_PROFILE)),
    parse=parse_profile,
)


@dataclass(frozen=True)
class FormatInfo:
    """A file format, before anything of it is imported.

    Attributes:
        file: name of its main file in an exported folder, or a pattern such as ``*.engine``.
        exporter: ``module:function`` that writes it; empty for a format that is only read.
        graph_precisions: those that the ONNX graph itself is converted to; they are verified with
            every low-precision tensor rounded.
        min_opsets: lowest ONNX operator set by precision, where the default is too low.
        from_onnx: whether it is written from the ONNX graph, or from the PyTorch module.
        takes_preprocessing: whether it can hold the preprocessing, and take uint8 images.
        grey_levels: by how many its preprocessing may differ from timm's.
        has_float64: whether its preprocessing can compute in float64.
        verified_file, verified_in: what is opened for verification, and in which runtime; empty for
            the main file in its own runtime.
        for_named_gpus: whether it is built for GPUs that the user names (``gpus``).
        unsupported: options of similar formats that it lacks, each with the reason.
        check_options: ``module:function``, ``(options, precision) -> typed options``; raises
            InputError. Empty where the options are taken as they are.
        fit_options: ``module:function``, ``(options, precision) -> (options, left out)``, for
            exports of many formats: drops what cannot be built in this precision, and says why;
            raises JobError where this host cannot write it at all. Empty where it always can.
        ranks: place by precision in the order in which ``recommend`` tries formats; empty for
            all precisions, last. What is slow to write or seldom wins comes late.
    """

    name: str
    runtime: str
    suffix: str
    file: str
    exporter: str = ""
    precisions: tuple[str, ...] = ("fp32",)
    graph_precisions: tuple[str, ...] = ()
    min_opsets: Mapping[str, int] = field(default_factory=dict)
    from_onnx: bool = True
    takes_preprocessing: bool = False
    grey_levels: int = 1
    has_float64: bool = True
    verified_file: str = ""
    verified_in: str = ""
    for_named_gpus: bool = False
    options: tuple[ExportOption, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)
    check_options: str = ""
    fit_options: str = ""
    ranks: Mapping[str, int] = field(default_factory=dict)

    def artifact(self, folder: Path) -> Path:
        """The main file in a folder, whether it exists or not."""
        return next(iter(sorted(folder.glob(self.file))), folder / self.file)

    def options_in(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the options that this format has."""
        names = {option.name for option in self.options}
        return {name: value for name, value in options.items() if name in names}


@dataclass(frozen=True)
class RuntimeInfo:
    """A runtime, before anything of it is imported.

    Attributes:
        session: ``module:Class`` of its :class:`~spvit_deploy.runtimes.base.Session`.
        package: module that must be importable.
        extra: extra of this distribution that installs the package; empty where it is required.
        distributions: distributions whose versions records and ``doctor`` name.
        opens: other formats and kinds of model folders (``dense``, ``lean``) that it opens.
        metadata: ``module:function``, path of a file of its format → what the file records, and
            further facts for ``inspect``.
        describe_folder: ``module:function``, path → facts for ``inspect`` beside the record.
        identify: ``module:function``, path → runtime, where several share a suffix.
        default: whether it is measured where no runtime is named.
        needs_gpu: whether it only runs on a GPU; its session checks that GPU and package are here.
        one_thread_pool: whether all sessions of a process share one pool, sized when it is opened.
        layers: whether it can measure the time of each layer.
        devices: values of ``--device`` that only this runtime has.
        triton_backend: the backend of Triton that serves its format; empty for none.
        triton_kind: ``KIND_CPU`` or ``KIND_GPU`` where that backend computes on one only.
    """

    name: str
    title: str
    session: str
    package: str
    extra: str = ""
    distributions: tuple[str, ...] = ()
    formats: tuple[FormatInfo, ...] = ()
    opens: tuple[str, ...] = ()
    metadata: str = ""
    describe_folder: str = ""
    identify: str = ""
    default: bool = True
    needs_gpu: bool = False
    one_thread_pool: bool = False
    layers: bool = False
    devices: tuple[str, ...] = ()
    triton_backend: str = ""
    triton_kind: str = "KIND_AUTO"

    @property
    def installed(self) -> bool:
        """Whether its package can be imported; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Formats and kinds of model folders that it opens, its own first."""
        return (*(form.name for form in self.formats), *self.opens)

    @property
    def install_command(self) -> str:
        """The command that installs it."""
        what = f"'spvit-deploy[{self.extra}]'" if self.extra else self.package
        return f"pip install {what}"


def distinct_options(formats: Iterable[FormatInfo]) -> dict[str, ExportOption]:
    """Return the options of these formats by name; the first declaration of a name counts."""
    found: dict[str, ExportOption] = {}
    for form in formats:
        for option in form.options:
            found.setdefault(option.name, option)
    return found
