"""`coma export`: the backbone of a run as a timm model."""

from coma.cli.from_options import from_options
from coma.cli.options import Json
from coma.exports.options import ExportOptions


@from_options(ExportOptions)
def export(options: ExportOptions, json: Json = False) -> None:
    """Write the backbone of a run as a timm model, with a model card.

    After import coma, timm.create_model("local-dir:DIR", pretrained=True)
    loads it. With --push it goes to the Hugging Face Hub as well, from where
    "hf-hub:OWNER/NAME" loads it.
    """
    from coma.cli import console
    from coma.exports.export import export_run

    with console.working("exporting" if options.push is None else "exporting and uploading"):
        result = export_run(**vars(options))
    lines = {name: value for name, value in result.items() if value not in (None, False)}
    if not json:
        lines["load"] = f"import coma, timm; model = {result['load']}"
        lines["parameters"] = f"{result['parameters'] / 1e6:.1f} M"
        if result["decoder"]:
            lines["decoder"] = "included"
    console.print_result(result if json else lines, json=json)
