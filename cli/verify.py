"""`coma verify`: check a data set against its manifest."""

from pathlib import Path
from typing import Annotated, Any

import typer

from coma.cli import console
from coma.errors import DataError

_SHOWN = 20


def verify(
    data: Annotated[
        str | None,
        typer.Argument(help="Sharded data set: a folder or URL.", show_default="the one in this folder"),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image too (slower).")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Read a data set from end to end and name all that differs from its manifest.

    Images, labels, descriptions, indexes and counts; exit code 3 if anything does.
    """
    from dataclasses import asdict

    from rich.filesize import decimal
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from coma.shards.check.verify import VerifyProgress
    from coma.shards.check.verify import verify as check
    from coma.shards.files import folder_at
    from coma.shards.manifest import find_data

    folder = find_data(Path()) if data is None else folder_at(data)
    with console.progress(
        "verifying", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)
    ) as bar:
        bar.live.transient = True
        task = bar.add_task("verifying", total=None)

        def show(now: VerifyProgress) -> None:
            bar.update(task, total=now.total_image_bytes, completed=now.image_bytes)

        report = check(folder, decode=decode, progress=show)
    bad = len(report.problems)
    result: dict[str, Any] = {"data": str(folder), "samples": report.samples, "shards": report.shards}
    if json:
        result |= {"bytes": report.image_bytes, "problems": [asdict(problem) for problem in report.problems]}
    else:
        for problem in report.problems[:_SHOWN]:
            place = "/".join(filter(None, (problem.split, problem.shard)))
            name = f"{place} {problem.key}" if problem.key else place
            console.stdout.print(f"{name}: {problem.reason}", markup=False)
        if bad > _SHOWN:
            console.stdout.print(f"... and {bad - _SHOWN:,} more (--json lists them all)")
        result |= {
            "samples": f"{report.samples:,}",
            "shards": f"{report.shards:,}",
            "read": decimal(report.image_bytes),
            "differing": f"{bad:,}" if bad else "none",
        }
    console.print_result(result, json=json)
    if bad:
        raise DataError(
            f"{folder}: {bad:,} {'difference' if bad == 1 else 'differences'} from its manifest; copy it "
            "again, or shard again into a new folder"
        )
