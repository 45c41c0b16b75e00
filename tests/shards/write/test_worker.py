"""Errors on their way from a worker process to its parent."""

import pickle

from coma.errors import ComaError, DataError
from coma.shards.write.worker import _sendable


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def sent(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        arrived: Exception = pickle.loads(pickle.dumps(_sendable(raised)))
        return arrived


def test_faults_arrive_as_they_are_told() -> None:
    full = sent(OSError(28, "No space left on device", "a.tar"))
    assert (type(full), getattr(full, "filename", None)) == (OSError, "a.tar")
    assert type(sent(MemoryError())) is ComaError
    assert type(sent(EOFError())) is DataError


def test_bugs_arrive_with_their_tracebacks() -> None:
    for error in (TypeError("planted"), Unpicklable(1, 2)):
        arrived = sent(error)
        assert not isinstance(arrived, ComaError)
        assert "in sent" in arrived.__notes__[0]
