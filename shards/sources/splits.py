"""Splits of a data set, told from the names that people give to folders, tars and tables.

A name says a split if it is train, val, test or another usual word for them ("Validation"), or such a word with
decoration: digits, or words that say nothing of the contents ("train2017", "val_images"). What else stands beside the
word counts as decoration if the names beside it have it as well ("cats_train", "cats_val").
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from coma.errors import UsageError

SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trainval", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Usual words for splits → the split."""

UNRULED = "outside the splits: no rule of --splits takes it"
"""Why an image is set aside that no rule takes."""

_DECORATION = frozenset(
    [
        "a",
        "all",
        "big",
        "clean",
        "cropped",
        "data",
        "dataset",
        "dir",
        "final",
        "folder",
        "full",
        "hr",
        "image",
        "images",
        "img",
        "imgs",
        "jpeg",
        "jpegs",
        "jpg",
        "k",
        "large",
        "lr",
        "new",
        "orig",
        "original",
        "part",
        "photo",
        "photos",
        "pic",
        "pics",
        "picture",
        "pictures",
        "png",
        "pngs",
        "px",
        "raw",
        "resized",
        "set",
        "sets",
        "shard",
        "shards",
        "small",
        "split",
        "splits",
        "subset",
        "v",
        "x",
    ]
)
_GLUED = re.compile(rf"({'|'.join(sorted(SPLIT_OF_WORD, key=len, reverse=True))})(set|data|images?|imgs?|split)")
_MAY_BE_HELD_OUT = re.compile(r"val|dev|test|tst|[^\x00-\x7f]", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def split_of(name: str) -> str | None:
    """Return the split that a name says by itself, None if it says none, or several."""
    split, rest = _read(name)
    return split if split is not None and not rest else None


def split_of_source(name: str) -> str:
    """Return the split of a source in which nothing says one, by the source's own name; train if that says none."""
    return (split_of(name) if name.lower() not in ("dev", "eval") else None) or "train"


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Return {name: split} of those of the names, which stand side by side, that say a split."""
    read = {name: _read(name) for name in names}
    splits_by_rest: dict[tuple[str, ...], set[str]] = {}
    for split, rest in read.values():
        if split is not None:
            splits_by_rest.setdefault(rest, set()).add(split)
    return {
        name: split
        for name, (split, rest) in read.items()
        if split is not None and (not rest or len(splits_by_rest[rest]) > 1)
    }


def last_split_in(path: str) -> str | None:
    """Return the split that any word in a path says, the last if there are several ("coco/train2017-0001.tar")."""
    return next((SPLIT_OF_WORD[word] for word in reversed(_words(path)) if word in SPLIT_OF_WORD), None)


def held_out(name: str) -> bool:
    """Whether any word of a name is one for validation or test images ("val_2017_0001")."""
    if _MAY_BE_HELD_OUT.search(name) is None:  # paths are many
        return False
    return any(SPLIT_OF_WORD.get(word, "train") != "train" for word in _words(name))


def _words(name: str) -> list[str]:
    words: list[str] = []
    for word in _WORDS.findall(_CAMEL.sub(" ", unicodedata.normalize("NFKC", name))):
        glued = _GLUED.fullmatch(word.lower())
        words += glued.groups() if glued is not None else [word.lower()]
    return words


def _read(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split that a name's words say, and those of its words that are neither that nor decoration."""
    words = _words(name)
    said = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    rest = tuple(word for word in words if word not in SPLIT_OF_WORD and word not in _DECORATION)
    if said == {"train", "val"} and not rest:
        return "train", rest  # "train+val" is what one trains on in the end
    return (said.pop() if len(said) == 1 else None), rest


@dataclass(frozen=True)
class SplitRules:
    """What `--splits train=images/2019,val=*/held_out` says: which folders, tars or tables are which split.

    A folder is named by its path below the source, or by its name alone wherever it lies; "." is all that no other
    rule takes. `*` stands for anything in a name.
    """

    patterns: Mapping[str, tuple[tuple[str, ...], ...]]
    """Split → the folders that are it, each as the parts of its path; "." has none."""

    def split_of_file(self, path: str) -> str | None:
        """Return the split of a tar or table by its path; None if no rule takes it."""
        return self.place(tuple(path.removesuffix(".tar").removesuffix(".parquet").split("/")))[0]

    def place(self, folders: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
        """Return the split of a file in these folders, None if no rule takes it, and the folders that are left.

        A longer path goes before a shorter one, and a name further out before one further in.
        """
        matches = [
            ((len(pattern), -start), split, start + len(pattern))
            for split, patterns in self.patterns.items()
            for pattern in patterns
            for start in (range(len(folders)) if len(pattern) == 1 else (0,))
            if start + len(pattern) <= len(folders) and all(map(fnmatchcase, folders[start:], pattern))
        ]
        if not matches:
            return None, folders
        _, split, stop = max(matches)
        return split, folders[: max(stop - 1, 0)] + folders[stop:]


def parse_splits(text: str, flag: str = "--splits") -> SplitRules:
    """Read "train=a,val=b". Raises UsageError."""
    patterns: dict[str, list[tuple[str, ...]]] = {}
    for pair in text.split(","):
        name, equals, folder = (each.strip() for each in pair.partition("="))
        split = SPLIT_OF_WORD.get(name.lower())
        if not equals or split is None or not folder:
            raise UsageError(
                f"{flag} {text}: {pair.strip()!r} is not SPLIT=FOLDER with a split train, val or test; "
                "write for example train=photos/2019,val=photos/2020"
            )
        parts = tuple(
            part for part in folder.removesuffix(".tar").removesuffix(".parquet").split("/") if part not in ("", ".")
        )
        patterns.setdefault(split, []).append(parts)
    return SplitRules({split: tuple(folders) for split, folders in patterns.items()})
