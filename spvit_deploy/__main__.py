"""``python -m spvit_deploy``."""

from spvit_deploy.cli.main import main

main(prog_name="spvit-deploy")
