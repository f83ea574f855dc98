"""Searches the vectors of a recall benchmark with FAISS's flat index, one question at a time.

usage: recall_faiss.py VECTORS ITEMS  (prints p50, p99 and max in milliseconds as JSON)
"""

import json
import sys
import time

import faiss
import numpy as np

DIMENSIONS = 384

vectors = np.fromfile(sys.argv[1], dtype="<f4").reshape(-1, DIMENSIONS)
items = int(sys.argv[2])
index = faiss.IndexFlatIP(DIMENSIONS)
index.add(vectors[:items])
for query in vectors[items : items + 20]:
    index.search(query[None], 10)
times = []
for query in vectors[items:]:
    start = time.perf_counter()
    index.search(query[None], 10)
    times.append((time.perf_counter() - start) * 1e3)
print(json.dumps({"p50": np.percentile(times, 50), "p99": np.percentile(times, 99), "max": max(times)}))
