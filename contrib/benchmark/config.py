#!/usr/bin/env python
"""What it costs to load the packaged template with many platforms: time and memory over one without.

    python contrib/benchmark/config.py [PLATFORMS [WORKERS]]

70 platforms of 2 workers unless given. Exits with 1 if it takes more than 0.5 s or 20 MB.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

from buildbot.config.master import FileLoader

from buildbot_ec2ud import template

LIMITS = (0.5, 20.0)
RUNS = 5

DEFAULTS = """
[defaults]
count = {workers}
region = "eu-central-1"
instance_type = ["c7i.large", "c6i.large", "m7i.large"]
subnet_id = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
security_group_ids = ["sg-0123456789abcdef0"]
market = "spot-then-on-demand"
build = ["./configure", "make", "make check"]
tags = {{ farm = "benchmark" }}
bootstrap_env = {{ BB_SETUP = "echo ready" }}
"""
PLATFORM = """
[platforms.platform-{number}]
ami = "ami-{number:017x}"
bootstrap_env = {{ BB_PACKAGES = "gcc make libfoo{number}-dev" }}
tags = {{ platform = "platform-{number}" }}
"""


def memory() -> float:
    """Megabytes that this process has in memory; for Linux."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def load(basedir: Path, platforms: int, workers: int) -> tuple[float, object]:
    """Load the template; gives the seconds that it took, and what was loaded."""
    text = DEFAULTS.format(workers=workers) + "".join(PLATFORM.format(number=each) for each in range(platforms))
    (basedir / "platforms.toml").write_text(text, encoding="utf-8")
    begin = time.perf_counter()
    loaded = FileLoader(str(basedir), str(template.directory() / "master.cfg")).loadConfig()
    return time.perf_counter() - begin, loaded


def main(platforms: int = 70, workers: int = 2) -> int:
    with tempfile.TemporaryDirectory() as name:
        basedir = Path(name)
        # What Python and Buildbot import is needed by any master.
        load(basedir, 1, 1)
        gc.collect()
        before = memory()
        seconds, loaded = load(basedir, platforms, workers)
        gc.collect()
        megabytes = memory() - before
        assert len(loaded.workers) == platforms * workers + 1, "and the janitor's"  # type: ignore[attr-defined]
        least = min([seconds, *(load(basedir, platforms, workers)[0] for _ in range(RUNS - 1))])
        empty = min(load(basedir, 1, 1)[0] for _ in range(RUNS))
    print(f"{platforms} platforms x {workers} workers: {least:.3f} s, the first time {seconds:.3f} s", end=" ")
    print(f"(1 x 1: {empty:.3f} s), {megabytes:.1f} MB more in memory")
    return 0 if least - empty <= LIMITS[0] and megabytes <= LIMITS[1] else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
