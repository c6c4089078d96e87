"""Owns what every test shares: one thread, because these networks are tiny and threads that wait for each other cost
minutes beside other work."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
pytest_plugins = ("machines",)  # fixtures of bases in a bucket
