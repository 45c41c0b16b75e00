"""The quarantine of a data set: one parquet row for each image that was set aside, with the reason.

A second table of the same columns names the files that were passed over because they are no images.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coma.shards.files import open_for_arrow

QUARANTINE_NAME = "quarantine.parquet"
PASSED_OVER_NAME = "passed_over.parquet"
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # in the source folder
        pa.field("reason", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


def reason_kind(reason: str) -> str:
    """Return the kind of a reason, which is what precedes its colon."""
    return reason.split(":", 1)[0]


def count_reasons(path: Path) -> Counter[str]:
    """Count the rows of one of the two tables by kind of reason.

    Raises OSError or pa.ArrowException if it cannot be read, AttributeError if a reason is missing.
    """
    with open_for_arrow(path) as file:
        reasons = pq.read_table(file, columns=["reason"])["reason"].to_pylist()
    return Counter(map(reason_kind, reasons))
