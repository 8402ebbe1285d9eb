"""Shared by all tests: a few drawn films, and one small run of all steps on them. Copied, never changed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vgg16_xray.bundle.export import export
from vgg16_xray.config import load_recipe
from vgg16_xray.films.phantom import write_dataset
from vgg16_xray.rundir import CACHE_VARIABLE, CacheDir, RunDir
from vgg16_xray.steps.initialise import initialise
from vgg16_xray.steps.preprocess import preprocess
from vgg16_xray.steps.test import test as measure_on_test_films
from vgg16_xray.steps.train import train
from vgg16_xray.steps.validate import validate

#: Few epochs: the head is what is fitted, and its features are computed once.
EPOCHS = 3


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start.

    A shell starts what it runs in the background with SIGINT ignored, and children inherit that: tests that interrupt a
    process would wait for ever in such a run. A handler of ours becomes the default in the children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of all tests and of the processes that they start: never the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session")
def new_cache() -> Callable[[Path], Path]:
    """Function: make a cache that holds nothing but which engine is fastest, which need not be found out again."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        if (raced := CacheDir.of_user().engines).exists():
            shutil.copy(raced, CacheDir(folder).engines)
        return folder

    return make


@pytest.fixture
def own_cache(tmp_path: Path, new_cache: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test, whose features are computed anew."""
    folder = new_cache(tmp_path / "own-cache")
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="session")
def drawn_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn films of four classes in the Kaggle tree, with masks."""
    folder = tmp_path_factory.mktemp("drawn") / "films"
    write_dataset(folder, films=48, seed=5, films_per_patient=(1, 2))
    return folder


@pytest.fixture(scope="session")
def few_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 drawn films of two classes, for what computes the network again and again."""
    folder = tmp_path_factory.mktemp("few") / "films"
    write_dataset(folder, films=20, seed=6, films_per_patient=(1, 1), imbalance={"COVID": 1, "Normal": 1}, masks=False)
    return folder


@pytest.fixture(scope="session")
def _initialised(tmp_path_factory: pytest.TempPathFactory, drawn_films: Path) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("initialised") / "run")
    preprocess([drawn_films], run)
    initialise(run, load_recipe("fast", epochs=EPOCHS))
    return run


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, _initialised: RunDir) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    shutil.copytree(_initialised.path, run.path)
    train(run)
    validate(run)
    measure_on_test_films(run)
    return run


@pytest.fixture(scope="session")
def small_run(_finished: RunDir) -> RunDir:
    """A run with steps 2 to 6 finished. To be read only: take `copy_of_run` to change one."""
    return _finished


@pytest.fixture
def copy_of_run(tmp_path: Path, _finished: RunDir) -> RunDir:
    """A run with steps 2 to 6 finished, to do with as a test likes."""
    return RunDir(Path(shutil.copytree(_finished.path, tmp_path / "run")))


@pytest.fixture
def initialised_run(tmp_path: Path, _initialised: RunDir) -> RunDir:
    """A run with steps 2 and 3 finished: the same that `small_run` went on from, and no features yet."""
    return RunDir(Path(shutil.copytree(_initialised.path, tmp_path / "initialised")))


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """Function: folder -> {file: (time of change, bytes)}; the lock is left out, for it is taken at every start."""

    def of(folder: Path) -> dict[str, tuple[int, bytes]]:
        return {
            str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != ".lock"
        }

    return of


@pytest.fixture(scope="session")
def bundle(small_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgg16_xray.bundle.export.CALIBRATION_FILMS", 4)
        patch.setattr("vgg16_xray.bundle.export.HEAT_FILMS", 2)
        run = RunDir(Path(shutil.copytree(small_run.path, tmp_path_factory.mktemp("exported") / "run")))
        return export(run, run.path.parent / "bundle").bundle.path
