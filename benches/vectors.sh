#!/usr/bin/env bash
# Measures the LanceDB tier beside a cube's own RAM and beside tables in RAM, and how much of the
# exact answer it finds. Needs what the feature `lance` needs to build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --quiet --features lance --bin memcube
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rows=${ROWS:-200000}
"$memcube" bench vectors --rows "$rows" --json >"$scratch/lance.json"
"$memcube" bench vectors --rows "$rows" --in-ram --json >"$scratch/ram.json"
"$memcube" bench vectors --rows "$rows" --cubes 2 --json >"$scratch/large.json"
python3 benches/state_table.py vectors "$scratch" | tee benches/results/vectors.md
