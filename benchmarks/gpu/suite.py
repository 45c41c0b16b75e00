"""The tests that are marked gpu, by pytest; each test is a row as soon as it has ended."""

import os
import re
import subprocess
import sys
import time

from benchmarks.gpu.part import Measuring
from benchmarks.gpu.process import ROOT

_OUTCOME = re.compile(r"^(tests/\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) \S+")
_COLLECTED = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected)")
_REHEARSAL = ["tests/pipeline/test_sizes.py", "-m", "not gpu"]
_MOST_NOTES = 40


def measure_tests(measuring: Measuring) -> None:
    """Run the tests, all at once, in a process of pytest's; what ran before a cut is run again."""
    measuring.rows.clear()
    chosen = [*_files(), "-m", "gpu"] if measuring.on_gpu else _REHEARSAL
    options = ["-v", "-n0", "-rfE", "--color=no", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    base = ["--basetemp", str(measuring.scratch / "pytest")]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *chosen, *options, *base],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "300"},  # for reasons that are not cut
    )
    assert process.stdout is not None
    before_s, notes, counts = time.monotonic(), 0, ""
    for line in process.stdout:
        print(line, end="")
        if (found := _OUTCOME.match(line)) is not None:
            now_s = time.monotonic()
            outcome = found.group(2).lower()
            measuring.add(test=found.group(1), outcome=outcome, seconds=now_s - before_s)
            if outcome in ("failed", "error"):
                measuring.put({"test": found.group(1)}, failed=True)
            before_s = now_s
        elif "collected " in line:
            before_s = time.monotonic()
        elif _SUMMARY.match(line) and (notes := notes + 1) <= _MOST_NOTES:
            measuring.note(line.strip()[:300])
        elif _COLLECTED.search(line) and " in " in line:
            counts = line.strip("= \n")
    code = process.wait()
    measuring.note(f"pytest: {counts or 'no summary'} (exit code {code})")
    if not measuring.rows:
        raise RuntimeError(f"pytest ran no test (exit code {code}); its output is in the log")


def _files() -> list[str]:
    """Return the files with such tests: collecting all of them takes longer, and asks for more libraries."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]
