"""What the calls to EC2 cost, beside botocore in the same run: ``make bench``.

Machines differ, and are noisy: quote the ratios.
"""

from __future__ import annotations

import base64
import gc
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import botocore
import standin
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from buildbot.util.service import MasterService
from children import child
from stalls import Stalls
from twisted.internet import defer, reactor, task

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.parser import Parser
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.embedded import EmbeddedEC2, Faults
from buildbot_ec2ud.fleet.masters import NOBODY, Masters
from buildbot_ec2ud.fleet.offer import MASTER_TAG, Offer
from buildbot_ec2ud.fleet.region import Fleet
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.watcher import Watcher

RUNS = 7
KEYS = {"aws_access_key_id": "benchmark", "aws_secret_access_key": "benchmark", "region_name": "us-east-1"}
WATCHED, WATCH_SECONDS = 1000, 20
LAUNCHES, BURST, PER_SECOND = 40, 5, 2


def line(what: str, figure: str, beside: str = "", ratio: str = "") -> None:
    print(f"{what:<58} {figure:>12} {beside:>12} {ratio:>8}", flush=True)


def milliseconds(times: list[float]) -> str:
    return f"{statistics.median(times) * 1000:.2f} ms"


def timed(function: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Time both in turn, after a warm-up of each."""
    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(RUNS)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def compare(what: str, ours: list[float], theirs: list[float]) -> None:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    line(what, milliseconds(ours), milliseconds(theirs), f"{ratio:.1f}")


def parsing() -> None:
    pages = standin.Pages(standin.moto_answers()[1])
    model = ServiceModel(create_loader().load_service_model("ec2", "service-2"), "ec2")
    shape = model.operation_model("DescribeInstances").output_shape
    for count in (100, 1000):
        body = pages.page([f"i-{number:017x}" for number in range(count)])
        answer = {"body": body, "headers": {}, "status_code": 200}

        def ours(body: bytes = body) -> list[str]:
            return [instance.instance_id for instance in Parser().describe_instances_page(body)[0]]

        def theirs(answer: dict[str, Any] = answer) -> list[str]:
            found = create_parser("ec2").parse(answer, shape)
            return [instance["InstanceId"] for item in found["Reservations"] for instance in item["Instances"]]

        assert ours() == theirs()
        compare(f"parse {count} instances ({len(body) // 1024} KiB)", *in_turn(ours, theirs))


def client(url: str) -> tuple[EC2Client, Transport]:
    transport = Transport(reactor)
    creds = AWSCredentials("benchmark", "benchmark", reactor=reactor)
    return EC2Client(creds, url, QueryFactory("us-east-1", reactor, transport.agent)), transport


@defer.inlineCallbacks
def sending(url: str) -> Any:
    count = 50
    text = bytes(random.choices(range(32, 127), k=16384))
    parameters = {"ImageId": "ami-1", "InstanceType": "c7i.large", "MinCount": 1, "MaxCount": 1, "ClientToken": "token"}
    ours, transport = client(url)
    theirs = boto3.client("ec2", endpoint_url=url, config=Config(retries={"max_attempts": 0}), **KEYS)
    encoded = base64.b64encode(text).decode()
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(RUNS + 1):
        began = time.perf_counter()
        for _ in range(count):
            yield ours.run_instances({**parameters, "UserData": encoded})
        between = time.perf_counter()
        for _ in range(count):
            theirs.run_instances(**parameters, UserData=text)
        if run:  # the first one warms up
            times[0].append((between - began) / count)
            times[1].append((time.perf_counter() - between) / count)
    compare("sign and send RunInstances, 16 KiB of user-data", *times)
    yield transport.close()


@defer.inlineCallbacks
def watching(url: str) -> Any:
    ours, transport = client(url)
    described = 0

    def counted(*ids: str, real: Any = ours.describe_instances, **more: Any) -> Any:
        nonlocal described
        described += 1
        return real(*ids, **more)

    ours.describe_instances = counted
    watcher = Watcher(ours, reactor)
    tags = [{"Key": MASTER_TAG, "Value": "master.example.org:/farm"}]
    parameters = {"ImageId": "ami-1", "InstanceType": "c7i.large", "MinCount": 1, "MaxCount": 1}
    parameters["TagSpecifications"] = [{"ResourceType": "instance", "Tags": tags}]
    launched = yield defer.gatherResults([ours.run_instances(parameters) for _ in range(WATCHED)])
    for (instance,) in launched:
        watcher.watch(Rental(None, "w", instance), lambda rental: None, lambda rental: None)
    stalls, cpu = Stalls(), time.process_time()
    yield task.deferLater(reactor, WATCH_SECONDS)
    line(f"longest stall while {WATCHED} instances are watched", f"{stalls.stop() * 1000:.1f} ms")
    line(f"  in {WATCH_SECONDS} s: {described} DescribeInstances; CPU", f"{time.process_time() - cpu:.2f} s")
    watcher.stop()
    yield transport.close()


_LOAD = """
import threading, time
from buildbot_ec2ud.ec2 import shapes
last, longest, took = time.perf_counter(), 0.0, []
def load():
    began = time.perf_counter()
    shapes.check("RunInstances", {"MinCount": 1, "MaxCount": 1})
    took.append(time.perf_counter() - began)
thread = threading.Thread(target=load)
thread.start()
while thread.is_alive():
    time.sleep(0.001)
    now = time.perf_counter()
    longest, last = max(longest, now - last - 0.001), now
print(took[0], longest)
"""


def model() -> None:
    runs = [
        tuple(map(float, subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, check=True).stdout.split()))
        for _ in range(RUNS)
    ]
    line("load EC2's model, once, when a configuration is loaded", milliseconds([run[0] for run in runs]))
    line("  in a thread, as Buildbot does: longest stall of others", milliseconds([run[1] for run in runs]))


@defer.inlineCallbacks
def throttled() -> Any:
    ec2 = EmbeddedEC2(faults=Faults(throttle=True))
    ec2.start()
    Masters.others = lambda *_: defer.succeed(NOBODY)  # there is no database
    master = MasterService()
    master.reactor = reactor
    master.name = "benchmark"
    yield master.startService()
    fleet = yield Fleet.getService(master, ec2.region, ec2.endpoint_url, ec2.access_key, ec2.secret_key)
    offer = Offer("t3.micro", None, "on-demand", {"ImageId": "ami-1", "MinCount": 1, "MaxCount": 1})
    began = reactor.seconds()
    yield defer.gatherResults([fleet.launch(f"w{number}", str(number), [offer]) for number in range(LAUNCHES)])
    seconds = reactor.seconds() - began
    least = (LAUNCHES - BURST) / PER_SECOND
    refused = fleet.metrics.as_dict()["RunInstances"]["errors"].get("throttled", {"count": 0})["count"]
    line(
        f"{LAUNCHES} launches at AWS's throttle, {refused} refused; the bucket's own time",
        f"{seconds:.2f} s",
        f"{least:.2f} s",
        f"{seconds / least:.2f}",
    )
    yield master.stopService()
    yield ec2.stop()


@defer.inlineCallbacks
def main(_: Any) -> Any:
    print(f"Python {platform.python_version()}, botocore {botocore.__version__}; medians of {RUNS} runs, in turn")
    line("", "buildbot-ec2ud", "botocore", "ratio")
    parsing()
    model()
    with child("ec2_process.py", {"latency": 0.0}) as (ec2, _):
        yield sending(ec2["url"])
        yield watching(ec2["url"])
    yield throttled()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    task.react(main)
