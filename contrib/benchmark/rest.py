"""Asks a master's REST API for its workers, again and again, and tells how long the answers took.

In a process of its own: what is timed is what somebody sees in front of the web UI.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import threading
import time

#: Seconds after which an answer was stuck. Buildbot 4.3 writes answers from a thread, which Twisted does not support: now
#: and then the end of one stays behind until the server's time limit of a minute. That is not what is measured.
STUCK = 59.0
#: Seconds between two questions.
PAUSE = 0.1


def main() -> None:
    (port,) = map(json.loads, sys.argv[1:])
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("{}", flush=True)
    times, failed, stuck = [], 0, 0
    while not ended.wait(PAUSE):
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("GET", "/api/v2/workers")
            answer = connection.getresponse()
            json.loads(answer.read())
            connection.close()
        except (OSError, ValueError, http.client.HTTPException):
            failed += 1
            continue
        took = time.perf_counter() - began
        if took < STUCK:
            times.append(took)
        else:
            stuck += 1
    figures = {"median": statistics.median(times), "most": max(times)} if times else {}
    print(json.dumps({**figures, "answers": len(times), "failed": failed, "stuck": stuck}), flush=True)


if __name__ == "__main__":
    main()
