#!/usr/bin/env bash
# Runs `cargo test` with the arguments given, lets its output through as it comes, and ends with one
# line, `N passed, N failed`, summed over all test programs and doc tests. The exit status is
# cargo's. Benchmarks are not run: `cargo test` leaves them out unless it is told `--all-targets`.
set -euo pipefail

status=0
results=$(mktemp)
trap 'rm -f "$results"' EXIT

# Only standard output is looked at; standard error, with cargo's progress, goes straight through.
"${CARGO:-cargo}" test --no-fail-fast "$@" | tee "$results" || status=$?

awk -v status="$status" '
    { gsub(/\033\[[0-9;]*m/, "") }
    /^test result: (ok|FAILED)\. [0-9]+ passed; [0-9]+ failed;/ { passed += $4; failed += $6 }
    END {
        # A program that did not compile, or died, leaves no result line.
        if (status != 0 && failed == 0) failed = 1
        printf "%d passed, %d failed\n", passed, failed
    }' "$results"
exit "$status"
