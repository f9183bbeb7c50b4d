#!/usr/bin/env bash
# A video from a prompt, with multi-step reuse: bash scripts/single_run/multistep_t2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate t2v multistep multistep_t2v "$@"
