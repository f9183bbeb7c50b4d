#!/usr/bin/env bash
# Tries gpu_check.sh as on a machine that has torch and little else: bash benchmarks/gpu_check/bare.sh [SECTIONS...]
#
# The packages below cannot be imported, in the program and in those that it starts. On a CPU, in tiny sizes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bash "$root/scripts/setup_env.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/sitecustomize.py" <<'PYTHON'
import sys

for name in ("av", "cv2", "jinja2", "lpips", "matplotlib", "skimage", "torchmetrics", "torchvision"):
    sys.modules[name] = None
PYTHON
PYTHONPATH=$work PATH=$root/.venv/bin:$PATH bash "$root/benchmarks/gpu_check.sh" "$work/out" --device cpu --small \
    ${1:+--sections "$@"}
