#!/usr/bin/env bash
# Runs every other script of this folder, one after the other, and says at the end which failed.
# `benches/run.sh recall` runs those alone whose name contains `recall`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=()
ran=0
for script in benches/*.sh; do
    [ "$script" = benches/run.sh ] && continue
    [[ $script == *"${1:-}"* ]] || continue
    ran=$((ran + 1))
    printf '\n=== %s\n' "$script"
    bash "$script" || failed+=("$script")
done
if [ "$ran" -eq 0 ]; then
    echo "bench: no script in \`benches/\` matches \`${1:-}\`" >&2
    exit 1
fi
if [ "${#failed[@]}" -ne 0 ]; then
    echo "bench: failed: ${failed[*]}" >&2
    exit 1
fi
echo "bench: $ran done"
