#!/usr/bin/env bash
# A video that starts from an image, without caching: bash scripts/single_run/magi_i2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate i2v none magi_i2v --image_path "$root/example/assets/image.png" "$@"
