#!/usr/bin/env bash
# Many videos, one load: bash scripts/sample.sh --prompts FILE [--method NAME] [arguments of scripts/sample.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/sample.py" "$@"
