import pytest

from coma.errors import UsageError
from coma.shards.sources.splits import held_out, last_split_in, parse_splits, split_of, split_of_source, splits_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "train2017", "train_images", "trainset", "train-1k")
        ),
        *((name, "train") for name in ("trainImages", "training data", "01_train", "train_val", "trainval")),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "eval", "val2014", "val_256", "valset")),
        *((name, "val") for name in ("validation-images", "ＶＡＬ", "dev_set", "VALIDATION (1)", "ImagesVal")),
        *((name, "test") for name in ("test", "Testing", "test2017", "testset", "test_images", "2019.test")),
        *((name, None) for name in ("cat", "valley", "tester", "contest", "trains", "device", "bullet_train", "")),
        *((name, None) for name in ("test_tube", "cats_val", "test_train", "2017", "images", "validate_me")),
    ],
)
def test_split_of(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cats_train", "cats_val"), {"cats_train": "train", "cats_val": "val"}),
        (
            ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
            {"ILSVRC2012_img_train": "train", "ILSVRC2012_img_val": "val"},
        ),
        (("imagenet-train", "imagenet-test", "readme"), {"imagenet-train": "train", "imagenet-test": "test"}),
        (("test_tube", "bullet_train"), {}),
        (("test_tube", "bottle"), {}),
        (("cats_val", "dogs_val"), {}),
        (("train", "test_tube"), {"train": "train"}),
    ],
)
def test_names_side_by_side_share_their_decoration(names: tuple[str, ...], expected: dict[str, str]) -> None:
    assert splits_of(names) == expected


def test_words_in_a_path() -> None:
    assert last_split_in("coco/train2017/val-0001.tar") == "val"
    assert last_split_in("data/train-00000-of-00294.parquet") == "train"
    assert last_split_in("latest/0000.tar") is None
    assert held_out("cat/COCO_val2014_000000000042.jpg")
    assert not held_out("train/valley/latest.jpg")


@pytest.mark.parametrize(
    ("name", "split"), [("val2017", "val"), ("test", "test"), ("dev", "train"), ("photos", "train")]
)
def test_a_source_s_own_name(name: str, split: str) -> None:
    assert split_of_source(name) == split


@pytest.mark.parametrize(
    ("rules", "folders", "expected"),
    [
        ("train=a,val=b", ("a", "cat"), ("train", ("cat",))),
        ("train=a,val=b", ("cat", "b"), ("val", ("cat",))),
        ("train=a,val=b", ("c",), (None, ("c",))),
        ("train=.,val=b", ("c",), ("train", ("c",))),
        ("train=.,val=b", (), ("train", ())),
        ("train=.,val=b", ("b",), ("val", ())),
        ("train=a/2019,val=a/2020", ("a", "2020", "cat"), ("val", ("a", "cat"))),
        ("train=a/2019,val=a", ("a", "2019", "cat"), ("train", ("a", "cat"))),
        ("train=*/in,test=*/out", ("cat", "out"), ("test", ("cat",))),
        ("train=shard-0*.tar,val=shard-1*.tar", ("shard-12",), ("val", ())),
        ("train=train,val=val", ("train", "val"), ("train", ("val",))),
        ("training=a, dev=b/", ("b",), ("val", ())),
        ("train=a,train=b", ("b",), ("train", ())),
    ],
)
def test_rules(rules: str, folders: tuple[str, ...], expected: tuple[str | None, tuple[str, ...]]) -> None:
    assert parse_splits(rules).place(folders) == expected


@pytest.mark.parametrize("text", ["", "train", "train=", "=a", "holdout=a", "train=a,,val=b"])
def test_rules_that_say_nothing(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not SPLIT=FOLDER .* train=photos/2019"):
        parse_splits(text)
