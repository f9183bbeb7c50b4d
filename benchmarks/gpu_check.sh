#!/usr/bin/env bash
# Everything worth measuring on a GPU, in at most nine minutes: bash benchmarks/gpu_check.sh [OUT_DIR] [arguments of benchmarks/gpu_check/main.py]
#
# Where python3 has what the check imports it is used as it is, so that a machine without a network will do. What it
# lacks may lie as wheels in the folder .wheels of the checkout (docs/gpu_check.md); else the environment is set up.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=python3
if compgen -G "$root/.wheels/*.whl" >/dev/null; then
    packages=$(mktemp -d)
    trap 'rm -rf "$packages"' EXIT
    python3 -m pip install --quiet --no-index --no-deps --target "$packages" "$root"/.wheels/*.whl
    export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
fi
if ! python3 -c 'import einops, numpy, pydantic, safetensors, torch, yaml' 2>/dev/null; then
    bash "$root/scripts/setup_env.sh"
    python=$root/.venv/bin/python
fi
# The program keeps to its own budget; this is for a section that hangs. What was measured until then is on disk.
timeout 540 "$python" "$root/benchmarks/gpu_check/main.py" "$@"
