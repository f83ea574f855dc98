"""llama.cpp's own server, as the package `xllamacpp` carries it. Prints its address when it is ready.

usage: llama_server.py MODEL.gguf
"""

import json
import socket
import sys
import time
import urllib.error
import urllib.request

import xllamacpp


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def is_ready(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return json.load(answer).get("status") == "ok"
    except (urllib.error.URLError, OSError):
        return False


parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.model_alias = {"smollm2"}
parameters.hostnames = ["127.0.0.1"]
parameters.port = free_port()
parameters.n_ctx = 8192
parameters.n_parallel = 1
# Threads that wait for each other are slow on a machine that others use.
parameters.cpuparams.n_threads = 1
server = xllamacpp.Server(parameters)
address = f"http://127.0.0.1:{parameters.port}"
while not is_ready(address):
    time.sleep(0.1)
print(address, flush=True)
while True:
    time.sleep(3600)
