#!/usr/bin/env bash
# Makes the environment that every other script runs in: .venv in this checkout, with what requirements.txt lists.
# Returns at once when nothing has changed since; repairs a set-up that was interrupted. Messages go to stderr.
#
#   bash scripts/setup_env.sh        (the other scripts call it by themselves; sourcing it does the same)

# A subshell, so that sourcing this changes nothing in the shell that does.
(
    set -euo pipefail
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    venv=$root/.venv
    python=$venv/bin/python
    log=$root/.~setup.log
    lock=$root/.~setup.lock
    stamp=$venv/.flowcache-setup        # which requirements are installed
    unfinished=$venv/.flowcache-setup-unfinished

    say() { printf 'setup: %s\n' "$*" >&2; }
    fail() {
        say "$1"
        shift
        for line in "$@"; do printf '       %s\n' "$line" >&2; done
        exit 1
    }
    logged() { "$@" >>"$log" 2>&1; }

    # The requirements and the Python they were installed for, read without starting Python.
    wanted() { printf '%s %s\n' "$(cksum <"$root/requirements.txt")" "$(grep -i '^version' "$venv/pyvenv.cfg")"; }
    is_ready() { [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; }
    is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

    find_python() {
        for name in python3.13 python3.12 python3.11 python3 python; do
            # Started, not only looked up: version managers put names on the PATH that then refuse to run.
            if is_recent "$name"; then command -v "$name" && return; fi
        done
        return 1
    }

    # uv brings everything it needs. Python's own venv may lack pip (Debian's python3-venv); then the environment is
    # made without, and filled from outside by uv or by the pip of the Python that made it.
    create() {
        base=$(find_python) || base=
        say "making the environment $venv${base:+ with $base}"
        if command -v uv >/dev/null && logged uv venv --clear --python "${base:->=3.11}" "$venv"; then return; fi
        [ -n "$base" ] || fail "no Python 3.11 or newer found (tried python3.13, python3.12, python3.11, python3, python)" \
            "Install one (Debian, Ubuntu: apt install python3.12 python3.12-venv; macOS: brew install python@3.12)" \
            "or install uv, which brings its own: https://docs.astral.sh/uv/getting-started/installation"
        logged "$base" -m venv --clear "$venv" || logged "$base" -m venv --clear --without-pip "$venv" ||
            fail "$base cannot make an environment, see $log" "On Debian and Ubuntu: apt install python3-venv"
    }

    # Sets `uv` to the command that runs uv.
    find_uv() {
        uv=(uv)
        command -v uv >/dev/null && return
        uv=("$python" -m uv)
        if "${uv[@]}" --version >/dev/null 2>&1; then return; fi
        say "fetching uv, the installer"
        logged "$python" -m pip install --force-reinstall uv && return
        base=$(find_python) || base=$python
        logged "$base" -m pip --python "$python" install uv ||
            fail "cannot install uv: neither $python nor $base has a working pip, or there is no network; see $log" \
                "On Debian and Ubuntu: apt install python3-pip python3-venv" \
                "or install uv itself: https://docs.astral.sh/uv/getting-started/installation"
    }

    install() {
        find_uv
        options=()
        # What an interrupted run left may be half a package that looks installed.
        [ ! -e "$unfinished" ] || options=(--reinstall)
        : >"$unfinished"
        say "installing what requirements.txt lists (PyTorch is large; log: $log)"
        if ! logged "${uv[@]}" pip install --python "$python" ${options[@]+"${options[@]}"} -r "$root/requirements.txt"; then
            tail -n 15 "$log" >&2
            fail "the installation failed; the whole log is $log" "Call this again once the cause is gone"
        fi
        wanted >"$stamp.part"
        mv "$stamp.part" "$stamp"
        rm -f "$unfinished"
    }

    ! is_ready || exit 0
    [ -w "$root" ] || fail "cannot write to $root, where the environment .venv has to be"
    if command -v flock >/dev/null; then
        exec 9>"$lock"
        flock -n 9 || { say "another set-up of this checkout is running, waiting for it" && flock 9; }
        ! is_ready || exit 0
    fi
    : >"$log"
    started=$SECONDS
    if ! "$python" -c '' >/dev/null 2>&1; then
        [ ! -e "$venv" ] || say "$venv does not work, it is made anew"
        create
    elif ! is_recent "$python"; then
        fail "$venv has $("$python" --version 2>&1), but Python 3.11 or newer is needed" "Move it away and call this again"
    fi
    install
    say "ready after $((SECONDS - started)) s"
)
