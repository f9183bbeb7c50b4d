# What the scripts in this folder share. They source it, then call `generate` with their defaults and the user's
# arguments, of which the later ones win. The working directory stays the user's: relative paths mean what was typed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# generate MODE METHOD NAME [arguments of scripts/generate.py]
generate() {
    local mode=$1 method=$2 name=$3
    shift 3
    bash "$root/scripts/setup_env.sh"
    exec "$root/.venv/bin/python" "$root/scripts/generate.py" \
        --mode "$mode" \
        --config_file "$root/configs/model/nano.json" \
        --method_config "$root/configs/method/$method.yaml" \
        --prompt "a big red ball bounces up and down in the sky" \
        --output_path "outputs/$name.mp4" \
        "$@"
}
