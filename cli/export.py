"""`coma export`: the backbone of a run as a timm model."""

from pathlib import Path
from typing import Annotated

import typer

from coma.cli.options import Json, Run


def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an earlier export.", metavar="DIR")],
    with_decoder: Annotated[
        bool, typer.Option("--with-decoder", help="Write the decoder as well, for `coma pretrain --init DIR`.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write DIR/model.onnx as well; needs the extra onnx.")] = False,
    license: Annotated[
        str, typer.Option(help="License for the model card: apache-2.0, cc-by-nc-4.0, ...", metavar="NAME")
    ] = "unknown",
    json: Json = False,
) -> None:
    """Write the backbone of a run as a timm model, with a model card.

    After import coma, timm.create_model("local-dir:DIR", pretrained=True)
    loads it.
    """
    from coma.cli import console
    from coma.export.export import export_run

    result = export_run(run, folder, with_decoder=with_decoder, onnx=onnx, license=license)
    lines = {name: value for name, value in result.items() if value not in (None, False)}
    if not json:
        lines["parameters"] = f"{result['parameters'] / 1e6:.1f} M"
        if result["decoder"]:
            lines["decoder"] = "included"
    console.print_result(result if json else lines, json=json)
