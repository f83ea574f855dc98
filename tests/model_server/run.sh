#!/usr/bin/env bash
# Chats through a server whose language model is behind llama.cpp's own server. Its last line is
# `N passed, N failed`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target="${CARGO_TARGET_DIR:-target}"
venv="$target/model-server-python"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement tests/model_server/requirements.txt >&2
model=${MEMCUBE_LANGUAGE_MODEL_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/memcube/models/smollm2-135m-instruct}
weights=$(ls "$model"/*.gguf 2>/dev/null | head -n 1)
if [ -z "$weights" ]; then
    echo "error: there is no model in $model; run \`make language-model\`" >&2
    exit 1
fi

cargo build --locked --quiet ${FEATURES:+--features "$FEATURES"} --bin memcube
directory=$(mktemp -d)
processes=()
finish() {
    for process in "${processes[@]}"; do
        if kill "$process" 2>/dev/null; then wait "$process" || true; fi
    done
    rm -rf "$directory"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Waits until a process has written a line, or ended.
await() {
    for _ in $(seq 1200); do
        if [ -s "$directory/$2" ] || ! kill -0 "$1" 2>/dev/null; then break; fi
        sleep 0.1
    done
    if [ ! -s "$directory/$2" ]; then
        echo "error: $2 did not come:" >&2
        tail -n 20 "$directory/$2.log" >&2
        exit 1
    fi
}

"$venv/bin/python" tests/model_server/llama_server.py "$weights" \
    >"$directory/model" 2>"$directory/model.log" &
model_server=$!
processes+=("$model_server")
await "$model_server" model

MEMCUBE__INFERENCE__URL="$(cat "$directory/model")/v1" \
MEMCUBE__INFERENCE__REMOTE_MODEL=smollm2 \
MEMCUBE__INFERENCE__FIRST_TOKEN_TIMEOUT_MS=120000 \
    "$target/debug/memcube" serve --json --listen 127.0.0.1:0 --embedder none \
    --data-dir "$directory/data" --language-model openai \
    >"$directory/ready" 2>"$directory/ready.log" &
server=$!
processes+=("$server")
await "$server" ready

of_ready() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$directory/ready"; }
"$venv/bin/python" tests/model_server/check.py \
    "$(of_ready address)" "$(of_ready api_key)" "$model_server"
