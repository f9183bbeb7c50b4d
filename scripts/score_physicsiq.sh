#!/usr/bin/env bash
# Both Physics-IQ scores of finished videos: bash scripts/score_physicsiq.sh [arguments of scripts/score/physicsiq.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/score/physicsiq.py" "$@"
