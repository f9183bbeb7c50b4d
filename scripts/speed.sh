#!/usr/bin/env bash
# FlowCache against none, alternating in one process: bash scripts/speed.sh [arguments of benchmarks/speed.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/benchmarks/speed.py" "$@"
