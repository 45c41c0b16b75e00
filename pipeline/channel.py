"""A bounded queue between two threads that either of them can close."""

from collections import deque
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Queue of at most `capacity` items from one thread to another.

    Unlike `queue.Queue`, it wakes a thread that waits at either end when the other thread finishes or closes it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room and add an item; False if the channel was closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def finish(self, error: BaseException | None = None) -> None:
        """Add no more items; `get` raises `error`, if there is one, after the last item."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def get(self) -> T | None:
        """Wait for the next item; None after the last, or once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._finished or self._items)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._error is not None and not self._closed:
                raise self._error
            return None

    def close(self) -> None:
        """Drop all waiting items and wake both threads."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
