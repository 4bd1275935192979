"""This class beside Buildbot's EC2LatentWorker, in alternating runs: ``make bench``; all of it: ``make bench ARGS=--full``.

Both sides ask the same stand-in for EC2, which is in a process of its own, as is each run. Machines differ, and are noisy:
quote the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import Run, overview, table

_HERE = Path(__file__).parent
#: Of the stand-in: seconds by which each answer is late, and seconds from a launch to "running".
LATENCY, PENDING = 0.1, 2.0
#: Seconds after which a part of a run has failed.
LIMIT = 600.0
#: What a run consists of.
SHORT, FULL, ALONE = ["builds"], ["calls", "ending", "builds"], ["calls", "watch", "ending", "builds"]
#: Launches that AWS takes at once and per second (EC2 developer guide, "Request throttling").
BURST, PER_SECOND = 5, 2
_PACKAGES = ("buildbot", "Twisted", "boto3", "botocore")


def run(side: str, count: int, parts: Sequence[str], throttle: bool = False) -> Run:
    """Measure one run."""
    options = {"side": side, "count": count, "parts": parts, "throttle": throttle}
    options |= {"limit": LIMIT, "latency": LATENCY, "pending": PENDING}
    began = time.monotonic()
    command = [sys.executable, str(_HERE / "scenario.py"), json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    print(f"# {side}, {count} workers: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def alternate(count: int, runs: int, parts: Sequence[str], throttle: bool = False) -> dict[str, list[Run]]:
    """Measure both sides in turn."""
    found: dict[str, list[Run]] = {"ours": [], "theirs": []}
    for number in range(runs):
        for side in sorted(found, reverse=bool(number % 2)):
            found[side].append(run(side, count, parts, throttle))
    return found


def show(title: str, lines: Sequence[str]) -> None:
    print(f"\n## {title}\n\n" + "\n".join(lines), flush=True)


def machine() -> str:
    """What the figures depend on."""
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    processor = f"{model or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return f"{processor}; Python {platform.python_version()}, {versions}"


def growth(small: Sequence[Run], large: Sequence[Run], count: tuple[int, int]) -> list[str]:
    """What each further worker takes."""

    def middle(runs: Sequence[Run], get: Any) -> float:
        return statistics.median(map(get, runs))

    def cpu(one: Run) -> float:
        return one["launch"]["cpu"] + one["end"]["cpu"]

    def farm(one: Run) -> float:
        return one["start"]["cpu"] + one["stop"]["cpu"]

    def memory(one: Run) -> float:
        return one["memory"]["most"]

    more = count[1] - count[0]
    return [
        f"From {count[0]} to {count[1]} workers:",
        f"- memory for each further worker: {(middle(large, memory) - middle(small, memory)) * 1024 / more:.0f} kB",
        f"- CPU of start and stop, instances alone: {middle(large, cpu) / middle(small, cpu):.1f} times as much",
        f"- CPU of start and stop, with builds: {middle(large, farm) / middle(small, farm):.1f} times as much",
    ]


def throttled(count: int, both: dict[str, list[Run]]) -> list[str]:
    least = (count - BURST) / PER_SECOND
    lines = table(both["ours"], both["theirs"])
    for side, runs in both.items():
        took = [one["start"].get("ec2 last launch") for one in runs]
        first = [one["start"].get("ec2 first launch") for one in runs]
        seconds = [last - begun for last, begun in zip(took, first, strict=True) if last is not None]
        if seconds:
            middle = statistics.median(seconds)
            lines.append(
                f"\n{side}: first to last launch in {middle:.1f} s; the bucket's own time is {least:.1f} s: "
                f"{middle / least:.2f} times."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all of it, which takes more than two hours")
    parser.add_argument(
        "--only", choices=("compare", "alone", "throttle", "hours"), help="a part; JSON and PNG keep the others"
    )
    parser.add_argument("--runs", type=int, default=3, help="of each, where it is all")
    parser.add_argument("--counts", type=int, nargs="*", help="numbers of workers, instead of the usual ones")
    parser.add_argument("--output", type=Path, default=Path("build/benchmark"), help="directory for JSON and PNG")
    options = parser.parse_args()
    full = options.full or options.only

    print(machine())
    print(
        f"A stand-in for EC2 in a process of its own: answers after {LATENCY * 1000:.0f} ms, instances run after "
        f"{PENDING:g} s; moto would take seconds to describe 1,000. Light workers in another process."
    )
    path = options.output / "benchmark.json"
    found: dict[str, Any] = {"machine": machine(), "compare": {}, "alone": {}}
    if options.only and path.exists() and (kept := json.loads(path.read_text()))["machine"] == found["machine"]:
        found = kept

    def keep() -> None:
        """All of it takes hours: what was measured is kept, whatever comes then."""
        if full:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".new")
            unfinished.write_text(json.dumps(found, indent=1))
            unfinished.replace(path)

    def wanted(part: str) -> bool:
        return options.only == part or (options.full and not options.only)

    if wanted("compare") or not full:
        for count in options.counts or ((10, 70, 164) if full else (10, 70)):
            both = found["compare"][str(count)] = alternate(count, options.runs if full else 1, FULL if full else SHORT)
            keep()
            show(f"{count} workers", table(both["ours"], both["theirs"]))
    if wanted("alone"):
        for count in options.counts or (100, 300, 1000):
            runs = found["alone"][str(count)] = [run("ours", count, ALONE) for _ in range(options.runs)]
            keep()
            show(f"{count} workers, EC2UserDataLatentWorker alone", table(runs, None))
        counts = sorted(map(int, found["alone"]))
        if len(counts) > 1:
            ends = counts[0], counts[-1]
            show("Growth", growth(*(found["alone"][str(count)] for count in ends), ends))
    if wanted("throttle"):
        both = found["throttle"] = alternate(164, options.runs, ["builds"], throttle=True)
        keep()
        show("164 launches at AWS's throttle", throttled(164, both))
    if wanted("hours"):
        done = subprocess.run([sys.executable, str(_HERE / "hours.py")], stdout=subprocess.PIPE, check=True, text=True)
        found["hours"] = json.loads(done.stdout)
        keep()
        show("Watching 1,000 idle instances", [f"- {name}: {value}" for name, value in found["hours"].items()])
    if full:
        sides = {"ours": "ours", "theirs": "other"}
        columns = {f"{n} {sides[side]}": runs for n, both in found["compare"].items() for side, runs in both.items()}
        show("All of it", overview(columns | {f"{n} ours": runs for n, runs in found["alone"].items()}))
        print(f"\nAll figures: {path}")
        if found["compare"]:
            from plot import plot  # matplotlib is not needed before

            print(f"Plot: {plot(found, options.output / 'benchmark.png')}")


if __name__ == "__main__":
    main()
