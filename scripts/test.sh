#!/usr/bin/env bash
# The test suite, in this checkout's environment (made if missing): bash scripts/test.sh [--fast] [arguments of pytest]
#
# --fast leaves out what is marked slow: whole programs, several processes, whatever takes more than a second.
# Processes share the tests, one per core and four at most (-n N: another number), unless a file or a test is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
processes=$(.venv/bin/python -c 'import os; print(min(os.cpu_count() or 1, 4))')
options=()
arguments=()
for argument in "$@"; do
    case $argument in
    --fast) options+=(-m "not slow") ;;
    *)
        [[ $argument != *.py && $argument != *::* ]] || processes=0
        arguments+=("$argument")
        ;;
    esac
done
# Those of the user come last and win. Tests of a file stay together as long as there is something else to do: many
# share what is made for them.
exec .venv/bin/python -m pytest -q -n "$processes" --dist worksteal ${options[@]+"${options[@]}"} \
    ${arguments[@]+"${arguments[@]}"}
