"""Execute examples/photographs.ipynb.

`python tests/helpers/notebooks.py` does so in full, and keeps the pictures and tables in the notebook.
"""

import base64
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "examples" / "photographs.ipynb"


def load(**constants: int) -> Any:
    """The notebook, with other values of the constants that its cells define."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in constants.items():
        found = 0
        for cell in notebook.cells:
            cell.source, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", cell.source, flags=re.M)
            found += count
        assert found == 1, name
    return notebook


def execute(notebook: Any, folder: Path) -> None:
    """Execute all cells in a kernel of its own, in a folder; the outputs are put into the notebook."""
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=place).execute()


def tidy(notebook: Any, folder: Path) -> None:
    """Make the outputs small, and free of the folder, of times and of messages."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
        for output in cell.outputs:
            output.data = {kind: _tidied(kind, value, folder) for kind, value in output.data.items()}
            picture = output.data.pop("image/png", None)
            if picture and "text/html" not in output.data:  # which has the picture as well
                output.data["image/jpeg"] = picture


def _tidied(kind: str, value: str, folder: Path) -> str:
    if kind == "image/png":
        return _as_jpeg(value)
    value = value.replace(f"{folder}/", "")
    return re.sub(r"data:image/png;base64,([\w+/=]+)", lambda png: f"data:image/jpeg;base64,{_as_jpeg(png[1])}", value)


def _as_jpeg(png: str) -> str:
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Execute the notebook in full and write it with its outputs."""
    notebook = load()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
        tidy(notebook, Path(folder))
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    sys.exit(main())
