"""A lock that threads share, and that a forked child finds open."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator


class ForkSafeLock:
    """A reentrant lock for the threads of one process; a child of `os.fork` has a new one in its place.

    Of all threads a child has only the one that forked: a lock that another one held would stay closed in it for ever.

    >>> lock = ForkSafeLock()
    >>> with lock.held(), lock.held():
    ...     print("one thread at a time")
    one thread at a time
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _LOCKS.add(self)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, and hold it."""
        with self._lock:  # also where a child has another one in the end
            yield

    def renew(self) -> None:
        """Put a new lock, which nobody holds, in its place."""
        self._lock = threading.RLock()


#: Those that are in use.
_LOCKS = weakref.WeakSet[ForkSafeLock]()


def _renew_all() -> None:
    for lock in _LOCKS:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
