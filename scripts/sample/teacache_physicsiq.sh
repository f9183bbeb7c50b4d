#!/usr/bin/env bash
# Physics-IQ samples with TeaCache: bash scripts/sample/teacache_physicsiq.sh [CONFIG] [arguments of scripts/sample.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sample teacache_slow physicsiq "$@"
