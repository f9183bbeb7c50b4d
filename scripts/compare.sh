#!/usr/bin/env bash
# Compare caching methods on the bundled model: bash scripts/compare.sh [--quick] [arguments of benchmarks/compare/main.py]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
exec "$root/.venv/bin/python" "$root/benchmarks/compare/main.py" "$@"
