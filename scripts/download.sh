#!/usr/bin/env bash
# Fetches published weights: bash scripts/download.sh MODEL [arguments of scripts/download.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/download.py" "$@"
