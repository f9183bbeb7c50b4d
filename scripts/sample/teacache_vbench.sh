#!/usr/bin/env bash
# VBench samples with TeaCache: bash scripts/sample/teacache_vbench.sh [CONFIG] [arguments of scripts/sample.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sample teacache_slow vbench "$@"
