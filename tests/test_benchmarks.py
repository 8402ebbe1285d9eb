"""The benchmarks: what they keep and what they count, and that each of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).resolve().parents[1]
BENCHMARKS, DOCS = HERE / "benchmarks", HERE / "docs"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def found(what: str, **more: Any) -> dict[str, Any]:
    row = {"what": what, "ours": "1 s", "against": "30 s", "ratio": "30", "aim": ""}
    whole = {"rows": [row], "remarks": [f"Of {what}."], "figure": None, "measured": "2026-11-24", "version": "0"}
    return whole | {"seconds": 1, "load_before": 0.0} | more


def test_a_part_replaces_itself_on_the_same_kind_of_machine_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench

    page = tmp_path / "benchmarks.md"
    page.write_text("# By hand\n\n" + bench.MARK, "utf-8")
    for machine, part, what in (
        ("2 cores, avx2", "start", "old start"),
        ("2 cores, avx2", "scale", "scale"),
        ("2 cores, vnni", "start", "other machine"),
        ("2 cores, avx2", "start", "new start"),
    ):
        monkeypatch.setattr(bench, "machine_in_words", lambda machine=machine: machine)
        bench.keep(part, found(what, figure="<svg/>" if part == "scale" else None), docs=tmp_path)
    text = page.read_text("utf-8")
    assert text.startswith("# By hand\n\n" + bench.MARK)
    first, _, second = text.partition("## 2 cores, vnni")
    assert "old start" not in text
    assert "| new start | 1 s | 30 s | 30 |  |" in first
    assert first.index("| scale |") < first.index("| new start |")
    assert "| other machine |" in second
    assert "Of other machine." in second
    (drawing,) = (tmp_path / "figures").iterdir()
    assert f"figures/{drawing.name}" in first
    assert f"figures/{drawing.name}" not in second


def test_of_a_script_that_hands_over_no_rows_what_it_printed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench

    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "PARTS", {"one": "one.py", "bad": "bad.py"})
    (tmp_path / "one.py").write_text("print('| a | b |')\nprint('| --- | --- |')", "utf-8")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)", "utf-8")
    kept = bench.run_part("one", keras=None)
    assert (kept["rows"], kept["remarks"]) == ([], ["| a | b |\n| --- | --- |"])
    assert kept["measured"]
    with pytest.raises(SystemExit, match="bad: ended with 3"):
        bench.run_part("bad", keras=None)


def test_the_page_is_what_the_numbers_say(tmp_path: Path) -> None:
    import bench

    numbers = DOCS / "benchmarks.json"
    machines = json.loads(numbers.read_text("utf-8")) if numbers.exists() else {}
    head, mark, rest = (DOCS / "benchmarks.md").read_text("utf-8").partition(bench.MARK)
    assert head
    assert mark + rest == bench.page(machines, docs=tmp_path)
    for part in bench.PARTS:
        assert f"| `{part}` |" in head
        assert (BENCHMARKS / bench.PARTS[part]).exists()


def test_keras_time_to_its_best_ends_with_the_first_epoch_that_has_it() -> None:
    from equal_accuracy import best_so_far

    theirs = [
        {"val_accuracy": accuracy, "seconds": 10.0, "core_seconds": 20.0} for accuracy in (0.5, 0.8, 0.7, 0.9, 0.9)
    ]
    assert best_so_far(theirs) == [
        (0.5, 10.0, 20.0),
        (0.8, 20.0, 40.0),
        (0.8, 20.0, 40.0),
        (0.9, 40.0, 80.0),
        (0.9, 40.0, 80.0),
    ]


def test_ours_ends_with_the_line_of_the_first_epoch_that_is_as_good() -> None:
    from equal_accuracy import Ours
    from timed import Line, Timed

    lines = [
        "features at head: 32 of 108 films, 0.9 films/s, 1:20 left",
        "epoch 1 of 3: 32 of 64 films, accuracy 0.9900",
        "epoch  1 of 3   train loss 2.5 accuracy 0.9500   validation loss 1.4 accuracy 0.4848 macro-F1 0.4   11 s",
        "epoch  2 of 3   train loss 1.6 accuracy 0.9600   validation loss 1.3 accuracy 0.6667 macro-F1 0.4   0 s",
        "epoch  3 of 3   train loss 1.6 accuracy 0.9700   validation loss 1.3 accuracy 0.7000 macro-F1 0.4   0 s",
        "validation: 33 films, epoch 2; accuracy 0.9",
    ]
    timed = [Line(text=text, seconds=float(i), core_seconds=2.0 * i) for i, text in enumerate(lines)]
    whole = Timed(lines=timed, seconds=9.0, core_seconds=18.0, peak_mb=1.0)
    ours = Ours(whole=whole, engine="torch-float32", steps={}, epoch_seconds=0.1)
    # Two of three films: 0.66666666 for Keras, 0.6667 in our line.
    reached = ours.reached(2 / 3)
    assert reached is not None
    assert (reached.epoch, reached.seconds, reached.core_seconds) == (2, 3.0, 6.0)
    assert ours.reached(0.71) is None
    assert ours.best_accuracy == 0.7


def test_dealt_films_have_every_class_on_every_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import films

    monkeypatch.setattr(films, "REAL", tmp_path / "none")
    dealt = films.deal(tmp_path / "films", train=40, validation=16)
    assert "drawn radiographs" in dealt.words
    assert dealt.train + dealt.validation + dealt.test == 40 + 16 + films.TEST_FILMS
    for side in ("train", "val", "test"):
        assert len([folder for folder in (tmp_path / "films" / side).iterdir() if any(folder.iterdir())]) == 4


def test_multiply_adds_are_those_of_the_published_base() -> None:
    from engines import multiply_adds

    from vgg16_xray.learn.vgg16 import build

    base = build(classes=2, head="gap", dropout=0.0).features
    # torchvision states 15.47 G for the whole network; 0.12 G of them are the classifier's.
    assert multiply_adds(base) == pytest.approx(15.35e9, rel=1e-3)
    assert multiply_adds(base, 112) * 4 == multiply_adds(base)


def test_each_engine_is_timed_in_every_round_and_the_first_is_not_counted() -> None:
    from engines import Clock

    calls: list[str] = []

    def slow_at_first() -> None:
        calls.append("a")
        time.sleep(0.6 if calls.count("a") == 1 else 0.01)

    clock = Clock({"a": slow_at_first, "b": lambda: calls.append("b")}, rounds=1)
    assert "".join(calls) == "baab"
    on_the_clock, at_work = clock.medians("a")
    assert 0.01 <= on_the_clock < 0.25
    # It slept.
    assert at_work < on_the_clock


def test_an_engines_rounding_is_seen_in_its_features_and_a_head_answers_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import engines

    rng = np.random.default_rng(0)
    halves = [(rng.integers(0, 256, (12, 8, 8), dtype=np.uint8), [*pair] * 6) for pair in ("ab", "ba")]
    for pixels, labels in halves:
        pixels[np.array(labels) == "b", :4] //= 4
    monkeypatch.setattr(engines, "dealt", lambda _: ("24 films", halves))

    def maps(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().reshape(-1, 4, 4, 4)

    exact, noise = engines.EXACT, "onnx-int8"
    runs = {exact: maps, noise: lambda pixels: torch.randn(len(pixels), 4, 4, 4)}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in engines.heads(runs, count=24)]
    row = {(cells[0], cells[1]): cells[2:] for cells in lines if len(cells) == 5}
    assert row[exact, exact] == ["1.000", "1.000", "0"]
    assert all(float(row[pair][0]) < 0.95 and float(row[pair][2]) > 0.5 for pair in ((noise, noise), (exact, noise)))


def run_script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "row"),
    [
        ("start.py", (), "| `vgg16-xray --help` |"),
        ("scale.py", ("--whole", 40, "--stored", 40, 600), "| epoch on stored features, 600 films |"),
        ("features.py", ("--films", 64), "| block5 |"),
        ("phantoms.py", ("--films", 4), "films/s"),
        ("engines.py", ("--films", 1, "--rounds", 1, "--side", 128, "--accuracy", 0), "| torch eager, float32 |"),
    ],
)
def test_a_benchmark_runs(script: str, arguments: tuple[object, ...], row: str) -> None:
    assert row in run_script(script, *arguments)


#: Speaks as `keras_loop.py` does, where there is no TensorFlow.
STAND_IN = """#!{python}
import json, sys
for epoch in range(1, int(sys.argv[sys.argv.index("--epochs") + 1]) + 1):
    print(json.dumps({{"ready": epoch}}), flush=True)
    sys.stdin.readline()
    print(json.dumps({{"epoch": epoch, "seconds": 5.0, "core_seconds": 10.0, "val_accuracy": 0.1}}), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "rows"),
    [
        ("equal_accuracy.py", ("--epochs", 1), ("time to Keras' best validation accuracy (0.100), nothing stored",)),
        ("finetune.py", ("--rounds", 1), ("a film, torch-float32", "a film, torch-bfloat16")),
    ],
)
def test_a_benchmark_against_keras_runs(
    script: str, arguments: tuple[object, ...], rows: tuple[str, ...], tmp_path: Path
) -> None:
    keras = tmp_path / "python"
    keras.write_text(STAND_IN.format(python=sys.executable), "utf-8")
    keras.chmod(0o755)
    said = run_script(script, "--keras", keras, "--train", 32, "--validation", 8, *arguments)
    assert all(row in said for row in rows)
