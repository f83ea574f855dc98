"""Prints the table of a benchmark of state from the reports that its rounds left.

usage: state_table.py hydrate|cubes|vectors DIRECTORY
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

what, directory = sys.argv[1], Path(sys.argv[2])


def read(path):
    report = json.loads(path.read_text())
    return report[0] if isinstance(report, list) else report


def cpu():
    lines = open("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.machine()}"


def hydrate():
    print(f"# A cube from disk into RAM\n\n{cpu()}; milliseconds until the first answer, embedded store.")
    print("The tail is one memory in a hundred, added after the snapshot.\n")
    print("| memories | snapshot (MB) | from snapshot and tail p50 | p99 | max | from rows p50 | max |")
    print("|---|---|---|---|---|---|---|")
    for report in sorted(map(read, directory.glob("*.json")), key=lambda report: report["items"]):
        quick, slow = report["snapshot_ms"], report["rows_ms"]
        size = report["snapshot_bytes"] / 1e6
        print(
            f"| {report['items']:,} | {size:.1f} | {quick['p50']:.1f} | {quick['p99']:.1f} | "
            f"{quick['max']:.1f} | {slow['p50']:.1f} | {slow['max']:.1f} |"
        )


def cubes():
    counts = sorted(int(path.name.split(".")[0]) for path in directory.glob("*.register.json"))
    rounds = {count: [read(path) for path in sorted(directory.glob(f"{count}.[0-9].json"))] for count in counts}
    print(f"# Many registered cubes in one embedded store\n\n{cpu()}; median of three rounds in turns, milliseconds.\n")
    print("| | " + " | ".join(f"{count:,} cubes" for count in counts) + " | ratio |")
    print("|---|" + "---|" * (len(counts) + 1))

    def row(title, value, digits=2):
        values = [statistics.median(value(report) for report in rounds[count]) for count in counts]
        cells = " | ".join(f"{value:.{digits}f}" for value in values)
        print(f"| {title} | {cells} | {values[-1] / values[0]:.2f} |")

    row("ready after", lambda report: report["start_ms"], 0)
    row("resident, all cold (MB)", lambda report: report["resident_mb"] or 0.0, 1)
    for key, title in [
        ("add_cold_ms", "add to a cold cube"),
        ("add_hot_ms", "add to a hot cube"),
        ("hydrate_ms", "hydrate"),
    ]:
        for part in ("p50", "p99"):
            row(f"{title} {part}", lambda report: report[key][part])
    made = [read(directory / f"{count}.register.json") for count in counts]
    print("\nMade in " + ", ".join(f"{report['seconds']:.0f} s ({report['cubes']:,})" for report in made) + ".")


def vectors():
    print(f"# The vector tier beside RAM\n\n{cpu()}; milliseconds, 384 dimensions.\n")
    print("| tables | memories | cubes | built (s) | one cube, tier p50 | p99 | the same cube in RAM p50 | p99 "
          "| all cubes p50 | p99 | recall@10, one cube | all cubes |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name in ("lance", "ram", "large"):
        report = read(directory / f"{name}.json")
        durations = [report[key] for key in ("cube_ms", "cube_in_ram_ms", "tenant_ms")]
        cells = " | ".join(f"{one['p50']:.2f} | {one['p99']:.2f}" for one in durations)
        print(
            f"| {report['kind']} | {report['rows']:,} | {report['cubes']:,} | {report['build_seconds']:.0f} | {cells} "
            f"| {report['cube_recall_at_10']:.3f} | {report['tenant_recall_at_10']:.3f} |"
        )
    print("\nRecall is that of the candidates, against the exact ten nearest vectors.")


{"hydrate": hydrate, "cubes": cubes, "vectors": vectors}[what]()
