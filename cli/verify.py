"""`coma verify`: check a data set against its manifest."""

from typing import Any

from coma.cli import console
from coma.cli.from_options import from_options
from coma.cli.options import Json, command_for
from coma.errors import DataError
from coma.shards.check.options import VerifyOptions

_SHOWN = 20


@from_options(VerifyOptions)
def verify(options: VerifyOptions, json: Json = False) -> None:
    """Check every byte of a data set against its manifest.

    All differences in images, labels, descriptions, indexes and counts are
    listed; the exit code is 3 if there is one.
    """
    from dataclasses import asdict

    from rich.filesize import decimal
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from coma.shards.check.verify import VerifyProgress
    from coma.shards.check.verify import verify as check
    from coma.shards.manifest import chosen_data

    folder = chosen_data(options.data)
    with console.progress(
        "verifying", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)
    ) as bar:
        bar.live.transient = True
        task = bar.add_task("verifying", total=None)

        def show(now: VerifyProgress) -> None:
            bar.update(task, total=now.total_image_bytes, completed=now.image_bytes)

        report = check(folder, decode=options.decode, progress=show)
    bad = len(report.problems)
    result: dict[str, Any] = {"data": str(folder), "samples": report.samples, "shards": report.shards}
    if json:
        result |= {"bytes": report.image_bytes, "problems": [asdict(problem) for problem in report.problems]}
    else:
        for problem in report.problems[:_SHOWN]:
            place = "/".join(filter(None, (problem.split, problem.shard)))
            name = f"{place} {problem.key}" if problem.key else place
            console.stdout.print(f"{name}: {problem.reason}")
        if bad > _SHOWN:
            console.stdout.print(f"... and {bad - _SHOWN:,} more (--json lists them all)")
        result |= {
            "samples": f"{report.samples:,}",
            "shards": f"{report.shards:,}",
            "read": decimal(report.image_bytes),
            "differing": f"{bad:,}" if bad else "none",
        }
    console.print_result(result, json=json, following=None if bad else command_for(folder))
    if bad:
        raise DataError(
            f"{folder}: {bad:,} {'difference' if bad == 1 else 'differences'} from its manifest; copy it "
            "again, or shard again into a new folder"
        )
