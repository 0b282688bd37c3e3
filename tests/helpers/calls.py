"""Calls of the command line, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from spvit_deploy.cli.main import main


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def good(*args: object) -> Result:
    result = call(*args)
    assert result.exit_code == 0, result.output + str(result.exception or "")
    return result


def refused(*args: object, code: int = 2, error: str = "") -> None:
    """One line on standard error, the right exit code, no traceback."""
    result = call(*args)
    assert result.exit_code == code, result.output + str(result.exception or "")
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert error in lines[0], lines[0]
    assert "Traceback" not in result.output
