"""The built page: files in the package, served at ``/`` or written as a folder that any web server can serve."""

from __future__ import annotations

import shutil
from pathlib import Path

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.errors import UserError
from vgg16_xray.files import whole_file

#: What ``web/`` is built into; see docs/serve.md.
PAGE = Path(__file__).with_name("page")
#: Where the page asks for the model, beside itself.
MODEL = "model"


def model_files(bundle: BundleDir) -> dict[str, Path]:
    """What the page needs of a bundle: its configuration and one graph, in int8 where there is one.

    Raises:
        UserError: There is none.
    """
    graph = next(iter(bundle.graphs().values()), None)
    if graph is None:
        raise UserError(f"{bundle.path}: must hold a graph in int8 or float32, found none")
    return {file.name: file for file in (bundle.config, graph)}


def write_page(to: Path, bundle: BundleDir) -> Path:
    """Write page and model as a folder of static files.

    Args:
        to: A folder, made where it is missing; one that holds other things is refused.
        bundle: The model.

    Returns:
        The page's ``index.html``.

    Raises:
        UserError: The folder holds something else, or the bundle cannot be read.
    """
    Classifier.load(bundle.path)  # which asks more of it than its configuration: it must answer, as for serve
    if to.exists() and not to.is_dir():
        raise UserError(f"--to: must be a folder, found the file {to}")
    if to.is_dir() and any(to.iterdir()) and not (to / "opened-as-file.js").exists():
        raise UserError(f"--to: must be an empty folder or one with an older page, found other files in {to}")
    files = {path.relative_to(PAGE): path for path in sorted(PAGE.rglob("*")) if path.is_file()}
    # It documents a server, and there is none.
    files = {name: path for name, path in files.items() if not name.name.startswith("docs")}
    files |= {Path(MODEL, name): path for name, path in model_files(bundle).items()}
    for old in sorted(to.rglob("*"), reverse=True):
        if old.is_file() and old.relative_to(to) not in files:
            old.unlink()
    for name, path in files.items():
        with whole_file(to / name) as temporary:
            shutil.copyfile(path, temporary)
    return to / "index.html"
