# shellcheck shell=bash disable=SC2154 # the sourcing script sets self
# Shared helpers of the scripts in this folder; sourced, never run. Works with bash 3.2 (macOS) and later.
# The sourcing script sets `self` (its name in messages) and may set QUIET=1.

QUIET=${QUIET:-0}
STEP_PID=

# ---- how the scripts speak ---------------------------------------------------------------------------------------

say() { [ "$QUIET" = 1 ] || printf '%s: %s\n' "$self" "$*"; }
title() { printf '\n== %s\n' "$*"; }
warn() { printf '%s: warning: %s\n' "$self" "$*" >&2; }

# die WHAT-AND-WHERE MEND [EXIT-CODE]
die() {
    printf '%s: error: %s\n' "$self" "$1" >&2
    printf '%s:  mend: %s\n' "$self" "$2" >&2
    exit "${3:-1}"
}

usage_error() {
    printf '%s: error: %s\n%s:  mend: see scripts/%s --help\n' "$self" "$1" "$self" "$self" >&2
    exit 2
}

# usage_from_head FILE: the comment at the head of a script, without its first line.
usage_from_head() { sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"; }

# tail_of FILE [LINES]: the end of a log, set off from what we say ourselves.
tail_of() { if [ -s "$1" ]; then tail -n "${2:-12}" "$1" | sed 's/^/  | /' >&2; fi; }

# ---- cargo -------------------------------------------------------------------------------------------------------

# Sets CARGO_TARGET_DIR and bin. The target directory lies outside the checkout, so that a fresh clone compiles only
# our own crates.
use_cargo() {
    command -v cargo >/dev/null 2>&1 ||
        die "cargo is not on PATH" "install Rust 1.95 or later with rustup (or: . \"\$HOME/.cargo/env\"), then run this again" "${1:-1}"
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${QMT_TARGET:-$HOME/.cache/qmt-target}}"
    case $CARGO_TARGET_DIR in /*) ;; *) CARGO_TARGET_DIR=$PWD/$CARGO_TARGET_DIR ;; esac
    # shellcheck disable=SC2034 # used where this is sourced
    bin=$CARGO_TARGET_DIR/release
}

# ---- this machine ------------------------------------------------------------------------------------------------

if command -v sha256sum >/dev/null 2>&1; then
    sha256_of() { sha256sum <"$1" | cut -d' ' -f1; }
else
    sha256_of() { shasum -a 256 <"$1" | cut -d' ' -f1; }
fi

# What changes when a file is written to or replaced: size, modification time, inode.
if stat -c %s / >/dev/null 2>&1; then
    file_signature() { stat -L -c %s.%Y.%i "$1" 2>/dev/null; }
else
    file_signature() { stat -L -f %z.%m.%i "$1" 2>/dev/null; }
fi

cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1; }

is_root() { [ "$(id -u)" = 0 ]; }

minutes() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

# need_space DIR MEGABYTES PURPOSE VARIABLE: DIR need not exist yet.
need_space() {
    local dir=$1 free
    while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
    free=$(df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$2" ] ||
        die "too little disk space for $3: $1 has $free MB free, $2 MB are needed" \
            "free some space there, or set $4 to a folder on a larger disk"
}

# need_writable DIR VARIABLE: makes it if need be.
need_writable() {
    { mkdir -p "$1" && [ -w "$1" ]; } 2>/dev/null ||
        die "cannot write to $1" "make it writable, or set $2 to a folder that is"
}

# ---- long steps --------------------------------------------------------------------------------------------------

# run_child COMMAND...: runs it in the foreground of this script, in a process group of its own, so that a signal to this
# script is answered at once and stop_step ends the command with its children. Returns its exit code.
run_child() {
    local code=0
    set -m
    "$@" </dev/null &
    STEP_PID=$!
    set +m
    wait "$STEP_PID" || code=$?
    STEP_PID=
    return "$code"
}

# run_step LABEL LOG COMMAND...: runs it with its output in LOG, shows progress, returns its exit code.
# The command gets a process group of its own, so that stop_step ends its children too.
run_step() {
    local label=$1 log=$2 began=$SECONDS code=0
    shift 2
    set -m
    "$@" >"$log" 2>&1 </dev/null &
    STEP_PID=$!
    set +m
    if [ "$QUIET" = 0 ] && [ -t 1 ]; then
        show_progress "$label" "$log" "$began"
    else
        say "$label"
    fi
    wait "$STEP_PID" || code=$?
    STEP_PID=
    return "$code"
}

# The line in place: how long, what, and how far: the step counter that ninja writes ("[12/217] ..."), else the crate
# that cargo has begun.
show_progress() {
    local width last
    width=$(tput cols 2>/dev/null || echo 80)
    while kill -0 "$STEP_PID" 2>/dev/null; do
        last=$(tail -n 1 "$2" 2>/dev/null | sed -n -e 's/^\(\[[0-9]*\/[0-9]*\]\).*/ \1/p' -e 's/^ *Compiling \([^ ]*\).*/ (\1)/p')
        printf '\r\033[K%.*s' $((width - 1)) "$self: $(minutes $((SECONDS - $3))) $1$last"
        sleep 0.3
    done
    printf '\r\033[K%.*s\n' $((width - 1)) "$self: $(minutes $((SECONDS - $3))) $1"
}

stop_step() {
    [ -n "$STEP_PID" ] || return 0
    kill -TERM -- "-$STEP_PID" 2>/dev/null || true
    wait "$STEP_PID" 2>/dev/null || true
    STEP_PID=
}

# take_lock FILE: waits until this process has it. The kernel gives it back when the last process that inherited
# descriptor 9 is gone, so a killed run leaves no stale lock, and a compiler it left behind still counts as busy.
take_lock() {
    mkdir -p "$(dirname "$1")"
    exec 9>>"$1"
    try_lock && return
    say "another run holds $1; waiting for it to finish"
    until try_lock; do sleep 2; done
}

try_lock() {
    python3 -c 'import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError: sys.exit(1)'
}
