#!/usr/bin/env bash
# A video from a prompt, without caching: bash scripts/single_run/magi_t2v.sh [arguments of scripts/generate.py]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
generate t2v none magi_t2v "$@"
