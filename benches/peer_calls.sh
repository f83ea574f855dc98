#!/bin/sh
# Measures calls to cubes on another node.
# usage: benches/peer_calls.sh [seconds a case]
set -eu
cd "$(dirname "$0")/.."
{
    echo '# Calls to a cube on another node, over loopback'
    echo
    cargo bench --quiet --bench peer_calls -- --seconds "${1:-5}"
} | tee benches/results/peer_calls.md
