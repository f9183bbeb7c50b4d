#!/usr/bin/env bash
# A page that shows videos while they are made: bash scripts/serve.sh [arguments of scripts/serve.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/serve.py" "$@"
