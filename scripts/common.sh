# Sourced by the scripts beside it: where things are built and kept, and how they speak.
# The target directory lies outside the checkout, so that a fresh clone compiles only our own crates.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${QMT_TARGET:-$HOME/.cache/qmt-target}}"
bin="$CARGO_TARGET_DIR/release"
work=$(mktemp -d "${TMPDIR:-/tmp}/qmt.XXXXXX")
cleanup_work() { rm -rf "$work"; }
trap cleanup_work EXIT

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; exit "${2:-1}"; }
need_cargo() {
    command -v cargo >/dev/null 2>&1 || die "cargo is not on PATH; install Rust 1.95 or later with rustup, then run this again"
}
