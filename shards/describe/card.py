"""Data card: the description of a data set in Markdown, with the front matter that the Hugging Face Hub reads."""

import re
from pathlib import Path
from typing import Any

from coma.shards.describe.describe import Description, SplitDescription, describe
from coma.shards.images.masks import MASK_EXTENSION
from coma.shards.images.prepare import EXTENSIONS
from coma.shards.text import as_markdown, visible_lines

_HUB_SPLITS = {"val": "validation"}
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # size categories of the Hub
_MAX_CLASS_NAMES = 1000  # in the front matter, whose length the Hub limits
_MOST_LABELS = 20  # without names, in the text
_OPTIONS = {
    "seed": "seed",
    "shard_bytes": "bytes a shard, about",
    "resize_px": "shorter side at most, px",
    "quality": "JPEG quality of re-encoded images",
    "val_fraction": "held out as val",
    "check": "check of every image",
    "max_pixels": "pixels at most",
    "dedupe": "exact duplicates set aside",
    "channels": "channels",
    "dtype": "type of the values",
    "uncompressed": "samples as .npy",
}


def data_card(data: Path) -> str:
    """Return the data card of a data set, which depends on the data only: not on when, where or how they were made."""
    description = describe(data, measured=0)
    blocks = [_front_matter(description), "# Image shards", _opening(description), _table(description)]
    blocks += [
        _classes(description),
        _pixels(description),
        _masks(description),
        _counts(description),
        _options(description),
    ]
    blocks += [_reading(description), _fingerprints(description)]
    return visible_lines("\n\n".join(block for block in blocks if block) + "\n")


def _front_matter(description: Description) -> str:
    images = sum(split.samples for split in description.splits)
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in description.splits:
        name = re.sub(r"\W", "_", _HUB_SPLITS.get(split.split, split.split))
        lines += [f"  - split: {name}", f"    path: {_quoted(f'{split.split}/*.tar')}"]
    lines += [*_features(description), "size_categories:", f"- {_size_category(images)}"]
    labelled = any(split.labelled for split in description.splits)
    if labelled or description.mask_classes:
        lines += ["task_categories:"]
        lines += ["- image-classification"] if labelled else []
        lines += ["- image-segmentation"] if description.mask_classes else []
    return "\n".join([*lines, "tags:", "- webdataset", "---"])


def _features(description: Description) -> list[str]:
    """Declare the columns, which `datasets` would guess from five samples, failing if their formats differ."""
    labelled = any(split.labelled for split in description.splits)
    formats = {name for split in description.splits for name in split.formats}
    if "npy" in formats:  # `datasets` makes arrays of them by itself
        return []
    lines = ["dataset_info:", "  features:"]
    for extension in sorted(EXTENSIONS.get(name, name) for name in formats):
        lines += [f"  - name: {extension}", "    dtype: image"]
    if description.mask_classes:
        lines += [f"  - name: {MASK_EXTENSION}", "    dtype: image"]
    names = description.class_names
    if labelled and names is not None and len(set(names)) == len(names) <= _MAX_CLASS_NAMES:
        lines += ["  - name: cls", "    dtype:", "      class_label:", "        names:"]
        lines += [f"          '{i}': {_quoted(name)}" for i, name in enumerate(names)]
    elif labelled:
        lines += ["  - name: cls", "    dtype: int64"]
    lines += ["  - name: json", "    struct:"]
    about = {"source": "string", "width": "int64", "height": "int64", "label": "int64"}
    about |= {"class_name": "string", "xxh3_64": "string"}
    about |= {"mask_source": "string", "mask_xxh3_64": "string"} if description.mask_classes else {}
    for name, kind in about.items():
        lines += [f"    - name: {name}", f"      dtype: {kind}"]
    for name in ("__key__", "__url__"):
        lines += [f"  - name: {name}", "    dtype: string"]
    return lines


def _quoted(text: str) -> str:
    """Quote a text as a YAML string."""
    plain = (each if each.isprintable() and each not in '"\\' else f"\\U{ord(each):08x}" for each in text)
    return f'"{"".join(plain)}"'


def _size_category(images: int) -> str:
    least = ""
    for i, step in enumerate(_SIZES):
        if images < 1000 * 10**i:
            return f"{least}<n<{step}" if least else f"n<{step}"
        least = step
    return f"n>{_SIZES[-1]}"


def _opening(description: Description) -> str:
    images = sum(split.samples for split in description.splits)
    version = description.info.get("version")
    by = f"coma {as_markdown(str(version))}" if version else "coma"
    classes = " without labels"
    if count := len(description.classes):
        classes = f" of {count:,} {'class' if count == 1 else 'classes'}"
    record = description.info.get("plan")
    indexed = isinstance(record, dict) and "index" in record
    done = "in WebDataset tars indexed" if indexed else "packed into WebDataset shards"
    return f"{images:,} images{classes}, {done} by {by}."


def _table(description: Description) -> str:
    head = ("split", "images", "shards", "bytes", "formats", "width, px", "height, px", "bytes an image")
    rows = [head, ("---",) * len(head)]
    rows += [
        (
            as_markdown(split.split),
            f"{split.samples:,}",
            f"{split.shards:,}",
            f"{split.shard_bytes:,}",
            ", ".join(f"{count:,} {as_markdown(name)}" for name, count in split.formats.items()),
            str(split.width),
            str(split.height),
            str(split.image_bytes),
        )
        for split in description.splits
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", "Three numbers are the smallest, the median and the largest."])


def _classes(description: Description) -> str:
    lines = [
        f"- {as_markdown(split.split)}: {split.classes.per_class} images a class, as varied as "
        f"{split.classes.effective:,.1f} classes of equal size"
        for split in description.splits
        if split.classes is not None
    ]
    if not lines:
        return ""
    if description.class_names:
        lines += ["", "Class names are in `_info.json`, in the order of the labels."]
    else:
        lines += ["", f"The labels are numbers without names: {_cut(description.classes)}."]
    return "\n".join(["## Classes", *lines])


def _pixels(description: Description) -> str:
    """Describe samples that are not 8-bit RGB images: channels, type, and the statistics of each channel."""
    blocks = []
    for split in description.splits:
        if (pixels := split.pixels) is None:
            continue
        rows = zip(pixels.mean, pixels.std, pixels.least, pixels.greatest, strict=True)
        lines = [
            f"{as_markdown(split.split)}: {pixels.identity}, in the units of the source. Mean and deviation are exact, "
            "over all values.",
            "",
            "| channel | mean | std | least | greatest |",
            "| --- | --- | --- | --- | --- |",
        ]
        for number, values in enumerate(rows, start=1):
            lines.append(f"| {number} | " + " | ".join(f"{value:.6g}" for value in values) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(["## Pixels", *blocks]) if blocks else ""


def _masks(description: Description) -> str:
    """Describe the masks: their classes, and how much of the pixels each takes."""
    masked = [(split.split, split.masks) for split in description.splits if split.masks is not None]
    coding = description.info.get("masks")
    if not masked or not isinstance(coding, dict):
        return ""
    count, ignored = len(description.mask_classes), coding.get("ignored")
    lines = [
        f"Each image has a segmentation mask of its size, `KEY.{MASK_EXTENSION}`, of {count:,} "
        f"{'class' if count == 1 else 'classes'}. `_info.json` names them in the order of their ids and says which "
        f"value of a pixel is which class; {'no value' if ignored is None else f'the value {ignored}'} stands for "
        "pixels without a class.",
        "",
    ]
    for name, shares in masked:
        largest = list(shares.classes.items())[:_MOST_LABELS]
        shown = ", ".join(f"{as_markdown(each)} {share:.1%}" for each, share in largest)
        more = ", ..." if len(shares.classes) > _MOST_LABELS else ""
        lines.append(f"- {as_markdown(name)}, of {shares.images:,} masks: {shown}{more}; no class {shares.ignored:.1%}")
    return "\n".join(["## Masks", *lines])


def _cut(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:_MOST_LABELS]) + (", ..." if len(labels) > _MOST_LABELS else "")


def _counts(description: Description) -> str:
    """List the numbers of images found, kept, set aside and converted."""
    kept = sum(split.samples for split in description.splits)
    aside = sum(description.set_aside.values())
    lines = ["## Where every image went", f"- found: {kept + aside:,}", f"- kept: {kept:,}"]
    lines += [f"- set aside: {aside:,}{_kinds(description.set_aside)}"]
    if aside:
        lines[-1] += "; `quarantine.parquet` names each and says why"
    changed = sum(description.converted.values())
    if changed:
        lines += [f"- converted: {changed:,}{_kinds(description.converted)}; the others byte for byte as they were"]
    else:
        each = "every image and mask" if description.mask_classes else "every image"
        lines += [f"- converted: none, {each} is byte for byte what it was"]
    return "\n".join(lines)


def _kinds(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return f" ({', '.join(f'{count:,} {as_markdown(kind)}' for kind, count in ranked)})" if counts else ""


def _options(description: Description) -> str:
    record = description.info.get("plan")
    if not isinstance(record, dict):
        return ""
    lines = [
        f"- {words}: {_as_text(record[name])}"
        for name, words in _OPTIONS.items()
        if record.get(name) is not None and (name != "val_fraction" or record[name] > 0)
    ]
    return "\n".join(["## Options", *lines])


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else as_markdown(str(value))


def _reading(description: Description) -> str:
    split = description.splits[0]
    if split.pixels is not None:
        return _reading_arrays(split)
    images = ";".join(EXTENSIONS.get(name, name) for name in split.formats)
    fields = f'"{images}", "cls"' if split.labelled else f'"{images}"'
    tars = f'sorted(glob.glob("{split.split}/*.tar")), shardshuffle=False'
    lines = [
        "import coma.pipeline, glob, timm.data, webdataset",
        "",
        'stream = coma.pipeline.Stream(".", batch_size=8)',
        f'samples = webdataset.WebDataset({tars}).decode("pil").to_tuple({fields})',
    ]
    if split.labelled:
        lines.append(f'dataset = timm.data.create_dataset("wds/", root=".", split="{split.split}")')
    return "\n".join(["## Reading", "```python", *lines, "```"])


def _reading_arrays(split: SplitDescription) -> str:
    """Show how samples are read that stock decoders of images do not know."""
    lines = [
        "import coma.pipeline, webdataset, glob",
        "from coma.shards.images.arrays import array_facts, read_window",
        "",
        'stream = coma.pipeline.Stream(".", batch_size=8)  # of all channels, cropped and normalised',
        f'tars = webdataset.WebDataset(sorted(glob.glob("{split.split}/*.tar")), shardshuffle=False)',
        f'for (data,) in tars.to_tuple("{";".join(EXTENSIONS.get(name, name) for name in split.formats)}"):',
        "    facts = array_facts(data)",
        "    pixels = read_window(data, facts.format, 0, 0, facts.height, facts.width)  # [H, W, C]",
    ]
    return "\n".join(["## Reading", "```python", *lines, "```"])


def _fingerprints(description: Description) -> str:
    lines = [f"- {as_markdown(split.split)}: `{split.fingerprint}`" for split in description.splits]
    return "\n".join(["## Fingerprints", *lines])
