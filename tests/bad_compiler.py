"""A worker that does, by ``config["what"]``, what compilers have done to their process: see test_static_farm.py."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

from tuning.workers.messages import Broken, requests, send

if __name__ == "__main__":
    channel = Connection(int(sys.argv[1]))
    for request in requests(channel):
        what = request.config["what"]
        if what == "hang":
            time.sleep(600)
        if what == "abort":
            os.abort()
        if what == "leave":
            sys.exit(3)
        send(channel, Broken(what))
