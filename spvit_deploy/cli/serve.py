"""``spvit-deploy serve`` and ``load``, and what an export into a repository prints."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import Folder, Number, json_option, parsed
from spvit_deploy.core.units import parse_duration

if TYPE_CHECKING:
    from spvit_deploy.serving.client import TritonTarget
    from spvit_deploy.serving.load_test import LoadReport

_PORT = click.IntRange(1, 65535)


def deploy(model: str, output: Path, triton: dict[str, Any], common: dict[str, Any]) -> None:
    """Export into a repository, and print what was written."""
    from spvit_deploy.serving.repository import export_triton
    from spvit_deploy.workflows import console as show

    done = export_triton(model, output, **triton, **common)
    show.export(done.record, done.folder)
    serving = done.serving
    batches = f"batches up to {serving.max_batch}" if serving.max_batch else "its fixed batch"
    click.echo(
        f"model {done.name}, version {done.version}: backend {serving.backend}, {batches}, "
        f"instances: {serving.instances}"
    )


@click.command()
@click.argument("repository", type=Folder)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for everybody.")
@click.option("--http-port", "http", type=_PORT, default=8000, show_default=True)
@click.option("--grpc-port", "grpc", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", "metrics", type=_PORT, help="For Prometheus; none by default.")
@click.option(
    "--poll",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Seconds between looks for new versions; 0: clients say what to load.",
)
@click.option(
    "--server",
    metavar="PATH",
    help="tritonserver, or a Python environment with nvidia-pytriton; by default "
    "$SPVIT_TRITON_SERVER, or tritonserver on PATH.",
)
@click.option("--log", type=Folder, help="File for the server's log.")
@click.option("--wait", type=Number(1), default=120, show_default=True, help="Seconds to start.")
def serve(repository: Path, server: str | None, log: Path, wait: float, **listening: Any) -> None:
    """Run Triton's server on a repository that `export --format triton` wrote.

    It ends with Ctrl-C, and answers first what it was asked.

    \b
    Examples: spvit-deploy serve repo/ --server .venv-triton
              spvit-deploy load grpc://127.0.0.1:8001 --model NAME --rate 20 --slo 50ms
    """
    from spvit_deploy.serving.server import Listening, run_server
    from spvit_deploy.serving.server_install import find_server

    found = find_server(server, repository)
    with _terminable(), run_server(repository, found, Listening(**listening), log) as up:
        try:
            for name, versions in up.wait_healthy(wait).items():
                click.echo(f"{name}, version {', '.join(map(str, versions))}: ready")
            click.echo(f"HTTP {up.http}\ngRPC {up.grpc}\nCtrl-C ends it.")
            up.wait()
        except KeyboardInterrupt:
            click.echo("ended")


@contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM, which supervisors send, for Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.argument("url", metavar="URL")
@click.option("--model", required=True, help="Its name in the server.")
@click.option("--version", default="", help="By default the newest that is served.")
@click.option(
    "--rate",
    type=Number(0, min_open=True),
    default=20,
    show_default=True,
    help="Requests a second.",
)
@click.option(
    "--duration", type=Number(0, min_open=True), default=10, show_default=True, help="Seconds."
)
@click.option(
    "--slo", callback=parsed(parse_duration), metavar="50ms", help="What 99% must keep below."
)
@click.option(
    "--timeout", type=Number(0, min_open=True), default=10, show_default=True,
    help="Seconds after which a request without an answer is lost.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--find-rate", is_flag=True,
    help="MLPerf's server scenario, by its LoadGen: the highest rate that holds --slo.",
)  # fmt: skip
@json_option
def load(url: str, model: str, version: str, timeout: float, find_rate: bool, **how: Any) -> None:
    """Load a running server at random times, and count what it answers.

    Requests of one random image each come as a Poisson process, whether or not earlier ones are
    answered. The exit code is 1 where one is lost, or p99 is above --slo. URL is grpc://HOST:PORT
    or http://HOST:PORT.

    \b
    Example: spvit-deploy load grpc://127.0.0.1:8001 --model deit --rate 50 --slo 40ms
    """
    from spvit_deploy.serving.client import TritonTarget

    if find_rate and how["slo"] is None:
        raise click.UsageError("--find-rate needs the limit to hold: --slo 50ms.")
    with TritonTarget(url, model, version, timeout) as target:
        (_find if find_rate else _load)(target, **how)


def _load(
    target: TritonTarget, slo: float | None, as_json: bool, seed: int, rate: float, duration: float
) -> None:
    """One load at one rate."""
    from spvit_deploy.serving.load_test import images_for, run_load

    report = run_load(target, images_for(target, seed), rate, duration, seed)
    click.echo(_json(report, slo) if as_json else _text(report))
    report.require(slo)
    if slo is not None and not as_json:
        click.echo(f"99% are answered within {1000 * slo:g} ms")


def _find(
    target: TritonTarget, slo: float, as_json: bool, seed: int, rate: float, duration: float
) -> None:
    """The highest rate that holds the limit."""
    from spvit_deploy.serving.load_test import images_for
    from spvit_deploy.serving.max_rate import highest_served

    found = highest_served(target, images_for(target, seed), slo, duration, rate)
    if as_json:
        content = {"rate": found.rate, "p99": found.p99, "bound": found.bound, "slo": slo,
                   "queries": len(found.latencies), "tried": found.tried}  # fmt: skip
        click.echo(json.dumps(content))
        return
    sure = "too few queries to be sure" if found.bound is None else (
        f"99% sure: at most {1000 * found.bound:.2f}"
    )  # fmt: skip
    click.echo(
        f"{found.rate:.4g} queries/s with 99% of the answers within {1000 * slo:g} ms: p99 "
        f"{1000 * found.p99:.2f} ms of {len(found.latencies)} queries ({sure})"
    )


def _text(report: LoadReport) -> str:
    lines = [
        f"sent {report.sent}, answered {report.answered}, refused {report.refused}, "
        f"lost {report.lost}"
    ]
    if report.answered:
        lines.append(f"p50 {1000 * report.p50:.2f} ms, p99 {1000 * report.p99:.2f} ms")
    if len(report.versions) > 1:
        said = ", ".join(f"{v}: {n}" for v, n in sorted(report.versions.items()))
        lines.append(f"answers by version: {said}")
    return "\n".join(lines)


def _json(report: LoadReport, slo: float | None) -> str:
    latencies = {"p50": report.p50, "p99": report.p99} if report.answered else {}
    return json.dumps(
        {
            "planned": report.planned, "sent": report.sent, "answered": report.answered,
            "refused": report.refused, "lost": report.lost, "died_after": report.died,
            "versions": dict(report.versions), "errors": dict(report.errors),
            **latencies, "slo": slo,
        }
    )  # fmt: skip
