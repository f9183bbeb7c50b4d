#!/usr/bin/env bash
# A video that starts from an image, with multi-step reuse: bash scripts/single_run/multistep_i2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate i2v multistep multistep_i2v --image_path "$root/example/assets/image.png" "$@"
