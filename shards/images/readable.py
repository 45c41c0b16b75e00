"""What readers of headers need of a file: its bytes, or something that reads ranges of them."""

from typing import Protocol


class Readable(Protocol):
    """Bytes, or something that returns ranges of them."""

    def __len__(self) -> int:
        """Return the number of bytes."""

    def __getitem__(self, key: slice, /) -> bytes:
        """Return a range of bytes, cut at the end as a slice of bytes is."""

    def startswith(self, prefix: bytes, /) -> bool:
        """Whether they begin with these."""
