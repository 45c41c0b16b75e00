"""`python -m coma`: the same command, for launchers that start a module."""

from coma.cli.main import main

main()
