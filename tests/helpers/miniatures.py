"""Miniatures of ImageNet as it is downloaded, all made of the same images."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02123045": "tabby"}
IDS = {"n02123045": 1, "n01440764": 2, "n01443537": 3}  # not in the order of the wnids
GROUPS = {"n00000001": 1001, "n02075296": 1002}
VAL = ["n02123045", "n01440764", "n01440764", "n01443537", "n02123045"]  # of images 1 to 5


def imagenet(image):
    """{path in the tree: bytes}, of 9 training, 5 validation and 3 test images."""
    paths = [f"train/{wnid}/{wnid}_{i * 7}.JPEG" for wnid in WORDS for i in (1, 10, 2)]
    paths += [f"val/{wnid}/ILSVRC2012_val_{i:08}.JPEG" for i, wnid in enumerate(VAL, 1)]
    paths += [f"test/ILSVRC2012_test_{i:08}.JPEG" for i in range(1, 4)]
    return {path: image(seed, 16, 12) for seed, path in enumerate(paths)}


def folders(folder, images):
    for path, data in images.items():
        write(folder / path, data)
    return folder


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put(root: Path, *paths: str) -> Path:
    """Write a file of one byte at each path below a folder; return the folder."""
    for path in paths:
        write(root / path, b"x")
    return root


def of_type(name: str, kind: bytes) -> tarfile.TarInfo:
    """A member of a tar that is a link or a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def packed(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def named(images, folder):
    """{name: bytes} of the images in a folder."""
    return {path.rsplit("/", 1)[1]: data for path, data in images.items() if path.startswith(f"{folder}/")}


def meta_mat():
    """The devkit's table of synsets: 1000 classes and the groups above them; here 3 and 2."""
    from scipy.io import savemat

    kinds = [
        *(("ILSVRC2012_ID", float), ("WNID", object), ("words", object), ("gloss", object)),
        *(("num_children", float), ("children", object), ("wordnet_height", float), ("num_train_images", float)),
    ]  # fmt: skip
    rows = [
        (float(number), wnid, WORDS[wnid], "a fish or a cat", 0.0, np.empty((1, 0)), 0.0, 3.0)
        for wnid, number in IDS.items()
    ]
    rows += [
        (float(number), wnid, "group", "of classes", 2.0, np.array([[1.0, 2.0]]), 1.0, 0.0)
        for wnid, number in GROUPS.items()
    ]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array([[row] for row in rows], dtype=kinds)})
    return file.getvalue()


def devkit(val=VAL):
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"read me",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{IDS[wnid]}\n" for wnid in val
        ).encode(),
    }


def official(folder, images, truth=VAL):
    classes = {f"{wnid}.tar": packed(named(images, f"train/{wnid}")) for wnid in reversed(WORDS)}
    val = dict(sorted(named(images, "val").items(), reverse=True))
    test = {f"test/{name}": data for name, data in named(images, "test").items()}
    write(folder / "ILSVRC2012_img_train.tar", packed(classes))
    write(folder / "ILSVRC2012_img_val.tar", packed(val))
    write(folder / "ILSVRC2012_img_test_v10102019.tar", packed(test))
    write(folder / "ILSVRC2012_devkit_t12.tar.gz", packed(devkit(truth), "w:gz"))
    write(folder / "ILSVRC2012_img_train_t3.tar", b"the dogs of another task")
    return folder


def kaggle(folder, images):
    base = folder / "ILSVRC/Data/CLS-LOC"
    lines = ["ImageId,PredictionString"]
    for path, data in images.items():
        name = path.rsplit("/", 1)[1]
        write(base / (f"val/{name}" if path.startswith("val/") else path), data)
        if path.startswith("val/"):
            lines.insert(1, f"{name[:-5]},{path.split('/')[1]} 1 2 30 40 {path.split('/')[1]} 5 6 70 80 ")
    write(folder / "LOC_val_solution.csv", "\r\n".join(lines).encode())
    write(
        folder / "LOC_synset_mapping.txt",
        "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()).encode(),
    )
    write(folder / "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_7.xml", b"<annotation>")
    write(folder / "ILSVRC/ImageSets/CLS-LOC/train_cls.txt", b"n01440764/n01440764_7 1")
    return folder


def hugging_face(folder, images):
    """As the Hub's imagenet-1k: rows in no order, names of their own, the classes in the schema's metadata."""
    wnids = sorted(WORDS)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": [WORDS[wnid] for wnid in wnids], "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [
            pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            pa.field("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = []
        for path, data in images.items():
            if not path.startswith(f"{split}/"):
                continue
            wnid, stem = path.split("/")[1], path.rsplit("/", 1)[1].removesuffix(".JPEG")
            inner = f"{stem}.JPEG" if split == "test" else f"{stem}_{wnid}.JPEG"
            label = -1 if split == "test" else wnids.index(wnid)
            rows.append({"image": {"bytes": data, "path": inner}, "label": label})
        rows = rows[::-1]
        for number, part in enumerate((rows[:2], rows[2:])):
            file = folder / f"data/{name}-{number:05d}-of-00002.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(part, schema), file, row_group_size=2)
    return folder
