#!/usr/bin/env bash
# Measures recall in a cube, embedding excluded, and beside it FAISS's flat index on the same vectors.
# FAISS only ranks vectors; recall also scores words, speakers and dates.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source benches/python.sh.inc
python_with numpy faiss-cpu
cargo build --release --quiet --bin memcube
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
for items in 10000 100000; do
    for round in 1 2 3; do
        "$memcube" bench recall-speed --items "$items" --queries 500 --vectors "$scratch/vectors" --json \
            >"$scratch/$items.$round.json"
        "$python" benches/recall_faiss.py "$scratch/vectors" "$items" >"$scratch/$items.$round.faiss.json"
    done
done
"$python" benches/recall_table.py "$scratch" | tee benches/results/recall_speed.md
