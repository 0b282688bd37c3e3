"""Calls of the command line in processes of their own."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys


def start_command(*args: object, limit: int | None = None) -> subprocess.Popen[str]:
    def before() -> None:
        # A shell starts what runs in its background deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "spvit_deploy", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before
    )
