#!/usr/bin/env bash
# The continuation of a video, with TeaCache: bash scripts/single_run/teacache_v2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate v2v teacache_fast teacache_v2v --prompt "a big yellow square moves right slowly at sunset" \
    --prefix_video_path "$root/example/assets/clip.mp4" "$@"
