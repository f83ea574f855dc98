#!/usr/bin/env bash
# Measures the embedded store with many registered cubes, beside one with few, in turns.
# COUNT is how many are many; a million take some minutes to make.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --quiet --bin memcube
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
many=${COUNT:-1000000}
for count in 1000 "$many"; do
    "$memcube" bench cubes --dir "$scratch/$count" --count "$count" --register --json \
        >"$scratch/$count.register.json"
done
for round in 1 2 3; do
    for count in 1000 "$many"; do
        "$memcube" bench cubes --dir "$scratch/$count" --count "$count" --json \
            >"$scratch/$count.$round.json"
    done
done
python3 benches/state_table.py cubes "$scratch" | tee benches/results/cubes.md
