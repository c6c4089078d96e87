"""Owns that who writes to a bucket's base gives way to who has come second too often; must not know what is written.

Nothing but fairness hangs on it: what is published is right whoever waits, so an error of the store here is no error.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from types import TracebackType
from uuid import uuid4

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.bucket import Bucket

LONGEST = 600.0
"""Seconds after which a turn is over: whose it was has died, or takes too long."""


class Turn:
    """One writer's turn, ended with the context.

    Args:
        bucket: Of the base.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._token, self._asked = bucket, uuid4().hex, False
        self.ours = False

    def __enter__(self) -> Turn:
        return self

    def wait(self, *, ask: bool) -> None:
        """Wait while it is another's turn, and ask for one that is still missing."""
        seen, since = None, time.monotonic()
        with suppress(KnowledgeBaseError):
            while (now := self._bucket.turn()) not in (None, self._token):
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > LONGEST:
                    self._bucket.end_turn()
                    break
                time.sleep(random.uniform(0.1, 0.5))
            self._asked = self._asked or ask
            if ask and now != self._token:
                self._bucket.ask_turn(self._token)
                now = self._bucket.turn()
            self.ours = now == self._token

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asked:
            with suppress(KnowledgeBaseError):
                if self._bucket.turn() == self._token:
                    self._bucket.end_turn()
