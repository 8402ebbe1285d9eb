import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vgg16_xray.errors import Leak, UserError
from vgg16_xray.films.decode import decode, pixels_sha256, to_square
from vgg16_xray.films.phantom import Faults, draw, write_dataset
from vgg16_xray.films.split import SPLITS
from vgg16_xray.report.page import write_report
from vgg16_xray.rundir import RunDir, read_config
from vgg16_xray.steps import preprocess as step
from vgg16_xray.steps.preprocess import preprocess, read_manifest

#: Side of the stored squares here: small, to be quick.
SIZE = 32
FAULTS = Faults(copies=0.1, broken=8, two_labels=2)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "films"
    write_dataset(folder, films=60, size=64, faults=FAULTS)
    return folder


@pytest.fixture
def data(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "films"))


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


def refused(*arguments, error=UserError, **options) -> str:
    with pytest.raises(error) as caught:
        preprocess(*arguments, size=SIZE, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_run(one: RunDir, other: RunDir) -> None:
    for name in ("pixels", "manifest", "split", "quarantine"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes(), name
    assert read_config(one) == read_config(other)


def squares(root: Path, manifest: pd.DataFrame) -> np.ndarray:
    return np.stack([to_square(decode(root / path), SIZE) for path in manifest["path"]])


def noise(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32)).astype(np.uint8)).save(file)
    return file


def sides(root: Path, films: dict[str, int], **seeds: int) -> Path:
    """`films` of each class on each side, all different but for `seeds`, which say what a path shows."""
    for label in ("A", "B"):
        for side, count in films.items():
            for n in range(count):
                name = f"{side}/{label}/{n}.png"
                noise(root / name, seeds.get(name, 1000 + zlib.crc32(name.encode())))
    return root


# ---------------------------------------------------------------------------------------------------------- what it is


def test_row_i_of_the_manifest_is_film_i_of_the_pixels_with_broken_files_in_between(data, run):
    done = preprocess([data], run, size=SIZE)
    manifest, pixels = read_manifest(run), np.load(run.pixels)
    assert (done.films, done.quarantined, done.already_done) == (len(manifest), 8, False)
    assert len(manifest) == 60 + 6 + 2
    np.testing.assert_array_equal(pixels, squares(data, manifest))
    assert list(manifest["pixels_sha256"]) == [pixels_sha256(decode(data / path)) for path in manifest["path"]]
    assert (manifest["width"] == 64).all()
    assert (manifest["height"] == 64).all()
    assert all((data / mask).exists() for mask in manifest["mask"])
    assert list(manifest.columns) == list(step.COLUMNS)
    assert sum(done.counts.values()) == len(manifest)
    assert not (run.path / ".preprocess").exists()


def test_nothing_that_belongs_together_is_torn_apart_and_contradictions_train(data, run):
    preprocess([data], run, size=SIZE)
    manifest = read_manifest(run)
    for name in ("pixels_sha256", "group"):
        assert manifest.groupby(name)["split"].nunique().max() == 1
    known = manifest[manifest["patient_id"] != ""]
    assert known.groupby("patient_id")["split"].nunique().max() == 1
    two_labels = manifest.groupby("pixels_sha256")["label"].transform("nunique") > 1
    assert set(manifest[two_labels]["split"]) == {"train"}
    assert set(manifest["split"]) == set(SPLITS)
    notes = read_config(run)["data"]["notes"]
    assert notes[0].startswith("8 films are exact copies of another")
    assert notes[1].startswith(f"{two_labels.sum()} films show what a film of another class shows")


def test_the_split_as_text_says_what_the_manifest_says(data, run):
    preprocess([data], run, size=SIZE)
    text = pd.read_csv(run.split, keep_default_na=False)
    manifest = read_manifest(run)
    pd.testing.assert_frame_equal(text, manifest[list(text.columns)], check_dtype=False)


def test_the_quarantine_names_every_file_that_was_left_out_and_why(data, run):
    (data / "Normal" / "notes.txt").write_text("hello")
    line_break = data / "Normal" / "images" / "a\nb.png"
    line_break.write_bytes(b"")
    preprocess([data], run, size=SIZE)
    reasons = dict(pd.read_csv(run.quarantine).itertuples(index=False))
    assert len(reasons) == 10
    assert reasons["films/Normal/notes.txt"] == "not an image by its name"
    assert reasons["films/Normal/images/a\nb.png"] == "must be an image, found an empty file"
    for kind in ("image file is truncated", "found an empty file", "found text", "found 3 x 3"):
        assert sum(kind in reason for reason in reasons.values()) >= 2, kind
    assert not any(str(data) in reason for reason in reasons.values())


def test_what_is_done_is_in_the_configuration(data, run):
    preprocess([data], run, size=SIZE, seed=7)
    config = read_config(run)
    assert config["run"] == {"seed": 7, "size": SIZE}
    assert config["data"]["labels"] == ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
    assert config["data"]["fingerprint"] == step.fingerprint(read_manifest(run))
    assert config["data"]["split"] == "80/10/10 by group, seed 7"
    assert config["data"]["collections"] == {"films": str(data)}


def test_the_split_and_pixels_do_not_depend_on_what_files_are_called(data, run, tmp_path):
    preprocess([data], run, size=SIZE)
    renamed = tmp_path / "renamed"
    for n, file in enumerate(sorted(data.glob("*/images/*.png"), reverse=True)):
        target = renamed / file.parts[-3] / f"{n:05d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    # Without patients, which only the metadata knows.
    (data / "metadata.csv").unlink()
    preprocess([data], run, size=SIZE)
    other = RunDir(tmp_path / "other")
    preprocess([renamed], other, size=SIZE)
    one, two = read_manifest(run), read_manifest(other)
    assert sorted(zip(one["pixels_sha256"], one["label"], one["split"], strict=True)) == sorted(
        zip(two["pixels_sha256"], two["label"], two["split"], strict=True)
    )


def test_two_collections_number_their_patients_alike(tmp_path, run):
    for name in ("one", "two"):
        rows = ["path,label,patient_id"]
        for n in range(20):
            noise(tmp_path / name / f"{n}.png", n + 100 * len(rows) + len(name) * ord(name[0]))
            rows.append(f"{n}.png,{'AB'[n % 2]},{n}")
        (tmp_path / name / "table.csv").write_text("\n".join(rows) + "\n")
    preprocess([tmp_path / "one" / "table.csv", tmp_path / "two" / "table.csv"], run, size=SIZE)
    manifest = read_manifest(run)
    assert manifest["group"].nunique() == manifest["pixels_sha256"].nunique() == 40
    assert set(manifest["collection"]) == {"table", "table-2"}


# ------------------------------------------------------------------------------------------------- what is done is done


def test_a_second_call_does_nothing(data, run, tmp_path):
    first = preprocess([data], run, size=SIZE)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in run.path.iterdir()}
    second = preprocess([data], run, size=SIZE)
    assert second.already_done
    assert (second.films, second.quarantined, second.counts) == (first.films, first.quarantined, first.counts)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in run.path.iterdir()} == before


@pytest.mark.parametrize(
    "change", ["changed", "changed, old time", "added", "removed", "relabelled", "seed", "gone", "moved"]
)
def test_what_changed_is_found_and_done_again(data, run, change):
    preprocess([data], run, size=SIZE)
    before = read_manifest(run)
    path = before["path"][5]
    file, seed = data / path, 1234
    if change.startswith("changed"):
        status = file.stat()
        # As large as before.
        turned = io.BytesIO()
        Image.fromarray(decode(file)[::-1]).save(turned, "PNG", compress_level=1)
        file.write_bytes(turned.getvalue().ljust(status.st_size, b"\0")[: max(status.st_size, len(turned.getvalue()))])
        if "old time" in change:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "added":
        noise(data / "Normal" / "images" / "new.png", 1)
    elif change == "removed":
        file.unlink()
    elif change == "relabelled":
        text = (data / "metadata.csv").read_text()
        (data / "metadata.csv").write_text(text.replace(f"{path},{before['label'][5]}", f"{path},Normal"))
    elif change == "seed":
        seed = 5
    elif change == "gone":
        run.quarantine.unlink()
    elif change == "moved":
        (data.parent / "elsewhere").mkdir()
        data = data.rename(data.parent / "elsewhere" / data.name)
    done = preprocess([data], run, size=SIZE, seed=seed)
    assert not done.already_done
    after = read_manifest(run)
    np.testing.assert_array_equal(np.load(run.pixels), squares(data, after))
    assert len(after) == len(before) + {"added": 1, "removed": -1}.get(change, 0)
    if change == "relabelled":
        assert after["label"][5] == "Normal"
    if change == "seed":
        assert list(after["split"]) != list(before["split"])
    assert preprocess([data], run, size=SIZE, seed=seed).already_done


def test_what_was_decoded_is_not_decoded_again_when_the_split_leaks(tmp_path, run, monkeypatch):
    data = sides(tmp_path / "d", {"train": 9, "val": 2, "test": 2}, **{"train/A/3.png": 7, "test/A/1.png": 7})
    text = refused([data], run, error=Leak)
    assert "first d/test/A/1.png (test) and d/train/A/3.png (train)" in text
    assert "--resplit makes a new split without leaks" in text
    assert not run.manifest.exists()
    with pytest.raises(UserError, match="step 'preprocess' must be finished first"):
        read_manifest(run)
    monkeypatch.setattr(step, "decode", None)
    preprocess([data], run, size=SIZE, resplit=True)
    manifest = read_manifest(run)
    np.testing.assert_array_equal(np.load(run.pixels), squares(data, manifest))
    copies = manifest[manifest["pixels_sha256"].duplicated(keep=False)]
    assert (len(copies), len(set(copies["split"]))) == (2, 1)


def test_files_that_were_exchanged_in_part_are_not_taken_for_finished_ones(data, run, monkeypatch):
    preprocess([data], run, size=SIZE)
    before = read_manifest(run)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step, "_write_csv", stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess([data], run, size=SIZE, seed=5)
    with pytest.raises(UserError, match="step 'preprocess' must be finished first"):
        read_manifest(run)
    assert not preprocess([data], run, size=SIZE).already_done
    pd.testing.assert_frame_equal(read_manifest(run), before)


# ---------------------------------------------------------------------------------------------------- the data's split


def test_a_split_that_the_data_bring_is_kept(tmp_path, run):
    data = sides(tmp_path / "d", {"train": 4, "val": 2, "test": 3})
    preprocess([data], run, size=SIZE)
    manifest = read_manifest(run)
    assert [{"val": "validation"}.get(p.split("/")[0], p.split("/")[0]) for p in manifest["path"]] == list(
        manifest["split"]
    )
    assert read_config(run)["data"]["split"] == "given with the data"


def test_validation_films_are_taken_from_training_where_the_data_bring_none(tmp_path, run):
    data = sides(tmp_path / "d", {"train": 20, "test": 3})
    preprocess([data], run, size=SIZE)
    manifest = read_manifest(run)
    assert manifest["split"].value_counts().to_dict() == {"train": 36, "test": 6, "validation": 4}
    assert all(
        (split == "test") == path.startswith("test/")
        for path, split in zip(manifest["path"], manifest["split"], strict=True)
    )


def test_a_split_without_a_side_says_how_to_make_another(tmp_path, run):
    data = sides(tmp_path / "d", {"train": 20, "val": 3})
    text = refused([data], run)
    assert "class 'A': must have films for training, validation and test, found none for test among its 23" in text
    assert text.endswith(step.RESPLIT)
    assert preprocess([data], run, size=SIZE, resplit=True).films == 46


def test_films_of_one_readable_class_are_refused_with_a_reason(tmp_path, run):
    noise(tmp_path / "d" / "A" / "1.png", 1)
    (tmp_path / "d" / "B").mkdir()
    (tmp_path / "d" / "B" / "2.png").write_bytes(b"")
    for _ in range(2):
        text = refused([tmp_path / "d"], run)
        assert "found 1 readable films in all and 1 others, first B/2.png: must be an image, found an empty" in text


def test_no_readable_film_at_all_is_refused_each_time(tmp_path, run):
    for label in "AB":
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "2.png").write_bytes(b"")
    for _ in range(2):
        assert "found 0 readable films in all and 2 others" in refused([tmp_path / "d"], run)


# ------------------------------------------------------------------------------------------------ a manifest that lies


def tampered(run: RunDir, change) -> None:
    manifest = pd.read_parquet(run.manifest)
    change(manifest).to_parquet(run.manifest, index=False)


def test_a_manifest_with_a_group_moved_across_is_refused(data, run):
    preprocess([data], run, size=SIZE)
    manifest = read_manifest(run)
    row = manifest.index[manifest["pixels_sha256"].duplicated() & (manifest["split"] == "train")][0]

    def move(table):
        table.loc[row, "split"] = "test"
        # A lie about the group does not help: groups are made anew.
        table.loc[row, "group"] = "another"
        return table

    tampered(run, move)
    with pytest.raises(Leak, match="must stand on one side, found 1 group"):
        read_manifest(run)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table[1:], "must have a row for each film of pixels.npy"),
        (lambda table: table.drop(columns="patient_id"), "found no patient_id"),
        (lambda table: table.assign(split="Train"), "split must be one of train, validation, test, found 'Train'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(data, run, change, found):
    preprocess([data], run, size=SIZE)
    tampered(run, change)
    with pytest.raises(UserError, match=found):
        read_manifest(run)


def test_a_damaged_manifest_is_named(data, run):
    preprocess([data], run, size=SIZE)
    run.manifest.write_bytes(run.manifest.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"manifest\.parquet: must be a whole Parquet table"):
        read_manifest(run)


# --------------------------------------------------------------------------------------------- killed, full, read-only


SLOWLY = """
import sys, time, pathlib
from vgg16_xray.steps import preprocess as step
from vgg16_xray.rundir import RunDir
step.NOTE_EVERY = 3
decode = step.decode
def slowly(file):
    time.sleep(0.02)
    return decode(file)
step.decode = slowly
step.preprocess([pathlib.Path(sys.argv[1])], RunDir(pathlib.Path(sys.argv[2])), size=int(sys.argv[3]))
"""


def journal_lines(run: RunDir) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in run.path.glob(".preprocess/*.jsonl"))


def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(data, run, tmp_path, monkeypatch):
    undisturbed = RunDir(tmp_path / "undisturbed")
    preprocess([data], undisturbed, size=SIZE)
    reached = []
    for least in (0, 9, 40):
        process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(data), str(run.path), str(SIZE)])
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if run.path.exists() and journal_lines(run) >= least:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(journal_lines(run))
        assert not run.stamps()
    assert reached[2] >= 40, "killed too early to prove anything"
    # The machine stopped in the middle of a line.
    (journal,) = run.path.glob(".preprocess/*.jsonl")
    with journal.open("a") as file:
        file.write('{"path": "half')
    decoded = []
    monkeypatch.setattr(step, "decode", lambda file: decoded.append(file) or decode(file))
    preprocess([data], run, size=SIZE)
    same_run(run, undisturbed)
    assert len(decoded) == 76 - reached[2]


def test_a_torn_line_does_not_swallow_the_next(data, run):
    preprocess([data], RunDir(run.path.parent / "x"), size=SIZE)
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(data), str(run.path), str(SIZE)])
    while process.poll() is None and not (run.path.exists() and journal_lines(run) >= 6):
        time.sleep(0.005)
    process.kill()
    process.wait()
    (journal,) = run.path.glob(".preprocess/*.jsonl")
    with journal.open("a") as file:
        file.write('{"path": "half')
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(data), str(run.path), str(SIZE)])
    while process.poll() is None and journal_lines(run) < 20:
        time.sleep(0.005)
    process.kill()
    process.wait()
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_a_kill_between_the_header_and_the_end_of_the_pixels_is_mended(data, run, tmp_path, monkeypatch):
    undisturbed = RunDir(tmp_path / "undisturbed")
    preprocess([data], undisturbed, size=SIZE)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step, "_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess([data], run, size=SIZE)
    (pixels,) = run.path.glob(".preprocess/*.npy")
    with pixels.open("ab") as file:
        file.write(bytes(8 * SIZE * SIZE))
    preprocess([data], run, size=SIZE)
    same_run(run, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a thread may still hold what is mapped


@pytest.mark.parametrize("room", [10_000, 80_000, 100_000], ids=["none-for-the-pixels", "for-little-more", "for-more"])
def test_a_full_disk_is_one_line_and_a_second_call_with_room_goes_on(data, small_disk, tmp_path, monkeypatch, room):
    undisturbed = RunDir(tmp_path / "undisturbed")
    preprocess([data], undisturbed, size=SIZE)
    run = RunDir(small_disk / "run")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    text = refused([data], run)
    assert "cannot be written (" in text or "of disk, found" in text
    assert str(run.path) in text
    assert not run.stamps()
    ballast.unlink()
    decoded = []
    monkeypatch.setattr(step, "decode", lambda file: decoded.append(file) or decode(file))
    preprocess([data], run, size=SIZE)
    same_run(run, undisturbed)
    if room == 100_000:
        assert not decoded, "what was decoded was lost"


def test_a_target_that_cannot_be_written_is_named(data, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert f"{small_disk / 'run'}: cannot be written (Read-only file system)" in refused(
        [data], RunDir(small_disk / "run")
    )
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused([data], RunDir(tmp_path / "file"))


def test_a_film_whose_permission_was_mended_is_tried_again(data, run):
    film = next((data / "Normal" / "images").glob("*.png"))
    preprocess([data], run, size=SIZE)
    film.chmod(0o600)
    assert not preprocess([data], run, size=SIZE).already_done


MEASURED = """
import pathlib, resource, sys
from vgg16_xray.steps import preprocess as step
from vgg16_xray.rundir import RunDir
manifest = step._manifest
def measured(*arguments, **options):
    # Before pandas is loaded, which takes more than all the films here.
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return manifest(*arguments, **options)
step._manifest = measured
step.preprocess([pathlib.Path(sys.argv[1])], RunDir(pathlib.Path(sys.argv[2])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident memory as Linux does")
def test_memory_does_not_grow_with_the_number_of_films(tmp_path):
    peaks = []
    for count in (200, 4000):
        data = tmp_path / str(count)
        for n in range(0, count, 100):
            # One file under many names: what is stored is as large as if they differed.
            first = noise(data / "AB"[n // 100 % 2] / f"{n}.png", n)
            for m in range(1, 100):
                os.link(first, first.with_name(f"{n}-{m}.png"))
        for label in "AB":
            for n in range(5):
                noise(data / label / f"x{n}.png", 10**6 + ord(label) * 10 + n)
        command = [sys.executable, "-c", MEASURED, str(data), str(tmp_path / f"run-{count}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    # 3,800 films more take 182 MiB in the store.
    assert peaks[1] - peaks[0] < 40, peaks


def test_phantoms_are_the_films_they_are_drawn_as(tmp_path, run):
    write_dataset(tmp_path / "d", films=40, size=64, films_per_patient=(1, 1), imbalance={"COVID": 1, "Normal": 1})
    preprocess([tmp_path / "d"], run, size=64)
    first = read_manifest(run).index[read_manifest(run)["path"] == "COVID/images/COVID-1.png"][0]
    np.testing.assert_array_equal(np.load(run.pixels)[first], draw("COVID", patient=1, film=0, size=64).pixels)


def test_what_was_measured_on_other_films_is_not_taken_for_these(copy_of_run: RunDir, few_films: Path) -> None:
    assert {"train", "validate", "test"} <= set(copy_of_run.stamps())
    preprocess([few_films], copy_of_run)
    assert set(copy_of_run.stamps()) == {"preprocess"}
    assert "There is no result yet" in write_report(copy_of_run).read_text("utf-8")
