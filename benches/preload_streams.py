"""Makes the questions for `memcube bench preload --streams` from a memeval folder with labels.

usage: preload_streams.py CONVERSATIONS > streams.jsonl

A line of the output, in the order in which the questions are to be asked:

    {"id": "locomo/conv-26/walk0", "cube": "locomo/conv-26", "questions": ["Where did ...", ...]}

Only the texts of the questions and their order are given away, no answer and no evidence.
"""

import json
import sys
from pathlib import Path


def streams(path):
    """The streams of one conversation file: its `q` lines, in the orders of its `stream` lines."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    cube = next(record["id"] for record in records if record["t"] == "conv")
    questions = {record["id"]: record["question"] for record in records if record["t"] == "q"}
    for record in records:
        if record["t"] == "stream":
            yield {"id": record["id"], "cube": cube, "questions": [questions[one] for one in record["order"]]}


if len(sys.argv) != 2:
    sys.exit(__doc__)
files = sorted(Path(sys.argv[1]).glob("*.jsonl"))
if not files:
    sys.exit(f"there is no conversation in `{sys.argv[1]}`")
for file in files:
    for stream in streams(file):
        print(json.dumps(stream, ensure_ascii=False))
