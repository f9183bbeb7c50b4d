#!/usr/bin/env bash
# VBench scores, by the official evaluator: bash scripts/score_vbench.sh [arguments of scripts/score/vbench.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/score/vbench.py" "$@"
