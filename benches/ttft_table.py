"""Prints the tables of `benches/ttft.sh` from its JSON.

usage: ttft_table.py ttft.json
"""

import json
import os
import sys


def cpu():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else 'unknown processor'}"


report = json.load(open(sys.argv[1]))


def number(value, digits=3):
    return "–" if value is None else f"{value:,.{digits}f}"


print(
    f"""# Time to the first token on top of a cached context

{cpu()}, {report['threads']} threads, no GPU. SmolLM2-135M-Instruct in 4 bits (`{report['model']}`), the same file for
both; {report['peer'] or 'nothing beside it'}. All in one run and in turns: median of {report['rounds']} rounds for direct times, of
{3 * report['rounds']} for the others. Seconds from the request until the first token was chosen, through cube, cache and
device actor. *Direct* computes everything; *RAM*: the context's blocks are in RAM and on no device; *disk*: in
a local directory, whose files are in the system's page cache; *objects*: in an object store that is
simulated ({report['object_store']}). *Turn alone*: the engine computes only the new
turn behind the context, which nothing can undercut.

![plot](ttft.svg)

| context + turn | build | direct | objects | disk | RAM | still on the device | turn alone | cut | MemOS's best |
|---|---|---|---|---|---|---|---|---|---|"""
)
for cell in report["cells"]:
    times = ["build_s", "ttft_direct_s", "ttft_object_s", "ttft_disk_s", "ttft_ram_s", "ttft_device_s", "query_alone_s"]
    cells = " | ".join(number(cell[name]) for name in times)
    print(
        f"| {cell['context_tokens']:,} + {cell['query_tokens']} | {cells} | **{cell['cut_percent']:.1f} %** | "
        f"{number(cell['seed_cut_percent'], 1)} % |"
    )
print(
    """
MemOS's best: what its table says of Qwen3-8B on a GPU; only the cuts can be compared. Ratios below are medians of
those of each turn.

| context + turn | RAM / turn alone | disk / RAM | llama.cpp direct | llama.cpp, state restored | RAM / restored |
|---|---|---|---|---|---|"""
)
for cell in report["cells"]:
    print(
        f"| {cell['context_tokens']:,} + {cell['query_tokens']} | {number(cell['ram_over_alone'])} | "
        f"{number(cell['disk_over_ram'])} | {number(cell['peer_direct_s'])} | {number(cell['peer_restored_s'])} | "
        f"{number(cell['ram_over_peer'])} |"
    )
print(
    """
| prompt | prefill (tokens/s) | llama.cpp | ratio | decode (tokens/s) | llama.cpp | ratio |
|---|---|---|---|---|---|---|"""
)
for speed in report["speed"]:
    print(
        f"| {speed['tokens']:,} | {number(speed['prefill_tokens_per_s'], 0)} | "
        f"{number(speed['peer_prefill_tokens_per_s'], 0)} | {number(speed['prefill_ratio'], 2)} | "
        f"{number(speed['decode_tokens_per_s'], 1)} | {number(speed['peer_decode_tokens_per_s'], 1)} | "
        f"{number(speed['decode_ratio'], 2)} |"
    )
print(
    """
| keys and values of | by arithmetic (bytes) | session | resident | resident / arithmetic |
|---|---|---|---|---|"""
)
for held in report["memory"]:
    resident = held["resident_bytes"]
    ratio = resident / held["arithmetic_bytes"] if resident else None
    print(
        f"| {held['tokens']:,} tokens | {held['arithmetic_bytes']:,} | {held['session_bytes']:,} | "
        f"{number(resident, 0)} | {number(ratio)} |"
    )
print()
for lossy in report["quantised"]:
    print(
        f"In 8 bits ({lossy['bytes_share']:.3f} of the bytes; an option for cold tiers), a context of "
        f"{lossy['context_tokens']} tokens changes the\nnext token's distribution behind it, over "
        f"{lossy['query_tokens']} tokens, by a mean KL of {lossy['mean_kl']:.1e}; the likeliest token is the\nsame in "
        f"{lossy['top_1_percent']:.1f} %, and no logit differs by more than {lossy['max_logit_difference']:.2f}."
    )
