#!/usr/bin/env bash
# VBench samples with MAGI-1 as it is: bash scripts/sample/magi_vbench.sh [CONFIG] [arguments of scripts/sample.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sample none vbench "$@"
