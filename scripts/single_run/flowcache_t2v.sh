#!/usr/bin/env bash
# A video from a prompt, with FlowCache: bash scripts/single_run/flowcache_t2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate t2v flowcache_fast flowcache_t2v "$@"
