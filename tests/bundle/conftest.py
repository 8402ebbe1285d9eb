"""One bundle of the small run, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vgg16_xray.bundle.export import export
from vgg16_xray.rundir import RunDir


@pytest.fixture(scope="session")
def bundle(small_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgg16_xray.bundle.export.CALIBRATION_FILMS", 4)
        run = RunDir(Path(shutil.copytree(small_run.path, tmp_path_factory.mktemp("exported") / "run")))
        return export(run, run.path.parent / "bundle").bundle.path


@pytest.fixture
def copy_of_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))
