"""`coma demo`: all steps on a small scale, with drawn images or with one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coma.cli.options import Json

if TYPE_CHECKING:
    from coma.demo.demo import DemoResult


def demo(
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images, as for `coma shard`.", metavar="DIR", show_default="labelled images are drawn"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New or empty folder for all results.", metavar="DIR", show_default="coma-demo, or coma-demo-2, ..."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Random seed for images, weights and masks.", min=0, max=2**63 - 1, metavar="N")
    ] = 0,
    json: Json = False,
) -> None:
    """Shard, pre-train and evaluate on a small scale, in minutes.

    Images are drawn (or yours are taken) and packed into shards, a small
    network is pre-trained on complementary views of them, and its features are
    evaluated before and after. No GPU, no network and no labels are needed.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from coma.cli import console
    from coma.demo.demo import demo as run_demo

    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with console.progress(*columns) as bar:
        current: list[str] = []

        def show(stage: str, done: int, total: int) -> None:
            if current[-1:] != [stage]:
                for task in list(bar.task_ids):
                    bar.remove_task(task)
                bar.add_task(stage, total=total or None)
                current.append(stage)
            bar.update(bar.task_ids[-1], completed=done, total=total or None)

        result = run_demo(images, out, seed=seed, progress=show if console.interactive() else None)
    console.print_result(result.to_json() if json else _as_lines(result), json=json)


def _as_lines(done: "DemoResult") -> dict[str, str]:
    """Return ten lines: what was done, where the results are, what to type next."""
    from coma.demo.demo import MODEL, VIEWS
    from coma.training.logs.metrics import duration

    what = f"{done.classes} classes" if done.classes else "no labels"
    count = f"{done.train_images + done.val_images:,}"
    aside = f", {done.set_aside:,} set aside" if done.set_aside else ""
    took = "drew" if done.drawn else "took"
    lines = {
        "images": f"{took} {count} ({what}{aside}) and packed them into {done.data}",
        "network": f"{MODEL}, {done.parameters / 1e6:.1f} M parameters, randomly initialised",
    }
    if done.probe_before is None or done.probe_after is None:
        lines["probe"] = "none: it needs labelled images, a folder for each class"
        lines["before"] = f"loss {done.first_loss:.3f}: reconstructions are noise"
    else:
        lines["before"] = f"linear probe {done.probe_before:.1f}%, nearest neighbours {done.knn_before:.1f}%"
    lines["trained"] = (
        f"{done.steps:,} steps, {done.images_seen:,} images, {VIEWS} views each, without labels, "
        f"in {duration(done.training_s)}"
    )
    if done.probe_before is not None and done.probe_after is not None:
        lines["after"] = f"linear probe {done.probe_after:.1f}%, nearest neighbours {done.knn_after:.1f}%"
        gain = done.probe_after - done.probe_before
        lines["gain"] = f"{gain:+.1f} points of probe accuracy; loss {done.first_loss:.3f} to {done.last_loss:.3f}"
    else:
        lines["after"] = f"loss {done.last_loss:.3f}"
    lines["picture"] = f"{done.picture}  reconstructions"
    lines["report"] = f"{done.report}  (all of it took {duration(done.elapsed_s)})"
    lines["yours"] = "coma demo --images DIR" if done.drawn else "coma shard DIR"
    lines["in full"] = "coma shard DIR, then coma pretrain --ds-config zero2.json"
    return lines
