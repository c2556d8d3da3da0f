"""A worker that does, by ``config["what"]``, what compilers have done to their process: see test_static_farm.py."""

from __future__ import annotations

import os
import sys
import time

from tuning.workers.messages import Broken, packed, requests

if __name__ == "__main__":
    with open(int(sys.argv[1]), "rb") as questions, open(int(sys.argv[1]), "wb", closefd=False) as answers:
        for request in requests(questions):
            what = request.config["what"]
            if what == "hang":
                time.sleep(600)
            if what == "abort":
                os.abort()
            if what == "leave":
                sys.exit(3)
            answers.write(packed(Broken(what)))
            answers.flush()
