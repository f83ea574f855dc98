#!/bin/sh
# Measures durable commits on the disk as found, and with fsync slowed to 2 ms.
# usage: benches/durable_adds.sh [results directory] [seconds a case]
set -eu
cd "$(dirname "$0")/.."
out=${1:-benches/results}
seconds=${2:-3}
shim=$(mktemp -d)/slow_fsync.so
mkdir -p "$out"
cc -O2 -shared -fPIC -o "$shim" benches/slow_fsync.c -ldl
cargo bench --bench durable_adds --no-run
run() { cargo bench --quiet --bench durable_adds -- --seconds "$seconds" "$@"; }
run --label "disk as found" --out "$out/durable_adds.as_found"
# Only the measured program is slowed, not cargo.
SLOW_FSYNC_MS=2 run --preload "$shim" --label "fsync slowed by 2 ms" --out "$out/durable_adds.slow_fsync"
