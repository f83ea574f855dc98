#!/usr/bin/env bash
# Measures an idle server: seconds until it answers, and resident memory, without and with the model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --quiet --bin memcube
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
scratch=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; rm -rf "$scratch"' EXIT
{
    echo "# An idle server"
    echo
    echo "| embedder | start | ready after (ms) | resident (MB) |"
    echo "|---|---|---|---|"
    for embedder in none minilm; do
        for start in first second; do
            mkfifo "$scratch/ready"
            begin=$(date +%s%N)
            "$memcube" serve --data-dir "$scratch/$embedder" --listen 127.0.0.1:0 --embedder "$embedder" \
                --json >"$scratch/ready" 2>/dev/null &
            pid=$!
            read -r _ <"$scratch/ready"
            ready=$((($(date +%s%N) - begin) / 1000000))
            sleep 1
            resident=$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$pid/status")
            echo "| $embedder | $start | $ready | $resident |"
            kill "$pid" && wait "$pid" || true
            pid=
            rm "$scratch/ready"
        done
    done
} | tee benches/results/idle.md
