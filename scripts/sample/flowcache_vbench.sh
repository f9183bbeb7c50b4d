#!/usr/bin/env bash
# VBench samples with FlowCache: bash scripts/sample/flowcache_vbench.sh [CONFIG] [arguments of scripts/sample.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sample flowcache_fast vbench "$@"
