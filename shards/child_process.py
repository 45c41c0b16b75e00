"""Child processes that serve requests over a pipe.

They are started as programs, not by multiprocessing, which would run the user's own script again in each (spawn) or
copy a process that holds threads (fork).
"""

import json
import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

NUMBER_VARIABLE = "COMA_CHILD"
"""Environment variable of a child's number among those that work side by side, from 0."""

# -P keeps the current folder out of sys.path, where a json.py of somebody's data might lie.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from {} import serve; serve(int(sys.argv[1]))"


def _safe_path() -> list[str]:
    """Return sys.path without the current folder, which comes last if coma itself lies there."""
    here, home = Path.cwd().resolve(), Path(__file__).resolve().parents[1]
    others = [path for path in sys.path if path and Path(path).resolve() != here]
    return [*others, str(here)] if here == home else others


def start_child(
    module: str, output: IO[bytes] | int = subprocess.DEVNULL, *, number: int = 0
) -> tuple[subprocess.Popen[bytes], "Connection[Any, Any]"]:
    """Run `serve(descriptor)` of a module in a new process; return the process and our end of the pipe.

    Its stdout and stderr go to `output`. `NUMBER_VARIABLE` tells it its number.
    """
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _START.format(module), str(theirs.fileno()), json.dumps(_safe_path())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, "OMP_NUM_THREADS": "1", NUMBER_VARIABLE: str(number)},
    )
    theirs.close()
    return process, ours
