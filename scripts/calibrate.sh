#!/usr/bin/env bash
# Calibrate multi-step reuse for a model and a step count: bash scripts/calibrate.sh [arguments of scripts/calibrate.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/calibrate.py" "$@"
