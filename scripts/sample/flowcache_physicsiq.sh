#!/usr/bin/env bash
# Physics-IQ samples with FlowCache: bash scripts/sample/flowcache_physicsiq.sh [CONFIG] [arguments of scripts/sample.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sample flowcache_fast physicsiq "$@"
