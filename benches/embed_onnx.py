"""Compares our MiniLM embedder with onnxruntime on this processor, interleaved in one run.

Builds two fp32 ONNX graphs from the same safetensors: `plain` (standard operators, which onnxruntime
optimises itself) and `fused` (its own Attention, SkipLayerNormalization and BiasGelu operators).
Both sides tokenize, run length-sorted batches and pool. Prints sentences per second, the median of
ratios (ours / better onnxruntime graph) and the smallest cosine between the vectors.

    pip install onnx onnxruntime numpy safetensors tokenizers
    cargo build --release --example bench_minilm
    python benches/embed_onnx.py MODEL_DIR target/release/examples/bench_minilm [--sentences FILE]
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.numpy import load_file
from tokenizers import Tokenizer

BATCHES = (1, 8, 32)


class Graph:
    """Collects the nodes and constants of an ONNX graph."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind, inputs, output, domain="", **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def save(self, path, hidden):
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "S"]) for n in ("ids", "mask")]
        output = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "S", hidden])
        graph = helper.make_graph(self.nodes, "minilm", inputs, [output], self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 8
        save(model, path)


def build(directory, path, fused):
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]
    g = Graph()
    ms = "com.microsoft"

    def weight(name):
        return g.constant(name, weights[name])

    def transposed(name):
        return g.constant(name, weights[name].T)

    def norm(x, name, skip=None, bias=None):
        gain, offset = weight(f"{name}.weight"), weight(f"{name}.bias")
        if skip is None:
            return g.node("LayerNormalization", [x, gain, offset], f"{name}.out", axis=-1, epsilon=epsilon)
        if fused:
            inputs = [x, skip, gain, offset, bias]
            return g.node("SkipLayerNormalization", inputs, f"{name}.out", ms, epsilon=epsilon)
        sum_ = g.node("Add", [g.node("Add", [x, bias], f"{name}.biased"), skip], f"{name}.sum")
        return g.node("LayerNormalization", [sum_, gain, offset], f"{name}.out", axis=-1, epsilon=epsilon)

    def matmul(x, name):
        return g.node("MatMul", [x, transposed(f"{name}.weight")], f"{name}.product")

    for name, value in (("0", [0]), ("1", [1]), ("2", [2]), ("12", [1, 2])):
        g.constant(name, np.array(value, np.int64))
    for name, value in (("one", 1), ("masked", -10000), ("half", 0.5), ("root2", 2**0.5), ("scale", (hidden / heads) ** -0.5)):
        g.constant(name, np.array(value, np.float32))
    g.constant("split", np.array([0, 0, heads, hidden // heads], np.int64))
    g.constant("join", np.array([0, 0, hidden], np.int64))

    length = g.node("Slice", [g.node("Shape", ["ids"], "shape"), "1", "2", "0"], "length")
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    places = g.node("Slice", [g.constant("places", places), "0", length, "0"], "place")
    words = g.node("Gather", [weight("embeddings.word_embeddings.weight"), "ids"], "words", axis=0)
    x = norm(g.node("Add", [words, places], "embedded"), "embeddings.LayerNorm")
    if fused:
        mask = g.node("Cast", ["mask"], "mask32", to=TensorProto.INT32)
    else:
        absent = g.node("Sub", ["one", g.node("Cast", ["mask"], "present", to=TensorProto.FLOAT)], "absent")
        mask = g.node("Unsqueeze", [g.node("Mul", [absent, "masked"], "added"), "12"], "added4")
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}."
        attention = [f"{p}attention.self.{part}" for part in ("query", "key", "value")]
        if fused:
            w = g.constant(f"{p}qkv", np.concatenate([weights[f"{n}.weight"].T for n in attention], 1))
            b = g.constant(f"{p}qkv.bias", np.concatenate([weights[f"{n}.bias"] for n in attention]))
            context = g.node("Attention", [x, w, b, mask], f"{p}context", ms, num_heads=heads)
        else:
            parts = []
            for name in attention:
                part = g.node("Add", [matmul(x, name), weight(f"{name}.bias")], f"{name}.biased")
                part = g.node("Reshape", [part, "split"], f"{name}.split")
                order = [0, 2, 3, 1] if name.endswith("key") else [0, 2, 1, 3]
                parts.append(g.node("Transpose", [part], f"{name}.heads", perm=order))
            scores = g.node("Mul", [g.node("MatMul", parts[:2], f"{p}raw"), "scale"], f"{p}scaled")
            scores = g.node("Softmax", [g.node("Add", [scores, mask], f"{p}scores")], f"{p}shares", axis=-1)
            context = g.node("MatMul", [scores, parts[2]], f"{p}mixed")
            context = g.node("Transpose", [context], f"{p}turned", perm=[0, 2, 1, 3])
            context = g.node("Reshape", [context, "join"], f"{p}context")
        name = f"{p}attention.output"
        x = norm(matmul(context, f"{name}.dense"), f"{name}.LayerNorm", x, weight(f"{name}.dense.bias"))
        name = f"{p}intermediate.dense"
        wide, bias = matmul(x, name), weight(f"{name}.bias")
        if fused:
            wide = g.node("BiasGelu", [wide, bias], f"{name}.gelu", ms)
        else:
            wide = g.node("Add", [wide, bias], f"{name}.biased")
            part = g.node("Erf", [g.node("Div", [wide, "root2"], f"{name}.arg")], f"{name}.erf")
            part = g.node("Mul", [wide, g.node("Add", [part, "one"], f"{name}.plus")], f"{name}.twice")
            wide = g.node("Mul", [part, "half"], f"{name}.gelu")
        name = f"{p}output"
        x = norm(matmul(wide, f"{name}.dense"), f"{name}.LayerNorm", x, weight(f"{name}.dense.bias"))
    g.node("Identity", [x], "hidden")
    g.save(path, hidden)


class Onnx:
    """An onnxruntime session with tokenizer and pooling."""

    def __init__(self, directory, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)

    def embed(self, texts):
        pieces = [e.ids for e in self.tokenizer.encode_batch(texts)]
        ids = np.zeros((len(pieces), max(map(len, pieces))), np.int64)
        mask = np.zeros_like(ids)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)], mask[row, : len(piece)] = piece, 1
        hidden = self.session.run(None, {"ids": ids, "mask": mask})[0]
        present = mask[..., None].astype(np.float32)
        vectors = (hidden * present).sum(1) / present.sum(1)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def rate(self, sentences, batch, seconds):
        batches = [sentences[at : at + batch] for at in range(0, len(sentences), batch)]
        for texts in batches[:4]:
            self.embed(texts)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for texts in batches:
                done += len(self.embed(texts))
        return done / (time.perf_counter() - start)


def our_rate(args, sentences, batch):
    command = [args.binary, args.model, sentences, "--batches", batch, "--threads", args.threads, "--seconds", args.seconds]
    output = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return float(output.stdout.split()[1])


def synthetic_sentences(count=200):
    """Made-up conversation turns of about 33 word pieces."""
    rng = random.Random(7)
    names = "Ana Bruno Chen Dilara Emeka Farah Goran Hana Ivo Jana".split()
    openers = ["Hey {n}, it was lovely to hear from you!", "Thanks, {n}.", "Wow, that sounds great, {n}!", "Honestly, {n},", "Oh no, {n}!", ""]
    things = "garden,old bicycle,pottery class,neighbour's dog,job interview,guitar,marathon training,sourdough,camping trip,photo album".split(",")
    verbs = "started working on,finally finished,talked for hours about,almost gave up on,took some pictures of,learned a lot from".split(",")
    times = "last weekend,yesterday evening,two years ago,on Tuesday,during the holidays,this morning".split(",")
    endings = ["How about you?", "It made me really happy.", "I still can't believe it.", "We should do it together some day!", "My sister helped me a lot with it.", "It reminded me of our time at the lake."]
    sentences = []
    for _ in range(count):
        parts = [f"{rng.choice(names)}:", rng.choice(openers).format(n=rng.choice(names))]
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            parts.append(f"I {rng.choice(verbs)} the {rng.choice(things)} {rng.choice(times)}.")
        sentences.append(" ".join(" ".join([*parts, rng.choice(endings)]).split()))
    return sentences


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory with model.safetensors, tokenizer.json, config.json")
    parser.add_argument("binary", type=Path, help="the built bench_minilm example")
    parser.add_argument("--sentences", type=Path, help="one sentence a line; made-up ones if absent")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="per measurement")
    args = parser.parse_args()
    sentences = args.sentences.read_text().splitlines() if args.sentences else synthetic_sentences()
    sentences = [line for line in sentences if line]

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        graphs = {}
        for name in ("plain", "fused"):
            build(args.model, scratch / f"{name}.onnx", name == "fused")
            graphs[name] = Onnx(args.model, scratch / f"{name}.onnx", args.threads)
        (scratch / "sentences").write_text("\n".join(sentences))
        vectors = scratch / "vectors"
        subprocess.run([args.binary, args.model, scratch / "sentences", "--batches", "32", "--seconds", "0", "--vectors", vectors], check=True, capture_output=True)
        ours = np.fromfile(vectors, np.float32).reshape(len(sentences), -1)
        onnx = np.concatenate([graphs["plain"].embed([text]) for text in sentences])
        pieces = statistics.mean(len(e.ids) - 2 for e in graphs["plain"].tokenizer.encode_batch(sentences))
        print(f"{len(sentences)} sentences, {pieces:.1f} word pieces on average, {args.threads} threads")
        print(f"smallest cosine {(ours * onnx).sum(1).min():.7f}")

        ordered = sorted(sentences, key=len, reverse=True)
        rows = []
        for _ in range(args.rounds):
            row = {name: {} for name in ("ours", *graphs)}
            for batch in BATCHES:
                row["plain"][batch] = graphs["plain"].rate(ordered, batch, args.seconds)
                row["ours"][batch] = our_rate(args, scratch / "sentences", batch)
                row["fused"][batch] = graphs["fused"].rate(ordered, batch, args.seconds)
            rows.append(row)

    print("sentences/s, median (lowest to highest)")
    for name in ("ours", *graphs):
        cells = [[row[name][batch] for row in rows] for batch in BATCHES]
        text = [f"batch {b}: {statistics.median(c):.0f} ({min(c):.0f}-{max(c):.0f})" for b, c in zip(BATCHES, cells)]
        print(f"  {name:6}", "  ".join(text))
    medians = {name: [statistics.median(row[name][b] for row in rows) for b in BATCHES] for name in rows[0]}
    onnx = [max(pair) for pair in zip(medians["plain"], medians["fused"])]
    ratios = "  ".join(f"batch {b}: {o / x:.2f}" for b, o, x in zip(BATCHES, medians["ours"], onnx))
    print(f"ours / better graph, of medians: {ratios}  best/best: {max(medians['ours']) / max(onnx):.2f}")
    best = [max(row["ours"].values()) / max(max(row[g].values()) for g in graphs) for row in rows]
    print(f"throughput, best batch / best batch: {statistics.median(best):.2f} ({min(best):.2f}-{max(best):.2f})")
    alone = [max(row[g][1] for g in graphs) / row["ours"][1] for row in rows]
    print(f"time of a lone sentence / onnxruntime's: {statistics.median(alone):.2f} ({min(alone):.2f}-{max(alone):.2f})")


if __name__ == "__main__":
    main()
