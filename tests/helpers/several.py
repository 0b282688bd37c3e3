"""Commands for one of several processes, one after the other: torch is loaded once for all."""

from __future__ import annotations

import json
import sys

from spvit_deploy.cli.main import main

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        main(command, standalone_mode=False)
