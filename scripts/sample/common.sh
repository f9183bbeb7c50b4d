# What the scripts in this folder share. They source it, then call `sample` with the user's arguments: a configuration,
# if the first is no flag, then flags of scripts/sample.py, of which the later ones win. The working directory stays the
# user's: relative paths mean what was typed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# sample METHOD BENCHMARK [CONFIG] [flags of scripts/sample.py]
sample() {
    local method=$1 config=$root/configs/sample/$2.yaml
    shift 2
    if [[ $# -gt 0 && $1 != -* ]]; then
        config=$1
        shift
    fi
    bash "$root/scripts/setup_env.sh"
    exec "$root/.venv/bin/python" "$root/scripts/sample.py" "$config" \
        --method_config "$root/configs/method/$method.yaml" "$@"
}
