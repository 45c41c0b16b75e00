"""`coma demo`: the whole road in a few minutes, with drawn images or with one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coma.demo.demo import DemoResult


def demo(
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images, as `coma shard` takes it.",
            metavar="DIR",
            show_default="a labelled set is drawn",
            rich_help_panel="Demo",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New or empty folder for everything.",
            metavar="DIR",
            show_default="coma-demo, or coma-demo-2, ...",
            rich_help_panel="Demo",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of images, weights and masks.", min=0, metavar="N", rich_help_panel="Demo"),
    ] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel="Running")
    ] = False,
) -> None:
    """Shard, pre-train, probe and paint on a small scale, in a few minutes.

    Draws photo-like images (or takes yours), packs them into shards, pre-trains
    a small network on complementary views of them, and tells how much better
    its features have become. Needs no GPU, no network and no labels of yours.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

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
    console.print_result(result.to_json() if json else _story(result), json=json)


def _story(done: "DemoResult") -> dict[str, str]:
    """Ten lines: what happened, where it is, what to type next."""
    from coma.demo.demo import MODEL, VIEWS

    what = f"{done.classes} classes" if done.classes else "no labels"
    count = f"{done.train_images + done.val_images:,}"
    aside = f", {done.set_aside:,} set aside" if done.set_aside else ""
    took = "drew" if done.drawn else "took"
    story = {
        "images": f"{took} {count} ({what}{aside}) and packed them into {done.data}",
        "network": f"{MODEL}, {done.parameters / 1e6:.1f} M parameters, randomly initialised",
    }
    if done.probe_before is None or done.probe_after is None:
        story["probe"] = "none: it needs labelled images, a folder for each class"
        story["before"] = f"loss {done.first_loss:.3f}: it paints noise"
    else:
        story["before"] = f"linear probe {done.probe_before:.1f}%, nearest neighbours {done.knn_before:.1f}%"
    story["trained"] = (
        f"{done.steps:,} steps, {done.images_seen:,} images, {VIEWS} views each, without labels, "
        f"in {_minutes(done.training_s)}"
    )
    if done.probe_before is not None and done.probe_after is not None:
        story["after"] = f"linear probe {done.probe_after:.1f}%, nearest neighbours {done.knn_after:.1f}%"
        gain = done.probe_after - done.probe_before
        story["gain"] = (
            f"{gain:+.1f} points of probe accuracy; loss {done.first_loss:.3f} to {done.last_loss:.3f}"
        )
    else:
        story["after"] = f"loss {done.last_loss:.3f}"
    story["picture"] = f"{done.picture}  what it paints"
    story["report"] = f"{done.report}  (all of it took {_minutes(done.elapsed_s)})"
    story["yours"] = "coma demo --images DIR" if done.drawn else "coma shard DIR"
    story["in full"] = "coma shard DIR, then coma pretrain --ds-config zero2.json"
    return story


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"
