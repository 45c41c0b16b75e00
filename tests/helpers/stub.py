"""Type stub of `coma`, for type checkers and editors: `python tests/helpers/stub.py` writes coma/__init__.pyi anew."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin

import coma
from coma.api import functions

STUB = Path(__file__).parents[2] / "coma" / "__init__.pyi"

_HEAD = '''"""Types of `coma`; made by `python tests/helpers/stub.py` from the options of the commands."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Literal, overload

from coma import errors as errors
from coma.api.results import (
    DryRunResult, EmbedResult, ExportResult, PictureResult, ScoreResult, SegmentationResult, ShardResult,
    TrainingResult, VerifyResult,
)
from coma.model.coma import CoMA as CoMA
from coma.model.dyvit import DyViT as DyViT
from coma.pipeline import Stream as Stream
from coma.shards.check.verify import VerifyProgress
from coma.shards.index.index import IndexProgress
from coma.shards.write.summary import ShardProgress
from coma.training.logs.metrics import Progress

__all__ = {names}
'''


_OTHERWISE = {
    "DryRunResult": ("dry_run", "Literal[False] = False", "Literal[True]"),
    "SegmentationResult": ("task", "Literal['classification'] = 'classification'", "Literal['segmentation']"),
}
"""What a function's second result depends on: a keyword, its type for the first result and that for the second."""


def stub() -> str:
    """Return the text of coma/__init__.pyi, formatted by ruff."""
    names = sorted(coma.__all__)
    commands = [getattr(functions, name) for name in names if hasattr(functions, name)]
    text = "\n\n".join([_HEAD.format(names=json.dumps(names)), *map(_definitions, commands)])
    ruff = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(STUB)]
    return subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout


def _definitions(function: Callable[..., Any]) -> str:
    """Return the definition of a function; two if it returns something else for some value of a keyword."""
    result, _, other = str(inspect.signature(function).return_annotation).partition(" | ")
    documentation = textwrap.indent(f'"""{inspect.getdoc(function)}\n"""', "    ", lambda line: line.strip() != "")
    if not other:
        return f"{_head(function, result)}\n{documentation}"
    keyword, usual, otherwise = _OTHERWISE[other]
    first, second = _head(function, result, {keyword: usual}), _head(function, other, {keyword: otherwise})
    return f"@overload\n{first}\n{documentation}\n@overload\n{second} ..."


def _head(function: Callable[..., Any], result: str, instead: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the first line of a definition, with these types of its parameters in place of their own."""
    parameters, starred = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            parameters.append("*")
            starred = True
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        annotation = _text(parameter.annotation) + default
        parameters.append(f"{name}: {instead.get(name, annotation)}")
    return f"def {function.__name__}({', '.join(parameters)}) -> {result}:"


def _text(annotation: Any) -> str:
    """Return a type as source."""
    if isinstance(annotation, str):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(map(_text, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(annotation)))}]"
    inner = f"[{', '.join(map(_text, get_args(annotation)))}]" if get_args(annotation) else ""
    return "None" if annotation is type(None) else f"{annotation.__name__}{inner}"


if __name__ == "__main__":
    STUB.write_text(stub())
