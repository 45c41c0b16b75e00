#!/usr/bin/env bash
# The default tests in a fresh environment of another stack, from uv.lock:
#
#   tests/stacks.sh [cuda12|cuda13] [ARGUMENTS OF PYTEST]     # cuda13 unless said otherwise
#   PYTHON=3.13 tests/stacks.sh cuda13 -n0 tests/pipeline     # another Python than 3.12
#
# The clone's own .venv is left alone. After the installation (5 GB are fetched the first time, then they come from uv's
# cache) nothing needs a network. KEEP=DIR makes the environment in DIR and keeps it for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

stack=cuda13
case "${1:-}" in cuda12 | cuda13) stack=$1 && shift ;; esac
uv=.uv/bin/uv
[ -x "$uv" ] || uv=uv

if [ -n "${KEEP:-}" ]; then
    environment=$KEEP
else
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
fi
export UV_PROJECT_ENVIRONMENT=$environment
"$uv" sync -q --locked --python "${PYTHON:-3.12}" --no-default-groups --group dev --group "$stack"

export UV_NO_SYNC=1 UV_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$uv" run python - <<'PYTHON'
import platform

from coma.installed.cuda import cuda_versions, judge

judgement = judge(cuda_versions())
print(f"python {platform.python_version()}, {judgement.text}")
raise SystemExit(judgement.advice or 0)
PYTHON
"$uv" run pytest "$@"
