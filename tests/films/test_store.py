import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vgg16_xray.errors import UserError
from vgg16_xray.films import store as store_module
from vgg16_xray.films.store import ArrayStore, create_array, release

ROWS = np.random.default_rng(0).integers(0, 256, (12, 5, 4)).astype(np.uint8)


@pytest.fixture
def store(tmp_path) -> ArrayStore:
    np.save(tmp_path / "rows.npy", ROWS)
    return ArrayStore(tmp_path / "rows.npy")


def test_rows_are_taken_in_any_order_with_repeats(store):
    rows = np.array([11, 0, 3, 3, 0])
    np.testing.assert_array_equal(store.take(rows), ROWS[rows])
    assert (len(store), store.shape, store.dtype) == (12, (12, 5, 4), np.uint8)
    assert store.take(np.array([], dtype=int)).shape == (0, 5, 4)


def test_what_is_taken_is_a_copy(store):
    taken = store.take(np.array([1, 2]))
    assert type(taken) is np.ndarray
    taken[:] = 0
    np.testing.assert_array_equal(store.take(np.array([1, 2])), ROWS[1:3])


@pytest.mark.parametrize("rows", [[-1], [0, 12], [3, -12]])
def test_a_row_that_is_not_there_is_refused(store, rows):
    with pytest.raises(IndexError, match=r"indices: must lie in 0\.\.11, found"):
        store.take(np.array(rows))


def test_handing_pages_back_changes_nothing(store, monkeypatch):
    monkeypatch.setattr(store_module, "RELEASE_AFTER_BYTES", 30)
    for row in range(12):
        np.testing.assert_array_equal(store.take(np.array([row])), ROWS[[row]])
    release(np.zeros(3))  # An array in memory has nothing to hand back.


def damaged(kind: str, file: Path) -> None:
    np.save(file, ROWS)
    whole = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(whole[:-1])
    elif kind == "header only half":
        file.write_bytes(whole[:40])
    elif kind == "header damaged":
        file.write_bytes(whole.replace(b"'shape'", b"'shap(("))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "objects":
        np.save(file, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    elif kind == "zip":
        np.savez(file.with_suffix(".npz"), rows=ROWS)
        file.with_suffix(".npz").replace(file)
    elif kind == "number":
        np.save(file, np.float32(3))
    elif kind == "folder":
        file.unlink()
        file.mkdir()


KINDS = ["truncated", "header only half", "header damaged", "empty", "pickle", "objects", "zip", "number", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_whole_array_is_refused(tmp_path, kind):
    file = tmp_path / "rows.npy"
    damaged(kind, file)
    with pytest.raises(UserError, match="must be a") as caught:
        ArrayStore(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "allow_pickle" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.npy: no such file"):
        ArrayStore(tmp_path / "none.npy")


def test_a_created_array_takes_its_room_at_once_and_keeps_what_is_written(tmp_path):
    file = tmp_path / "new" / "rows.npy"
    rows = create_array(file, shape=(1000, 32, 32), dtype=np.uint8)
    assert file.stat().st_blocks * 512 >= 1000 * 32 * 32
    assert not rows.any()
    rows[:] = 7
    release(rows)
    rows[3] = 9
    rows.flush()
    taken = ArrayStore(file).take(np.array([3, 4]))
    assert (taken[0] == 9).all()
    assert (taken[1] == 7).all()


def test_an_array_larger_than_the_disk_is_refused_before_it_is_begun(tmp_path):
    with pytest.raises(UserError, match=r"rows\.npy: needs 1,000,000\.00 GB of disk, found"):
        create_array(tmp_path / "rows.npy", shape=(10**6, 10**9), dtype=np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        create_array(tmp_path / "file" / "rows.npy", shape=(2, 2), dtype=np.uint8)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_walking_through_a_store_holds_little_of_it(tmp_path):
    size = 96 * 1024 * 1024
    create_array(tmp_path / "rows.npy", shape=(96, size // 96), dtype=np.uint8)
    code = (
        "import sys, pathlib, numpy as np\n"
        "from vgg16_xray.films import store\n"
        "store.RELEASE_AFTER_BYTES = 8 * 2**20\n"
        "def resident(): return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "rows = store.ArrayStore(pathlib.Path(sys.argv[1])); before = most = resident()\n"
        "for i in range(len(rows)):\n"
        "    rows.take(np.array([i])); most = max(most, resident())\n"
        "print(most - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert int(done.stdout) < size // 3
