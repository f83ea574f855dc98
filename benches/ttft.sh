#!/usr/bin/env bash
# Measures the time to the first token on top of a cached context, in turns with llama.cpp on the
# same file. MODEL_DIR, ROUNDS, THREADS, PAUSE_MS and BACKEND (of llama.cpp, such
# as `zen4`) may be set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=3.22.1
sha256=0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0
threads=${THREADS:-2}
model=${MODEL_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/memcube/models/smollm2-135m-instruct}
MEMCUBE_LANGUAGE_MODEL_DIR=$model deploy/fetch-model.sh smollm2-135m-instruct >&2

# llama.cpp as an npm package carries it: prebuilt, for every generation of processors.
peer="${CARGO_TARGET_DIR:-target}/bench-llama-$version"
if [ ! -d "$peer/package" ]; then
    mkdir -p "$peer"
    archive=$(cd "$peer" && npm pack --silent "@node-llama-cpp/linux-x64@$version")
    echo "$sha256  $peer/$archive" | sha256sum --check --quiet
    tar -xzf "$peer/$archive" -C "$peer"
fi
libraries=$peer/package/bins/linux-x64
gguf=$(echo "$model"/*.gguf)

# The backend that reads a prompt quickest, of those that this processor can run.
backend=${BACKEND:-}
if [ -z "$backend" ]; then
    best=0
    for candidate in zen4 sapphirerapids icelake skylakex haswell x64; do
        answer=$(echo '{"measure":"speed","tokens":512,"steps":1}' |
            python3 benches/ttft_llama.py "$libraries" "$candidate" "$gguf" "$threads" 2>/dev/null) || continue
        speed=$(echo "$answer" | python3 -c \
            'import json, sys; print(int(512 / json.load(sys.stdin)["prefill_s"]))' 2>/dev/null) || continue
        echo "llama.cpp, backend $candidate: $speed tokens/s" >&2
        if [ "$speed" -gt "$best" ]; then best=$speed backend=$candidate; fi
    done
fi

cargo build --release --quiet --bin memcube
"${CARGO_TARGET_DIR:-target}/release/memcube" bench ttft --json --threads "$threads" \
    --language-model-dir "$model" --rounds "${ROUNDS:-3}" --pause-ms "${PAUSE_MS:-0}" --plot benches/results/ttft.svg \
    --peer "python3 benches/ttft_llama.py '$libraries' '$backend' '$gguf' '$threads'" \
    >benches/results/ttft.json
python3 benches/ttft_table.py benches/results/ttft.json | tee benches/results/ttft.md
