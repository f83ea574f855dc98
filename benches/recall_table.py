"""Prints the table of a recall benchmark from the files that its rounds left.

usage: recall_table.py DIRECTORY
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

directory = Path(sys.argv[1])


def median(items, suffix, field):
    values = []
    for path in sorted(directory.glob(f"{items}.?{suffix}.json")):
        report = json.loads(path.read_text())
        report = report[0]["search_ms"] if isinstance(report, list) else report
        values.append(report[field])
    return statistics.median(values), values


cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
print(f"# Recall in one cube, query embedding excluded\n\n{os.cpu_count()} × {cpu}; median of three rounds in turns, 500 queries each, milliseconds.\n")
print("| items | memcube p50 | memcube p99 | FAISS flat p50 | FAISS flat p99 | p50 ratio | p99 of each round |")
print("|---|---|---|---|---|---|---|")
for items in (10_000, 100_000):
    ours, theirs = median(items, "", "p50")[0], median(items, ".faiss", "p50")[0]
    p99, rounds = median(items, "", "p99")
    peer = median(items, ".faiss", "p99")[0]
    each = ", ".join(f"{value:.2f}" for value in rounds)
    print(f"| {items:,} | {ours:.2f} | {p99:.2f} | {theirs:.2f} | {peer:.2f} | {ours / theirs:.2f} | {each} |")
print("\nmemcube ranks by vectors, words, speakers, dates and form; FAISS by vectors alone.")
