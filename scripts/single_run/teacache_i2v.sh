#!/usr/bin/env bash
# A video that starts from an image, with TeaCache: bash scripts/single_run/teacache_i2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate i2v teacache_fast teacache_i2v --image_path "$root/example/assets/image.png" "$@"
