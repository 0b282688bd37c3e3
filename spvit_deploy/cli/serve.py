"""``spvit-deploy serve`` and ``load``."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import Folder, Number, json_option, parsed
from spvit_deploy.core.units import parse_duration

if TYPE_CHECKING:
    from spvit_deploy.serving.load_test import LoadReport

_PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("repository", type=Folder)
@click.option("--host", default="127.0.0.1", help="0.0.0.0 for all interfaces.")
@click.option("--http-port", "http", type=_PORT, default=8000)
@click.option("--grpc-port", "grpc", type=_PORT, default=8001)
@click.option("--metrics-port", "metrics", type=_PORT, help="For Prometheus; none by default.")
@click.option(
    "--poll",
    type=click.IntRange(0),
    default=2,
    help="Seconds between checks for new versions; 0: clients request what to load.",
)
@click.option(
    "--server",
    metavar="PATH",
    help="tritonserver, or the folder of a Python environment with nvidia-pytriton; by default "
    "tritonserver on PATH.",
)
@click.option("--log", type=Folder, help="File for the server's log.")
@click.option("--wait", type=Number(1), default=120, help="Seconds for the start.")
def serve(repository: Path, server: str | None, log: Path, wait: float, **settings: Any) -> None:
    """Run a Triton server on a repository that `export --format triton` wrote.

    Ctrl-C ends it, after outstanding requests are answered.

    \b
    Examples: spvit-deploy serve repo/ --server .venv-triton
              spvit-deploy load grpc://127.0.0.1:8001 --model NAME --rate 20 --slo 50ms
    """
    from spvit_deploy.serving.server import ServerSettings, find_server, run_server

    found = find_server(server, repository)
    # Supervisors send SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with run_server(repository, found, ServerSettings(**settings), log) as running:
            for name, versions in running.wait_ready(wait).items():
                click.echo(f"{name}, version {', '.join(map(str, versions))}: ready")
            click.echo(f"HTTP {running.http}\ngRPC {running.grpc}\nCtrl-C ends it.")
            running.wait()
    except KeyboardInterrupt:
        click.echo("ended")
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.argument("url", metavar="URL")
@click.option("--model", required=True, help="The model's name in the server.")
@click.option(
    "--version", default="", show_default=False, help="By default the newest that is served."
)
@click.option("--rate", type=Number(0, min_open=True), default=20, help="Requests per second.")
@click.option("--duration", type=Number(0, min_open=True), default=10, help="Seconds.")
@click.option(
    "--slo",
    callback=parsed(parse_duration),
    metavar="50ms",
    help="Latency limit for 99% of the requests.",
)
@click.option(
    "--timeout", type=Number(0, min_open=True), default=10,
    help="Seconds after which a request without a response is lost.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option(
    "--find-rate", is_flag=True,
    help="Find the highest rate that holds --slo, from --rate on.",
)  # fmt: skip
@json_option
def load(url: str, slo: float | None, find_rate: bool, as_json: bool, **options: Any) -> None:
    """Test a running server under load with MLPerf's LoadGen.

    Requests of one random image each are sent as a Poisson process, whether or not earlier ones
    are answered. The exit code is 1 where one is lost, or p99 is above --slo. URL is
    grpc://HOST:PORT or http://HOST:PORT.

    \b
    Example: spvit-deploy load grpc://127.0.0.1:8001 --model deit --rate 50 --slo 40ms
    """
    from spvit_deploy.serving.client import TritonClient
    from spvit_deploy.serving.load_test import find_served_rate, random_images, run_load

    if find_rate and slo is None:
        raise click.UsageError("--find-rate needs a limit: --slo 50ms.")
    rate, duration, seed = (options[name] for name in ("rate", "duration", "seed"))
    with TritonClient(url, options["model"], options["version"], options["timeout"]) as client:
        images = random_images(client, seed)
        if find_rate and slo is not None:
            rate, report, tried = find_served_rate(client, images, slo, duration, rate)
            content = {"rate": rate, "p99": report.p99, "bound": report.bound, "slo": slo,
                       "queries": report.answered, "tried": tried}  # fmt: skip
            click.echo(json.dumps(content) if as_json else _rate_text(rate, report, slo))
            return
        report = run_load(client, images, rate, duration, seed)
    click.echo(json.dumps(_report_facts(report, slo)) if as_json else _report_text(report))
    report.require(slo)
    if slo is not None and not as_json:
        click.echo(f"99% are answered within {1000 * slo:g} ms")


def _rate_text(rate: float, report: LoadReport, slo: float) -> str:
    bound = "too few requests for a confidence of 99%" if report.bound is None else (
        f"with a confidence of 99%: at most {1000 * report.bound:.2f}"
    )  # fmt: skip
    return (
        f"{rate:.4g} requests/s with 99% answered within {1000 * slo:g} ms: p99 "
        f"{1000 * report.p99:.2f} ms of {report.answered} requests ({bound})"
    )


def _report_text(report: LoadReport) -> str:
    text = (
        f"sent {report.sent}, answered {report.answered}, refused {report.refused}, "
        f"lost {report.lost}"
    )
    if report.answered:
        text += f"\np50 {1000 * report.p50:.2f} ms, p99 {1000 * report.p99:.2f} ms"
    if len(report.versions) > 1:
        counts = ", ".join(f"{version}: {n}" for version, n in sorted(report.versions.items()))
        text += f"\nresponses by version: {counts}"
    return text


def _report_facts(report: LoadReport, slo: float | None) -> dict[str, Any]:
    latencies = {"p50": report.p50, "p99": report.p99} if report.answered else {}
    return {
        "planned": report.planned, "sent": report.sent, "answered": report.answered,
        "refused": report.refused, "lost": report.lost, "died_after": report.died,
        "versions": dict(report.versions), "errors": dict(report.errors),
        **latencies, "slo": slo,
    }  # fmt: skip
