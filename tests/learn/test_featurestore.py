"""Features are computed once for all runs, kept in shards, and made again where a shard is missing or damaged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vgg16_xray.errors import UserError
from vgg16_xray.learn import featurestore
from vgg16_xray.learn.features import in_half_precision
from vgg16_xray.learn.featurestore import CHUNK, StoredFeatures, clear, store_features, stored
from vgg16_xray.rundir import CacheDir, StoreDir

FILMS, SHARD = 300, 64
SHARDS = 5
SHAPE = (4, 3, 3)

#: A process that makes the store below; `Source` computes as slowly as it is told and writes down what it was asked.
MAKE = f"""
import sys, time
from pathlib import Path
import numpy as np, torch
from vgg16_xray.learn import featurestore
from vgg16_xray.rundir import StoreDir

featurestore.SHARD = {SHARD}

class Source:
    def take(self, rows):
        time.sleep(float(sys.argv[2]))
        with open(sys.argv[3], "a") as log:
            log.write("".join(f"{{row}}\\n" for row in rows))
        rng = np.random.default_rng(int(rows[0]))
        return torch.from_numpy(rng.normal(size=(len(rows), *{SHAPE})).astype(np.float32))

print("READY", flush=True)
sys.stdin.readline()
featurestore.store_features(
    Source(), films={FILMS}, shape={SHAPE}, store=StoreDir(Path(sys.argv[1])), words={{}}, title="features"
)
"""


class Source:
    """The same features as in the process above, and what was asked; stops after some films as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None, before: Callable[[], object] = lambda: None) -> None:
        self.batches: list[list[int]] = []
        self.stop_after, self.before = stop_after, before

    @property
    def asked(self) -> list[int]:
        return [row for batch in self.batches for row in batch]

    def take(self, rows: np.ndarray) -> torch.Tensor:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.before()
        self.batches.append(rows.tolist())
        rng = np.random.default_rng(int(rows[0]))
        return torch.from_numpy(rng.normal(size=(len(rows), *SHAPE)).astype(np.float32))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurestore, "SHARD", SHARD)


@pytest.fixture
def store(tmp_path: Path) -> StoreDir:
    return CacheDir(tmp_path / "cache").store("one")


def keep(source: Source, store: StoreDir, **other: object) -> StoredFeatures:
    values = {"films": FILMS, "shape": SHAPE, "words": {"what": "drawn numbers"}, "title": "features"} | other
    return store_features(source, store=store, **values)  # type: ignore[arg-type]


def contents(store: StoreDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for _, _, path in store.shards()}


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    whole = CacheDir(tmp_path / "undisturbed").store("whole")
    keep(Source(), whole)
    return contents(whole)


def test_stored_features_are_the_computed_ones_in_half_precision(store: StoreDir) -> None:
    kept = keep(Source(), store)
    some = np.array([299, 64, 0, 63, 64])
    computed = Source()
    for film, row in zip(kept.take(some), some, strict=True):
        start = row // CHUNK * CHUNK
        chunk = in_half_precision(computed.take(np.arange(start, min(start + CHUNK, FILMS))))
        assert torch.equal(film, chunk[row - start])
    found = kept.take(some)
    assert found.dtype == torch.float32
    assert found.shape == (5, *SHAPE)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_film_without_features_is_an_error_and_not_another_film(store: StoreDir) -> None:
    kept = keep(Source(), store)
    for missing in (-1, FILMS):
        with pytest.raises(KeyError, match="holds no features"):
            kept.take(np.array([3, missing]))
    some = kept.only(np.array([3, 7]))
    assert torch.equal(some.take(np.array([7, 3])), kept.take(np.array([7, 3])))
    with pytest.raises(KeyError, match="holds no features"):
        some.take(np.array([3, 4]))


def test_features_are_computed_once(store: StoreDir) -> None:
    first, second = Source(), Source()
    keep(first, store)
    keep(second, store)
    assert first.asked == list(range(FILMS))
    assert second.asked == []


def test_a_shard_is_a_file_that_numpy_reads(store: StoreDir) -> None:
    kept = keep(Source(), store)
    rows = np.concatenate([np.load(path) for _, _, path in store.shards()])
    assert rows.dtype == np.float16
    assert np.array_equal(rows.transpose(0, 3, 1, 2).astype(np.float32), kept.take(np.arange(FILMS)).numpy())


def test_its_size_and_the_room_are_said_before_it_is_made(store: StoreDir, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        keep(Source(stop_after=0), store)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("features: 300 films x 3 x 3 x 4 in half precision, 22 KB; ")
    assert line.endswith(f" free; kept in {store.path}")
    keep(Source(), store)
    capsys.readouterr()
    keep(Source(), store)
    assert capsys.readouterr().out == "", "what is there need not be said"


def test_an_interrupted_store_goes_on_at_the_shard(store: StoreDir, undisturbed: dict[str, bytes]) -> None:
    with pytest.raises(KeyboardInterrupt):
        keep(Source(stop_after=SHARD + CHUNK), store)
    assert not list(store.path.glob("*.tmp"))
    again = Source()
    keep(again, store)
    assert again.asked == list(range(SHARD, FILMS))
    assert contents(store) == undisturbed


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x10
    path.write_bytes(content)


def flip_a_bit_of_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"'<f2'", b"'<f3'"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flip": flip_a_bit,
    "bit flip in the header": flip_a_bit_of_the_header,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another shard": lambda path: path.write_bytes(min(path.parent.glob("*.npy")).read_bytes()),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("process", ["this process made it", "another process made it"])
def test_a_damaged_shard_is_made_again_and_never_used(
    store: StoreDir, undisturbed: dict[str, bytes], process: str, damage: Callable[[Path], object]
) -> None:
    keep(Source(), store)
    damage(store.shards()[2][2])
    if process == "another process made it":
        featurestore._verified.clear()
    again = Source()
    kept = keep(again, store)
    # In the same batches as at first: the bytes do not depend on what was missing.
    assert again.batches == [list(range(128, 160)), list(range(160, 192))]
    assert contents(store) == undisturbed
    assert torch.equal(kept.take(np.arange(128, 160)), in_half_precision(Source().take(np.arange(128, 160))))


def test_a_shard_is_verified_once_a_process(store: StoreDir, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(Source(), store)
    monkeypatch.setattr(featurestore, "_checksum", lambda _: pytest.fail("verified again"))
    keep(Source(), store)


def start(store: StoreDir, log: Path, slowly: float) -> subprocess.Popen[str]:
    """A process that has loaded everything and begins with :func:`go`."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(store.path), str(slowly), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    return process


def go(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process


def asked(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_has_the_same_bytes(
    store: StoreDir, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    rng, log = random.Random(0), tmp_path / "log"
    kills = 0
    while kills < 10:
        process = go(start(store, log, 0.05))
        time.sleep(rng.uniform(0.0, 0.35))
        process.kill()
        process.wait()
        kills += 1
        for name, content in contents(store).items():
            assert content == undisturbed[name], "what has its name is whole"
    assert go(start(store, log, 0)).wait() == 0
    assert contents(store) == undisturbed
    assert set(asked(log)) == set(range(FILMS))
    assert not list(store.path.glob("*.tmp"))


def test_two_processes_at_once_make_it_once(store: StoreDir, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    log = tmp_path / "log"
    processes = [start(store, log, 0.05) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in [go(process) for process in processes]]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(asked(log)) == list(range(FILMS)), "nothing is computed twice"
    assert contents(store) == undisturbed
    assert sum("another process makes these features; waiting for it" in output for output in outputs) == 1


def test_the_maker_is_killed_and_who_waited_goes_on(
    store: StoreDir, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    first, second = start(store, tmp_path / "first", 0.1), start(store, tmp_path / "second", 0)
    go(first)
    while not store.shards():
        time.sleep(0.01)
    go(second)
    assert second.stdout is not None
    assert "waiting for it" in second.stdout.readline()
    first.kill()
    first.wait()
    assert second.wait(timeout=600) == 0
    assert contents(store) == undisturbed
    assert 0 not in asked(tmp_path / "second"), "shards of the first are used"


def test_no_room_is_one_line_before_anything_is_computed(store: StoreDir) -> None:
    source = Source()
    with pytest.raises(UserError, match=r"needs .* GB of disk, found .* free; 'vgg16-xray cache clear'") as caught:
        keep(source, store, shape=(4096, 2**14, 2**14))
    assert "\n" not in str(caught.value)
    assert source.asked == []
    assert contents(store) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_is_one_line_and_a_rerun_finishes(small_disk: Path, undisturbed: dict[str, bytes]) -> None:
    store = CacheDir(small_disk).store("one")
    filler = small_disk / "filler"

    def fill() -> None:  # what another program writes while the third shard is computed
        if len(source.batches) == 4:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    source = Source(before=fill)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)") as caught:
        keep(source, store)
    assert "\n" not in str(caught.value)
    assert len(store.shards()) == 2
    assert not list(store.path.glob("*.tmp")), "it gives back the room that it took"
    filler.unlink()
    again = Source()
    keep(again, store)
    assert again.asked == list(range(2 * SHARD, FILMS))
    assert contents(store) == undisturbed


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        keep(Source(), CacheDir(tmp_path / "file").store("one"))
    assert stored(CacheDir(tmp_path / "file")) == []


def test_what_is_stored_is_listed_and_cleared(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path / "cache")
    assert stored(cache) == []
    keep(Source(), cache.store("whole"))
    with pytest.raises(KeyboardInterrupt):
        keep(Source(stop_after=SHARD), cache.store("begun"))
    old = time.time() - 10 * 86_400
    os.utime(cache.store("begun").description, (old, old))
    begun, whole = stored(cache)
    assert begun.store.path.name == "begun"
    assert str(begun).endswith("drawn numbers, 1 of 5 shards")
    assert str(whole).endswith("whole  drawn numbers")
    assert whole.bytes > FILMS * np.prod(SHAPE) * 2
    assert [one.store.path.name for one in clear(cache, older_than_days=9)[0]] == ["begun"]
    assert clear(cache, older_than_days=9) == ([], [])
    assert [one.store.path.name for one in clear(cache)[0]] == ["whole"]
    assert list((tmp_path / "cache" / "features").iterdir()) == []


def test_a_store_that_is_used_is_not_old(store: StoreDir, tmp_path: Path) -> None:
    keep(Source(), store)
    old = time.time() - 10 * 86_400
    os.utime(store.description, (old, old))
    keep(Source(), store)
    assert clear(CacheDir(tmp_path / "cache"), older_than_days=9) == ([], [])


def test_who_reads_a_store_that_is_cleared_goes_on_reading(store: StoreDir, tmp_path: Path) -> None:
    kept = keep(Source(), store)
    before = kept.take(np.arange(FILMS))
    clear(CacheDir(tmp_path / "cache"))
    assert torch.equal(kept.take(np.arange(FILMS)), before)


def test_a_store_that_is_being_made_is_not_cleared(store: StoreDir, tmp_path: Path) -> None:
    left: list[tuple[int, int]] = []

    def clear_now() -> None:
        removed, busy = clear(CacheDir(tmp_path / "cache"))
        left.append((len(removed), len(busy)))

    keep(Source(before=clear_now), store)
    assert set(left) == {(0, 1)}
    assert len(store.shards()) == SHARDS


def test_who_waited_for_a_store_that_was_cleared_makes_a_new_one(store: StoreDir) -> None:
    made = threading.Thread(target=keep, args=(Source(), store))
    with featurestore._alone(store):
        made.start()
        time.sleep(0.3)  # until it waits
        store.path.replace(store.leaving)
    made.join(timeout=600)
    assert len(store.shards()) == SHARDS
    assert store.lock.exists()


def test_resident_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    # 300 MB, walked through in order and at random.
    code = f"""
import pathlib, sys
import numpy as np
import torch
from vgg16_xray.learn.featurestore import StoredFeatures
def resident(): return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096
shards = []
for number in range(3):
    file = {str(tmp_path)!r} + f"/{{number}}.npy"
    np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(512, 14, 14, 512))
    shards.append(np.lib.format.open_memmap(file, mode="r"))
kept = StoredFeatures(shards, where=pathlib.Path())
rows = np.concatenate([np.arange(1536), np.random.default_rng(0).permutation(1536)])
kept.take(rows[:8])
before = most = resident()
for start in range(0, len(rows), 8):
    kept.take(rows[start : start + 8])
    most = max(most, resident())
print(most - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150e6, f"{int(done.stdout):,}"
