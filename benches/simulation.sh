#!/usr/bin/env bash
# Measures the simulations: seeds and simulated seconds per CPU-second, one scenario after the other,
# one run at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --locked --quiet --profile sim -p memcube-simulations
sim="${CARGO_TARGET_DIR:-target}/sim/memcube-sim"
seeds="${SEEDS:-200}"
{
    echo "# Speed of the simulations"
    echo
    echo "$seeds seeds of each scenario, one at a time; 60 simulated seconds of work in each, then the"
    echo "heal and the checks. The twentieth of the seeds that is run twice is not counted as seeds, but"
    echo "its CPU time is."
    echo
    echo "| scenario | simulated seconds per CPU-second | seeds per CPU-second |"
    echo "|---|---|---|"
    for scenario in assistant tenants hand_over crash_storm; do
        "$sim" swarm --scenario "$scenario" --seeds "$seeds" --jobs 1 2>/dev/null |
            sed -nE "s/^ *CPU .*: ([0-9]+) simulated s and ([0-9.]+) runs per CPU s$/| $scenario | \1 | \2 |/p"
    done
} | tee benches/results/simulation.md
