"""`shard` in a process of its own, which may kill itself at an exact instant."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN = """
import json, sys
from pathlib import Path
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard
shard(Path(sys.argv[1]), Path(sys.argv[2]), ShardOptions(**json.loads(sys.argv[3])))
"""
"""Its arguments are source, output, and the options as JSON."""

# The process kills itself just before its Nth rename; a worker kills the parent first, unless that is to live.
_KILLER = """
import os, signal, sys
from pathlib import Path
role, count = os.environ["COMA_KILL"].split(":")
mine = "worker" if any("import serve" in word for word in sys.orig_argv) else "parent"
rename, seen = Path.replace, 0
def replace(self, target):
    global seen
    seen += 1
    if mine == role and seen == int(count):
        if mine == "worker" and "COMA_KILL_ALONE" not in os.environ:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = replace
"""


def begin_sharding(source: Path, out: Path, *, options: dict[str, Any], **how: Any) -> subprocess.Popen[Any]:
    """Start sharding; `how` is what `Popen` takes."""
    return subprocess.Popen([sys.executable, "-c", RUN, str(source), str(out), json.dumps(options)], **how)


def killing_at(instant: str, folder: Path, *, worker_alone: bool = False) -> dict[str, str]:
    """Return variables that make a process die at "parent:N" or "worker:N", before the Nth rename of that one.

    A worker takes the process that started it along, unless it dies alone. `folder` is for the hook.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_KILLER)
    return {"PYTHONPATH": str(folder), "COMA_KILL": instant, **({"COMA_KILL_ALONE": "1"} if worker_alone else {})}


def shard_until_killed(source: Path, out: Path, instant: str, **options: Any) -> None:
    """Shard until the process is killed at an instant of `killing_at`."""
    environment = {**os.environ, **killing_at(instant, out.with_name(f"{out.name}-hook"))}
    assert begin_sharding(source, out, options=options, env=environment).wait() == -signal.SIGKILL
