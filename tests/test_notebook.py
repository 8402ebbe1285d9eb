"""The Colab notebook runs from top to bottom, on drawn films, without a network."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "vgg16_xray.ipynb"


def _with(source: str, **values: object) -> str:
    """Replace the assignments of the notebook's cell of settings; each must be there."""
    lines = source.splitlines()
    for name, value in values.items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        assert len(places) == 1, f"the notebook must set {name} once"
        lines[places[0]] = f"{name} = {value!r}"
    return "\n".join(lines)


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom_and_leaves_a_report(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in notebook.cells if "DRAWN_FILMS = " in cell.source)
    settings.source = _with(settings.source, KAGGLE=False, DRAWN_FILMS=60, EPOCHS=3)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "vgg16-xray" / "run" / "report.html").stat().st_size > 100_000
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 8 + 4, "eight figures of the run and four predicted films"


def test_notebook_is_committed_without_outputs() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
