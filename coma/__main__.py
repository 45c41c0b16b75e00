"""The command's entry, also for launchers that start a module: `python -m coma`."""

import sys


def run() -> None:
    """Run the command; Ctrl-C ends it quietly with exit code 130, also while its modules are still being loaded."""
    try:
        from coma.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
