import subprocess
import sys
from pathlib import Path

import pytest

from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json
from vgg16_xray.rundir import CACHE_VARIABLE, CacheDir, RunDir, key_of, read_config, sha256_of, update_config


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


def test_every_file_lies_in_the_run_under_a_name_of_its_own(run):
    files = [value for name in dir(RunDir) if isinstance(value := getattr(run, name), type(run.path))]
    assert len(files) == len(set(files)) > 14
    assert all(run.path in file.parents for file in files)


def test_a_step_is_done_when_its_key_and_its_files_are_there(run):
    run.path.mkdir()
    assert not run.is_done("train", "k1", [])
    run.stamp("train", "k1", seconds=1.26)
    run.stamp("test", "k2", seconds=0)
    assert run.is_done("train", "k1", [])
    assert not run.is_done("train", "k2", [])
    assert not run.is_done("train", "k1", [run.best])
    assert run.stamps()["train"]["seconds"] == 1.3
    run.unstamp("train")
    run.unstamp("train")
    assert list(run.stamps()) == ["test"]
    run.require_step("test", made_by="test")
    with pytest.raises(UserError, match=r"step 'train' must be finished first; run: vgg16-xray train .*run"):
        run.require_step("train", made_by="train")


@pytest.mark.parametrize("stamps", ["text", 3, [1], {"train": "yes"}])
def test_stamps_that_are_none_are_refused(run, stamps):
    write_json(run.steps, stamps)
    with pytest.raises(UserError, match=r"steps\.json: must hold the steps' stamps"):
        run.is_done("train", "k", [])


def test_a_missing_file_says_which_step_makes_it(run):
    with pytest.raises(UserError, match=r"pixels\.npy: not there yet; run first: vgg16-xray preprocess .*run"):
        run.require(run.pixels, made_by="preprocess")
    run.path.mkdir()
    run.pixels.touch()
    assert run.require(run.pixels, made_by="preprocess") == run.pixels


def test_values_are_put_into_sections_and_others_stay(run):
    update_config(run, run={"seed": 1, "command": "<b>\"'\\ 肺炎"}, data={"labels": ["A", "B"]})
    update_config(run, run={"seed": 2})
    assert read_config(run) == {"run": {"seed": 2, "command": "<b>\"'\\ 肺炎"}, "data": {"labels": ["A", "B"]}}


@pytest.mark.parametrize("content", [b"[run\n", b"\xff", b"a = 1\na = 2\n"])
def test_a_damaged_configuration_is_named_and_not_overwritten(run, content):
    with pytest.raises(UserError, match=r"run\.toml: not there yet"):
        read_config(run)
    run.path.mkdir()
    run.config.write_bytes(content)
    for call in (lambda: read_config(run), lambda: update_config(run, run={"seed": 1})):
        with pytest.raises(UserError, match=r"run\.toml: must be TOML, found"):
            call()
    assert run.config.read_bytes() == content


HOLD = (
    "import pathlib, sys\n"
    "from vgg16_xray.rundir import RunDir\n"
    "with RunDir(pathlib.Path(sys.argv[1])).alone():\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_a_second_process_is_refused_until_the_first_ends_or_is_killed(run):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="must be written by one process at a time"), run.alone():
            pass
        first.kill()
        first.wait()
    with run.alone():
        pass
    with run.alone(), pytest.raises(UserError, match="one process at a time"), run.alone():
        pass


def test_an_error_inside_is_not_taken_for_another_process(run):
    with pytest.raises(BlockingIOError), run.alone():
        raise BlockingIOError
    with run.alone():
        pass


def test_a_run_that_cannot_be_a_folder_is_named(run):
    run.path.write_text("")
    with pytest.raises(UserError, match="run: cannot be written"), run.alone():
        pass


def test_equal_inputs_give_equal_keys():
    assert key_of({"b": 1, "a": [1, None]}, "x") == key_of({"a": [1, None], "b": 1}, "x") == "80ea3540749a51b3"
    assert key_of(["ab"], ["c"]) != key_of(["a"], ["bc"])
    with pytest.raises(ValueError, match="JSON"):
        key_of(float("nan"))


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_where_the_user_or_the_platform_says(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert CacheDir.of_user().path == tmp_path / "mine"
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert CacheDir.of_user().path == tmp_path / "xdg" / "vgg16-xray"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert CacheDir.of_user().path == tmp_path / "home" / ".cache" / "vgg16-xray"


def test_a_shard_is_found_by_its_number_and_checksum(tmp_path):
    store = CacheDir(tmp_path).store("block5-1")
    assert store.shards() == []
    assert CacheDir(tmp_path).stores() == []
    store.path.mkdir(parents=True)
    store.leaving.mkdir()
    for number, checksum in ((12, 0xABC), (3, 0xFFFFFFFF)):
        store.shard(number, checksum).write_bytes(b"")
    for name in (store.unfinished(4), store.path / "other.npy", store.path / "000005-xyz.npy"):
        name.write_bytes(b"")
    assert [(number, checksum) for number, checksum, _ in store.shards()] == [(3, 0xFFFFFFFF), (12, 0xABC)]
    assert CacheDir(tmp_path).stores() == [store]
    assert len(CacheDir(tmp_path).leaving()) == 1


def test_what_a_kill_left_half_written_is_swept_when_the_run_is_held_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    finished, of_another = run.best, tmp_path / "folds" / "1" / ".model.1-aa.tmp"
    left = [
        run.best.with_name(".model.safetensors.1-e3.tmp"),
        run.last.with_name(".tmpXyZ12"),
        tmp_path / ".a.csv.2-b.tmp",
    ]
    for file in [finished, of_another, *left]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    with run.alone():
        assert not any(file.exists() for file in left)
    assert finished.exists()
    assert of_another.exists(), "another process may be writing it"


def test_a_new_folder_of_which_nothing_came_is_not_left_behind(tmp_path: Path) -> None:
    run, other = RunDir(tmp_path / "new"), RunDir(tmp_path / "kept")
    with pytest.raises(UserError, match="refused"), run.alone():
        raise UserError("refused")
    assert not run.path.exists()
    with pytest.raises(UserError, match="refused"), other.alone():
        other.config.write_text("finished before")
        raise UserError("refused")
    assert other.config.read_text() == "finished before"


def test_a_run_lies_neither_among_the_films_nor_in_a_strangers_folder(tmp_path: Path) -> None:
    films = tmp_path / "films"
    (films / "COVID").mkdir(parents=True)
    for inside in (films, films / "runs" / "mine"):
        with pytest.raises(UserError, match="--out: must lie outside the films' folder"):
            RunDir(inside).require_ours([films])
    (thesis := tmp_path / "thesis").mkdir()
    RunDir(thesis).require_ours([films])
    (thesis / "thesis.docx").touch()
    with pytest.raises(UserError, match=r"--out: must be new, empty, or .*, found 'thesis.docx'"):
        RunDir(thesis).require_ours([films])
    with (ours := RunDir(tmp_path / "run")).alone():
        (ours.path / "note.txt").touch()
    ours.require_ours([films])
