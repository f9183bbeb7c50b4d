#!/usr/bin/env bash
# Everything worth measuring on a GPU, in at most nine minutes: bash benchmarks/gpu_check.sh [OUT_DIR] [arguments of benchmarks/gpu_check/main.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
# The program keeps to its own budget; this is for a section that hangs. What was measured until then is on disk.
exec timeout 540 "$root/.venv/bin/python" "$root/benchmarks/gpu_check/main.py" "$@"
