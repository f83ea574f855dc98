"""Scores the runs of `benches/preload.sh` and writes the report, as JSON, Markdown and a picture.

usage: PYTHONPATH=DATA preload_table.py CONVERSATIONS RUNS RESULTS

CONVERSATIONS has the labels; RUNS has `report.json`, the predictions, and perhaps `scenes.json` of
`memcube bench scenes`; RESULTS gets `preload.json`, `preload.md` and `preload.svg`. Without `scenes.json`,
what stands in `preload.md` between the two `end to end` marks stays.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
from memeval.preload_score import BS, events
from memeval.schema import load_dir

SEED = 20_260_101
DRAWS = 10_000
POLICIES = {
    "predictor": "**memcube**",
    "last-three": "last three turns",
    "last-turn": "last turn",
    "lru": "last used",
    "memos-monitor": "MemOS's monitor, emulated",
}
TYPED = (25, 50, 75)
TRACKS = {"link": "links", "demand": "demand", "stream-file": "file", "stream-shuffle": "shuffle", "stream-walk": "walk"}
# Published for the reference implementation of the benchmark: the same labels, its own retriever.
# cover@20 of links and demand on the visible LoCoMo conversations; then, over all ten, cover@10/20/50/100
# of links, hit@20 and loads@20 of links, cover@20 and loads@20 of demand.
REFERENCE = {
    "random": (2.6, 5.6, (1.8, 3.7, 11.8, 25.5), 10.2, 18.8, 5.5, 18.9),
    "last used": (18.3, 23.1, (10.7, 14.9, 21.0, 32.5), 27.6, 14.6, 23.7, 4.2),
    "last turn": (15.7, None, (9.3, 14.0, 24.7, 39.1), 25.7, 17.9, 26.5, 15.8),
    "last three turns": (18.1, 29.0, (10.7, 16.1, 28.6, 45.6), 29.2, 16.5, 29.4, 9.3),
    "decayed session": (16.3, None, (10.5, 14.9, 26.8, 41.9), 28.2, 14.9, 25.7, 6.0),
    "successors of similar turns": (16.7, None, (9.6, 15.2, 28.7, 46.9), 27.3, 17.6, 25.5, 15.2),
    "Markov over topics": (15.2, None, (9.0, 12.8, 24.8, 40.3), 25.2, 16.5, 26.1, 12.6),
    "MemOS's monitor, emulated": (15.9, 24.4, (9.0, 12.9, 21.3, 31.5), 24.1, 13.6, 25.0, 4.2),
    "mix of ranks": (16.3, 29.4, (11.4, 15.0, 27.3, 43.2), 28.2, 15.9, 29.9, 9.1),
    "oracle: the turn itself": (47.9, None, (34.1, 47.2, 64.2, 75.3), 67.0, 17.3, 100.0, 15.9),
}
MARKS = ("<!-- end to end: begin -->", "<!-- end to end: end -->")


def read_run(path):
    lines = (json.loads(line) for line in path.open(encoding="utf-8"))
    return {line["event"]: line["resident"] for line in lines}


def score(conversations, named):
    """What each event got, by data set, track and places: as `memeval.preload_score` counts it."""
    found = {}
    for one in conversations:
        before = {}
        ordered = sorted(events(one), key=lambda event: (event[1], event[0].rsplit("/", 1)[0], event[4]))
        for name, kind, needs, known, _ in ordered:
            wanted = [one.ix[turn] for turn in named.get(name, []) if turn in one.ix]
            wanted = list(dict.fromkeys(turn for turn in wanted if turn < known))
            series = name.rsplit("/", 1)[0]
            for places in BS:
                resident = set(wanted[:places])
                hits = len(needs & resident)
                loads = len(resident - before.get((series, places), set()))
                before[series, places] = resident
                event = (hits > 0, hits / len(needs), loads, hits / max(len(resident), 1), min(places, known) / known)
                found.setdefault((one.meta["dataset"], kind, places), []).append(event)
    return {key: np.array(values, float) for key, values in found.items()}


def summary(values):
    hit, cover, loads, useful, chance = values.mean(0)
    return {
        "events": len(values),
        "hit": round(100 * hit, 1),
        "cover": round(100 * cover, 1),
        "random": round(100 * chance, 1),
        "loads": round(loads, 1),
        "useful": round(100 * useful, 1),
    }


def interval(values):
    """95 % interval of how far cover lies above chance, by resampling events."""
    above = 100 * (values[:, 1] - values[:, 4])
    random = np.random.default_rng(SEED)
    means = [random.choice(above, len(above)).mean() for _ in range(DRAWS)]
    return [round(float(edge), 2) for edge in np.percentile(means, [2.5, 97.5])]


def foresight(conversations, named, places=20):
    """How much better what was named before a question covers that question than those that came later.

    In a shuffled stream every later question could as well have been the next one, so whoever does not peek is at
    0, whatever their taste in memories. In the other orders it tells what the order gives away. By data set and
    track: the cover of later questions, the difference in per cent, and its 95 % interval by resampling events.
    """
    found = {}
    for one in conversations:
        needs = {question["id"]: {one.ix[turn] for turn in question["evidence"]} for question in one.qs}
        for stream in one.streams:
            order = [needs[question] for question in stream["order"]]
            # As the scorer counts: from the sixth question on.
            for place in range(5, len(order)):
                wanted = dict.fromkeys(named.get(f"{stream['id']}/{place}", []))
                resident = set([one.ix[turn] for turn in wanted if turn in one.ix][:places])
                covers = [len(need & resident) / len(need) for need in order[place:]]
                found.setdefault((one.meta["dataset"], "stream-" + stream["kind"]), []).append((covers[0], np.mean(covers)))
    told = {}
    for key, pairs in sorted(found.items()):
        covers = 100 * np.array(pairs)
        ahead = covers[:, 0] - covers[:, 1]
        random = np.random.default_rng(SEED)
        means = [random.choice(ahead, len(ahead)).mean() for _ in range(DRAWS)]
        low, high = np.percentile(means, [2.5, 97.5])
        told[key] = [round(float(value), 2) for value in (covers[:, 1].mean(), ahead.mean(), low, high)]
    return told


def cpu():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else 'unknown processor'}"


def row(name, scores, dataset, track, width=None):
    """One row: cover at each number of places; hit, loads and useful at 20."""
    cell = lambda places: scores[dataset, track, places]
    cover = [f"{cell(places)['cover']:.1f}" if width is None or places <= width else "–" for places in BS]
    at = cell(20)
    return f"| {name} | {' | '.join(cover)} | {at['hit']:.1f} | {at['loads']:.1f} | {at['useful']:.1f} |"


def markdown(report, runs, intervals, ahead, end_to_end):
    datasets = list(dict.fromkeys(key[0] for key in runs["predictor"]))
    head = "| | cover@10 | @20 | @50 | @100 | hit@20 | loads@20 | useful@20 |\n|---|---|---|---|---|---|---|---|"
    out = [
        "# Next-scene prediction\n",
        f"{cpu()}. Made by `benches/preload.sh DATA`. Before every turn a policy names the memories of earlier\n"
        "conversations that the turn will need, without seeing it. *Links*: memories that people linked with the\n"
        "turn. *Demand*: what a reference retriever finds for the turn itself; it rewards whoever searches as it\n"
        "does, so it tells how well a cache is used, not how well anything is remembered. *Cover*: share of what\n"
        "was needed that was among the first so many; *hit*: any of it; *loads*: memories that were not there\n"
        "before the event before; *useful*: share of the places that were needed. All in per cent, but loads.\n"
        "The cache keeps 20 memories: what a policy names first; beyond that it has nothing to keep.\n",
    ]
    for dataset in datasets:
        for track in ("link", "demand"):
            if (dataset, track, 20) not in runs["predictor"]:
                continue
            at = runs["predictor"][dataset, track, 20]
            out.append(f"## {dataset}: {TRACKS[track]} ({at['events']} events, chance@20 {at['random']})\n\n{head}")
            for policy, name in POLICIES.items():
                width = 20 if policy == "memos-monitor" else None
                out.append(row(name, runs[policy], dataset, track, width))
            for typed in (typed for typed in TYPED if f"typed-{typed}" in runs):
                out.append(row(f"**memcube**, {typed} % of the turn typed", runs[f"typed-{typed}"], dataset, track))
            out.append("")
    out.append(
        "## The reference's policies, as published\n\nOn the same labels with the reference's own retriever "
        "(BM25 and MiniLM by ranks); not measured here.\nThe first two columns are of the five visible LoCoMo "
        "conversations, the rest of all ten.\n\n| | links@20 visible | demand@20 visible | links@10 | @20 | @50 | "
        "@100 | hit@20 | loads@20 | demand@20 | loads@20 |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    show = lambda value: "–" if value is None else f"{value:.1f}"
    for name, (links, demand, covers, hit, loads, all_demand, demand_loads) in REFERENCE.items():
        cells = [links, demand, *covers, hit, loads, all_demand, demand_loads]
        out.append(f"| {name} | {' | '.join(map(show, cells))} |")
    out.append(
        "\n## Streams of questions\n\nIn the order of the file, which gives evidence away (an artefact of the data); "
        "shuffled; and as a walk\nthat mostly stays with a topic. *Above chance*: cover less that of as many random "
        "memories. In a shuffled stream\nit tells a taste: some memories are evidence for many questions, and "
        "exclamations for none. *Foresight*: cover of the\nquestion that came, less the mean cover of all that came "
        "later, which in a shuffled stream could as well have come:\nwhoever does not peek is at 0 there. Both with "
        "the 95 % interval of 10,000 resamples of the events.\n\n"
        "| | events | cover@20 | random | above chance | foresight | loads@20 |\n|---|---|---|---|---|---|---|"
    )
    for (dataset, track), (low, high) in intervals.items():
        at = runs["predictor"][dataset, track, 20]
        above = f"{at['cover'] - at['random']:+.1f} ({low:+.2f} to {high:+.2f})"
        _, better, least, most = ahead[dataset, track]
        sight = f"{better:+.1f} ({least:+.2f} to {most:+.2f})"
        cells = (at["events"], at["cover"], at["random"], above, sight, at["loads"])
        out.append(f"| {dataset}, {TRACKS[track]} | {' | '.join(map(str, cells))} |")
    out.append(
        "\n## Time of a decision\n\nEmbedding excluded. Synthetic memories, 1,000 turns; half of them with something typed.\n\n"
        "| memories | the cube, p50 / p99 | predict and plan, p50 / p99 | together, p50 / p99 |\n|---|---|---|---|"
    )
    both = lambda times: f"{times['p50']:.3f} / {times['p99']:.3f} ms"
    for one in report["decisions"]:
        cells = (both(one[name]) for name in ("scene_ms", "predict_and_plan_ms", "decision_ms"))
        out.append(f"| {one['items']:,} | {' | '.join(cells)} |")
    out.append(
        f"\nIn the replay of {report['turns']} turns, through the cube's actor, on {report['conversations']} small cubes: "
        f"{both(report['decision_ms'])}.\n\n![plot](preload.svg)\n\n{end_to_end}"
    )
    return "\n".join(out) + "\n"


MODES = {
    "off": "without scheduler",
    "scheduled": "scheduler",
    "typing": "scheduler, typing events",
    "limit": "everything cached: the limit",
}


def end_to_end_of(scenes):
    """What `memcube bench scenes` measured, between the marks."""
    out = [
        MARKS[0],
        "## End to end: time to the first token after a pause\n",
        f"`memcube bench scenes`: {scenes['model']}, {scenes['threads']} threads, {scenes['turns']} turns of each row, "
        f"{scenes['pause_ms'] / 1000:.1f} s\nbetween two, cubes of {scenes['memories']:.0f} memories, in one run and in turns. "
        "*Ready*: needed memories that were in the\ncontext before; *realised*: of the time that could be saved, the share that "
        "was; *wasted*: tokens of memories\ncomputed ahead and not needed by the next turn, for each that was.\n",
        "| | p50 | p95 | mean | tokens computed | ready | realised | wasted per saved token |\n|---|---|---|---|---|---|---|---|",
    ]
    for mode in scenes["modes"]:
        time, wasted = mode["ttft_ms"], mode["wasted_per_saved"]
        out.append(
            f"| {MODES[mode['mode']]} | {time['p50']:.0f} ms | {time['p95']:.0f} ms | {mode['mean_ms']:.0f} ms | "
            f"{mode['computed_tokens']:.0f} | {mode['ready']} of {mode['needed']} | {100 * mode['realised']:.0f} % | "
            f"{'–' if wasted is None else f'{wasted:.1f}'} |"
        )
    if disturbed := scenes.get("disturbed"):
        alone, beside = disturbed["alone_ms"]["p50"], disturbed["beside_ms"]["p50"]
        out.append(
            f"\nA request of another conversation while a long prompt is computed ahead: p50 {beside:.0f} ms, "
            f"{alone:.0f} ms without ({100 * disturbed['delay']:+.1f} %)."
        )
    out += ["\n![plot](scenes.svg)", MARKS[1]]
    return "\n".join(out)


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 420, 56, 72, 52
COLOURS = ("#0b57d0", "#e8710a", "#f6c28b", "#9aa0a6", "#a142f4", "#8ab4f8", "#4285f4", "#174ea6")


def picture(runs, dataset):
    """Bars of cover@20, of links and of demand, for each policy and share typed."""
    shown = (typed for typed in TYPED if f"typed-{typed}" in runs)
    names = {**POLICIES, **{f"typed-{typed}": f"memcube, {typed} % typed" for typed in shown}}
    high, width, height = 100, WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">Needed memories among the 20 that are ready (%), {dataset}</text>',
    ]
    x, y = LEFT, 32
    for (_, name), colour in zip(names.items(), COLOURS):
        name = name.replace("*", "")
        wide = 34 + 6.2 * len(name)
        if x + wide > WIDTH:
            x, y = LEFT, y + 15
        out.append(f'<rect x="{x:.0f}" y="{y}" width="10" height="10" fill="{colour}"/><text x="{x + 14:.0f}" y="{y + 9}">{name}</text>')
        x += wide
    for tick in range(0, high + 1, 20):
        y = TOP + height * (1 - tick / high)
        out.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + width}" y2="{y:.1f}" stroke="#dddddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    group = width / 2
    for at, track in enumerate(("link", "demand")):
        bar = group * 0.8 / len(names)
        for place, ((run, name), colour) in enumerate(zip(names.items(), COLOURS)):
            cover = runs[run][dataset, track, 20]["cover"]
            tall = cover / high * height
            left = LEFT + group * (at + 0.1) + bar * place
            out.append(
                f'<rect x="{left:.1f}" y="{TOP + height - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" fill="{colour}">'
                f"<title>{name.replace('*', '')}: {cover} %</title></rect>"
            )
        out.append(f'<text x="{LEFT + group * (at + 0.5):.0f}" y="{TOP + height + 18}" text-anchor="middle">{TRACKS[track]}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    conversations, runs_in, results = load_dir(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    report = json.loads((runs_in / "report.json").read_text())
    names = [*POLICIES, *(f"typed-{typed}" for typed in TYPED)]
    file = lambda name: "preload.jsonl" if name == "predictor" else f"preload.{name}.jsonl"
    # Shares of which there is no run are left out.
    names = [name for name in names if (runs_in / file(name)).exists()]
    scored = {name: score(conversations, read_run(runs_in / file(name))) for name in names}
    runs = {name: {key: summary(values) for key, values in found.items()} for name, found in scored.items()}
    intervals = {
        (dataset, track): interval(values)
        for (dataset, track, places), values in sorted(scored["predictor"].items())
        if track.startswith("stream") and places == 20
    }
    ahead = foresight(conversations, read_run(runs_in / file("predictor")))
    page = results / "preload.md"
    former = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = re.search(f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}", former, re.DOTALL)
    end_to_end = kept.group() if kept else "\n".join(MARKS)
    scenes = runs_in / "scenes.json"
    if scenes.exists():
        end_to_end = end_to_end_of(json.loads(scenes.read_text()))
    page.write_text(markdown(report, runs, intervals, ahead, end_to_end), encoding="utf-8")
    flat = {name: {"/".join(map(str, key)): values for key, values in found.items()} for name, found in runs.items()}
    above = {"/".join(key): edges for key, edges in intervals.items()}
    whole = {"machine": cpu(), "report": report, "scenes": json.loads(scenes.read_text()) if scenes.exists() else None, "above_chance_at_20": above, "foresight_at_20": {"/".join(key): values for key, values in ahead.items()}, "scores": flat}
    (results / "preload.json").write_text(json.dumps(whole, indent=1) + "\n")
    dataset = "locomo" if ("locomo", "link", 20) in runs["predictor"] else next(iter(runs["predictor"]))[0]
    (results / "preload.svg").write_text(picture(runs, dataset), encoding="utf-8")


main()
