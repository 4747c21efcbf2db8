"""A contestant's process that answers by a script: `python scripted_contestant.py SECONDS_PER_ROW [OP ACTION]`.

Each row of a step takes so many seconds, by its own account. At the named operation it fails, ends or never answers.
"""

from __future__ import annotations

import json
import sys
import time


def answer(request, seconds_per_row):
    if request["op"] == "open":
        return {"version": "scripted", "heard": request}
    if request["op"] == "run":
        return {"seconds": [request["rows"] * seconds_per_row] * 2, "sample": [1.0, seconds_per_row]}
    return {}


def send(document):
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main(seconds_per_row, trouble="", action=""):
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == trouble:
            if action == "end":
                sys.exit(3)
            if action == "hang":
                time.sleep(60)
            send({"error": "Trouble: as scripted"})
        else:
            send(answer(request, float(seconds_per_row)))


if __name__ == "__main__":
    main(*sys.argv[1:])
