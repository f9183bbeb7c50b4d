#!/usr/bin/env bash
# How alike videos are: bash scripts/metric.sh ORIGINAL GENERATED [arguments of scripts/metric.py]; two files or two folders
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/scripts/metric.py" "$@"
