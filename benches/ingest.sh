#!/usr/bin/env bash
# Imports one conversation through HTTP, two messages at a time, everything included.
# usage: MEMCUBE_BENCH_CONVERSATION=FILE benches/ingest.sh (any format that `memcube import` reads)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${MEMCUBE_BENCH_CONVERSATION:-}" ]; then
    echo "skipped: set MEMCUBE_BENCH_CONVERSATION to a file with a conversation"
    exit 0
fi
cargo build --release --quiet --bin memcube
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${CARGO_TARGET_DIR:-target}/release/memcube" bench ingest --data "$MEMCUBE_BENCH_CONVERSATION" \
    --data-dir "$scratch" | tee benches/results/ingest.txt
