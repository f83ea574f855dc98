#!/usr/bin/env bash
# Measures how long a cube takes from disk into RAM: from its snapshot and a tail, and from its rows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --quiet --bin memcube
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for items in 1000 10000 100000; do
    "$memcube" bench hydrate --dir "$scratch/$items" --items "$items" --tail $((items / 100)) \
        --rounds "${ROUNDS:-100}" --json >"$scratch/$items.json"
    rm -rf "${scratch:?}/$items"
done
python3 benches/state_table.py hydrate "$scratch" | tee benches/results/hydrate.md
