#!/usr/bin/env bash
# Measures the embedder against onnxruntime on the same weights, in turns.
# usage: benches/embed.sh [file of sentences, one a line]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source benches/python.sh.inc
model=${MEMCUBE_MODEL_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/memcube/models/minilm-l6-v2}
python_with onnx onnxruntime numpy safetensors tokenizers
cargo build --release --quiet --example bench_minilm
"$python" benches/embed_onnx.py "$model" "${CARGO_TARGET_DIR:-target}/release/examples/bench_minilm" \
    ${1:+--sentences "$1"} | tee benches/results/embed.txt
