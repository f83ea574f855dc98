#!/usr/bin/env bash
# Measures what independent segments cost in accuracy and what they save.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --quiet --bin memcube
memcube="${CARGO_TARGET_DIR:-target}/release/memcube"
{
    printf '# Independent segments against the exact computation\n\n'
    "$memcube" bench segments --prompts "${PROMPTS:-16}" --rounds "${ROUNDS:-3}"
} | tee benches/results/segments.md
