"""Summary at the end of `coma shard` and `coma index`: where every image went."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from coma.cli.console import counts_in_words
from coma.errors import shell_command

if TYPE_CHECKING:
    from coma.shards.write.summary import ShardSummary


def summary_as_json(summary: "ShardSummary") -> dict[str, Any]:
    """Return the summary of a run as plain JSON types."""
    return {
        "out": str(summary.out),
        "found": summary.found,
        "kept": summary.kept,
        "set_aside": summary.set_aside,
        "reasons": summary.reasons,
        "converted": summary.converted,
        "passed_over": summary.passed_over,
        **({} if summary.tiled is None else {"tiled_images": summary.tiled.images}),
        "classes": summary.classes,
        "mask_classes": summary.mask_classes,
        **({} if summary.pixels is None else {"pixels": summary.pixels.summary()}),
        "shards": summary.shards,
        "bytes": summary.shard_bytes,
        "splits": {
            split.name: {"images": split.images, "shards": split.shards, "bytes": split.shard_bytes}
            for split in summary.splits
        },
        "part": summary.part,
        "shards_from_before": summary.kept_shards,
        "elapsed_s": round(summary.elapsed_s, 3),
    }


def summary_as_lines(summary: "ShardSummary", set_aside_note: str = "") -> dict[str, str]:
    """Return the summary of a run as lines to print; the note is added to the line on images set aside."""
    from rich.filesize import decimal

    from coma.shards.sources.listing import counted

    kept = ", ".join(f"{split.name} {split.images:,}" for split in summary.splits)
    converted = f"; {sum(summary.converted.values()):,} converted ({counts_in_words(summary.converted)})"
    aside = f" ({counts_in_words(summary.reasons)}): see quarantine.parquet{set_aside_note}" if summary.reasons else ""
    lines = {} if summary.part is None else {"part": f"{summary.part}, of the shards"}
    lines |= {
        "found": f"{summary.found:,} images" if summary.tiled is None else summary.tiled.in_words(summary.found),
        "kept": (f"{summary.kept:,} ({kept})" if len(summary.splits) > 1 else f"{summary.kept:,}, split {kept}")
        + (converted if summary.converted else ""),
        "set aside": f"{summary.set_aside:,}{aside}" if summary.set_aside else "none",
        "passed over": f"{counted(Counter(summary.passed_over))}, no images: see passed_over.parquet"
        if summary.passed_over
        else "none",
        **({} if summary.pixels is None else {"pixels": summary.pixels.identity}),
        **({"masks": f"of {summary.mask_classes:,} classes"} if summary.mask_classes else {}),
        "shards": f"{summary.shards:,}, {decimal(summary.shard_bytes)} in all, in {summary.elapsed_s:.1f} s",
        "where": str(summary.out),
    }
    if summary.part is None:
        trainable = any(split.name == "train" and split.images for split in summary.splits)
        lines["next"] = shell_command("coma", "pretrain" if trainable else "inspect", summary.out)
    else:
        lines["next"] = "the other parts; then, if none of them said it was the last, this without --part"
    return lines
