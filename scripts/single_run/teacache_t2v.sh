#!/usr/bin/env bash
# A video from a prompt, with TeaCache: bash scripts/single_run/teacache_t2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate t2v teacache_fast teacache_t2v "$@"
