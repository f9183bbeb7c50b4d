#!/usr/bin/env bash
# The continuation of a video, with multi-step reuse: bash scripts/single_run/multistep_v2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate v2v multistep multistep_v2v --prompt "a big yellow square moves right slowly at sunset" \
    --prefix_video_path "$root/example/assets/clip.mp4" "$@"
