"""Directories of masters, as ``buildbot create-master`` and a person make them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from buildbot.scripts.create_master import makeTAC

from tests.unit.files import write

#: What a worker needs, at least.
PLAIN: Mapping[str, Any] = {"instance_type": "t3.micro", "ami": "ami-1", "bb_master": "127.0.0.1:9989"}


def make_master(directory: str, workers: Mapping[str, Mapping[str, Any]], *lines: str, relocatable: bool = True) -> str:
    """Make a master in *directory*, without its database; gives the directory.

    :param workers: by name, the further arguments of each ``EC2UserDataLatentWorker``; of a text that begins with ``=``, the
        rest is an expression.
    :param lines: further lines of the configuration.
    """
    os.makedirs(directory, exist_ok=True)
    options = {"relocatable": relocatable, "no-logrotate": False, "log-size": 10000000, "log-count": 10, "quiet": True}
    makeTAC({"basedir": directory, "config": "master.cfg", **options})
    calls = []
    for name, given in workers.items():
        arguments = ", ".join(f"{key}={_expression(value)}" for key, value in {**PLAIN, **given}.items())
        calls.append(f"c['workers'].append(worker.EC2UserDataLatentWorker({name!r}, {arguments}))")
    text = [
        "from buildbot.plugins import secrets, util, worker",
        "c = BuildmasterConfig = {'buildbotNetUsageData': None, 'protocols': {'pb': {'port': 9989}}, 'multiMaster': True}",
        "c['workers'] = []",
        *calls,
        "names = [one.name for one in c['workers']]",
        "if names:",
        "    c['builders'] = [util.BuilderConfig(name='b', workernames=names, factory=util.BuildFactory())]",
        *lines,
    ]
    write(directory, "master.cfg", "\n".join(text) + "\n")
    return directory


def _expression(value: Any) -> str:
    return value[1:] if isinstance(value, str) and value.startswith("=") else repr(value)
