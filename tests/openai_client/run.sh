#!/usr/bin/env bash
# Talks to a server with the real models through OpenAI's own Python client. Its last line is
# `N passed, N failed`.
# usage: tests/openai_client/run.sh [address of a server that runs; its key in MEMCUBE_API_KEY]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The version that was tested; `requirements.txt` names what it stands on.
venv="${CARGO_TARGET_DIR:-target}/openai-client-python"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement tests/openai_client/requirements.txt >&2

if [ $# -gt 0 ]; then
    exec "$venv/bin/python" tests/openai_client/check.py "$1" "${MEMCUBE_API_KEY:?its API key}"
fi

cargo build --locked --quiet ${FEATURES:+--features "$FEATURES"} --bin memcube
directory=$(mktemp -d)
server=
finish() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" || true; fi
    rm -rf "$directory"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"${CARGO_TARGET_DIR:-target}/debug/memcube" serve --json --listen 127.0.0.1:0 \
    --data-dir "$directory/data" --language-model local \
    >"$directory/ready" 2>"$directory/log" &
server=$!
for _ in $(seq 600); do
    if [ -s "$directory/ready" ] || ! kill -0 "$server" 2>/dev/null; then break; fi
    sleep 0.1
done
if [ ! -s "$directory/ready" ]; then
    echo 'error: the server did not start:' >&2
    cat "$directory/log" >&2
    exit 1
fi
of_ready() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$directory/ready"; }
"$venv/bin/python" tests/openai_client/check.py "$(of_ready address)" "$(of_ready api_key)"
