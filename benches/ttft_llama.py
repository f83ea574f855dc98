"""llama.cpp as the other engine of `memcube bench ttft`: answers requests, one a line of JSON.

The library is a prebuilt one (see `ttft.sh`); its functions are called directly, so that nothing of
Python is in what is measured but a handful of calls.
usage: ttft_llama.py <folder of the library> <backend> <model.gguf> [threads]
"""

import ctypes
import glob
import json
import sys
import time

# Words of llama_context_params (llama.cpp as in node-llama-cpp 3.22.1).
N_CTX, N_BATCH, N_UBATCH, FLASH_ATTENTION = 0, 1, 2, 13
WINDOW = 8192
BATCH = 2048


class Params(ctypes.Structure):
    """Large enough for every structure of parameters; passed and returned by value."""

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [("tokens", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6)]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
QUIET = LOG(lambda level, text, data: None)


def library(folder, backend):
    def load(pattern):
        (path,) = glob.glob(f"{folder}/{pattern}")
        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)

    load("libggml-base.so")
    ggml = load("libggml.v*.so")
    ggml.ggml_backend_load.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    llama = load("libllama.v*.so")
    llama.llama_log_set(QUIET, None)
    if not ggml.ggml_backend_load(f"{folder}/libggml-cpu-{backend}.so".encode()):
        raise SystemExit(f"this processor cannot run the backend `{backend}`")
    llama.llama_backend_init()
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
    signatures = {
        "llama_model_default_params": (Params, []),
        "llama_context_default_params": (Params, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, Params]),
        "llama_init_from_model": (pointer, [pointer, Params]),
        "llama_set_n_threads": (None, [pointer, integer, integer]),
        "llama_batch_get_one": (Batch, [pointer, integer]),
        "llama_decode": (integer, [pointer, Batch]),
        "llama_synchronize": (None, [pointer]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, integer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_memory_seq_rm": (ctypes.c_bool, [pointer, integer, integer, integer]),
        "llama_state_seq_get_size": (size, [pointer, integer]),
        "llama_state_seq_get_data": (size, [pointer, pointer, size, integer]),
        "llama_state_seq_set_data": (size, [pointer, pointer, size, integer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (integer, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    return llama


class Engine:
    def __init__(self, folder, backend, model, threads):
        self.llama = library(folder, backend)
        self.name = f"llama.cpp, backend {backend}, flash attention, {threads} threads"
        llama = self.llama
        self.model = llama.llama_model_load_from_file(
            model.encode(), llama.llama_model_default_params()
        )
        if not self.model:
            raise SystemExit(f"cannot load `{model}`")
        params = llama.llama_context_default_params()
        params.words[N_CTX], params.words[N_BATCH] = WINDOW, BATCH
        params.words[FLASH_ATTENTION] = 1
        self.context = llama.llama_init_from_model(self.model, params)
        llama.llama_set_n_threads(self.context, threads, threads)
        vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.tokens = [at * 7919 % vocabulary for at in range(WINDOW)]
        self.state, self.held = None, 0
        # The first pass touches the weights.
        self.compute(0, 64)
        self.clear()

    def clear(self):
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), False)

    def compute(self, start, end):
        """Computes tokens, and waits for the logits of the last one."""
        while start < end:
            part = self.tokens[start : min(end, start + BATCH)]
            numbers = (ctypes.c_int32 * len(part))(*part)
            batch = self.llama.llama_batch_get_one(numbers, len(part))
            if self.llama.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            start += len(part)
        self.llama.llama_synchronize(self.context)
        return self.llama.llama_get_logits_ith(self.context, -1)[0]

    def build(self, tokens):
        self.clear()
        start = time.perf_counter()
        self.compute(0, tokens)
        size = self.llama.llama_state_seq_get_size(self.context, 0)
        self.state = ctypes.create_string_buffer(size)
        self.llama.llama_state_seq_get_data(self.context, self.state, size, 0)
        self.held = tokens
        return {"seconds": time.perf_counter() - start}

    def direct(self, tokens):
        self.clear()
        start = time.perf_counter()
        self.compute(0, self.held + tokens)
        return {"seconds": time.perf_counter() - start}

    def restored(self, tokens):
        self.clear()
        start = time.perf_counter()
        size = len(self.state)
        if self.llama.llama_state_seq_set_data(self.context, self.state, size, 0) == 0:
            raise RuntimeError("the state was refused")
        self.compute(self.held, self.held + tokens)
        return {"seconds": time.perf_counter() - start}

    def speed(self, tokens, steps):
        self.clear()
        start = time.perf_counter()
        self.compute(0, tokens)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for step in range(steps):
            self.compute(tokens + step, tokens + step + 1)
        return {"prefill_s": prefill, "decode_s": time.perf_counter() - start}


def main():
    folder, backend, model = sys.argv[1:4]
    threads = int(sys.argv[4]) if len(sys.argv) > 4 else 2
    engine = Engine(folder, backend, model, threads)
    measures = {
        "name": lambda: {"name": engine.name},
        "build": engine.build,
        "direct": engine.direct,
        "restored": engine.restored,
        "speed": engine.speed,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = measures[request.pop("measure")](**request)
        except (KeyError, RuntimeError, TypeError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
