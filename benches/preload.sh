#!/usr/bin/env bash
# Measures next-scene prediction. DATA is a folder with the Python package `memeval` and conversations
# with labels in `visible/`; the program that is measured sees them without labels.
#
#     benches/preload.sh DATA [FOLDER OF CONVERSATIONS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 1 ]; then
    echo "usage: benches/preload.sh DATA [FOLDER OF CONVERSATIONS]" >&2
    exit 2
fi
data=$(realpath "$1")
labels=$(realpath "${2:-$data/visible}")
source benches/python.sh.inc
python_with numpy PyStemmer
cargo build --release --quiet --bin memcube
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$data PYTHONDONTWRITEBYTECODE=1
"$python" -m memeval.strip "$labels" "$scratch/in"
"$python" benches/preload_streams.py "$labels" >"$scratch/streams.jsonl"
"$memcube" bench preload --data "$scratch/in" --out "$scratch/preload.jsonl" --baselines \
    --streams "$scratch/streams.jsonl" --items 10000 --json >"$scratch/report.json"
for typed in 25 50 75; do
    "$memcube" bench preload --data "$scratch/in" --out "$scratch/preload.typed-$typed.jsonl" --typed "0.$typed"
done
# In real time, with all its pauses: some twelve minutes, on a machine with nothing else to do.
"$memcube" bench scenes --data "$scratch/in" --plot benches/results/scenes.svg --json >"$scratch/scenes.json"
"$python" benches/preload_table.py "$labels" "$scratch" benches/results
