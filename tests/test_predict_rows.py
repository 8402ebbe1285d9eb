"""`predict` of the base installation: what is not overwritten, what is a row and not the end, what comes when."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vgg16_xray import cli, report
from vgg16_xray.bundle.classify import Classifier, NoFilm, Prediction
from vgg16_xray.predict import films_in, rendered

FILM = Path(report.__file__).parents[1] / "serve" / "page" / "examples" / "normal.jpg"
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder with one film in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILM, "film.jpg")
    return tmp_path


@pytest.fixture
def one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is never asked costs nothing."""
    monkeypatch.setattr(Classifier, "stream", lambda self, images, **_: iter([Prediction(path=str(images[0]))]))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli._run(["predict", *(str(argument) for argument in arguments)])
    return code, *capsys.readouterr()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("name", "begins"), [("a.csv", "path,"), ("a.JSON", "{"), ("a.jsonl", '{"path"'), ("a.txt", "")]
)
def test_the_name_of_out_says_the_format(
    name: str, begins: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "film.jpg", "--out", name, "--quiet")[0] == 0
    text = (inside / name).read_text("utf-8")
    assert text.startswith(begins)
    assert ("┃" in text) == (name == "a.txt")


@pytest.mark.parametrize("out", ["film.jpg", "link.jpg", "hard.jpg", "sub/../film.jpg"])
def test_a_film_is_not_written_over(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sub").mkdir()
    Path("link.jpg").symlink_to("film.jpg")
    Path("hard.jpg").hardlink_to("film.jpg")
    for given in ("film.jpg", "link.jpg", "."):
        code, text, err = run(capsys, given, "--out", out)
        assert (code, text) == (2, "")
        assert err == f"vgg16-xray: --out: must be another file than the films, found {out}\n"
    assert Path("film.jpg").read_bytes() == FILM.read_bytes()


def test_a_film_is_not_drawn_over(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(FILM, "0001-film.png")
    code, _, err = run(capsys, "film.jpg", "0001-film.png", "--explain", ".", "--quiet")
    assert (code, err) == (2, "vgg16-xray: --explain: must be another file than the films, found 0001-film.png\n")
    assert Path("0001-film.png").read_bytes() == FILM.read_bytes()


@pytest.mark.usefixtures("one_answer")
def test_behind_a_link_the_file_is_written_and_the_link_stays(capsys: pytest.CaptureFixture[str]) -> None:
    Path("target.csv").write_text("old")
    Path("link.csv").symlink_to("target.csv")
    assert run(capsys, "film.jpg", "--format", "csv", "--out", "link.csv", "--quiet")[0] == 0
    assert Path("link.csv").is_symlink()
    assert rows(Path("target.csv").read_text())[0]["path"] == "film.jpg"


@pytest.mark.usefixtures("one_answer")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_with_a_name_gets_the_answers(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    assert run(capsys, "film.jpg", "--format", "jsonl", "--out", "pipe", "--quiet")[0] == 0
    reader.join(30)
    assert json.loads(found[0])["path"] == "film.jpg"
    assert Path("pipe").is_fifo()


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="has no /dev/stdout")
@pytest.mark.parametrize("out", ["/dev/stdout", "-"])
def test_standard_output_may_be_named(out: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vgg16_xray", "predict", "film.jpg", "--format", "csv", "--quiet", "--out", out]
    with Path("log").open("a") as log:
        log.write("kept\n")
        log.flush()
        subprocess.run(command, stdout=log, stderr=subprocess.PIPE, check=True, timeout=600)
    first, _, rest = Path("log").read_text().partition("\n")
    assert (first, rows(rest)[0]["path"]) == ("kept", "film.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.jpg", "log"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["film.jpg", "--out", "no/such/a.csv"], "--out: must be in a folder that exists, found none at {tmp}/no/such"),
        (["film.jpg", "--out", "a" * 304], "a{303}: cannot be written (File name too long); nothing finished was lost"),
        (["film.jpg", "--engine", "bogus"], "--engine: must be left out where a bundle answers, found 'bogus'"),
        (["film.jpg", "--model", "."], "--model: must be a bundle (config.json), a run (run.toml) or a run's model."),
        (["film.jpg", "--model", "film.jpg"], "--model: must be a bundle (config.json), a run (run.toml) or a run's"),
        (["film.jpg", "--model", os.devnull], "--model: must be a bundle (config.json), a run (run.toml) or a run's"),
        (["film.jpg", ""], "IMAGES: must be films, folders, patterns or -, found ''"),
    ],
    ids=["no folder", "long", "engine", "a folder", "a file", "a device", "nothing"],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"vgg16-xray: {line.replace('a{303}', 'a' * 304).format(tmp=tmp_path)}"), err
    assert list(tmp_path.iterdir()) == [tmp_path / "film.jpg"]


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> io.BytesIO:
    buffer = io.BytesIO(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer))
    return buffer


def test_standard_input_has_the_limit_of_a_file_and_is_not_read_beyond_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = FILM.stat().st_size
    monkeypatch.setattr("vgg16_xray.predict.CHUNK", 1000)
    for limit, answer, reason in ((size, "answered", ""), (size - 1, "error", f"must have at most {size - 1:,} bytes")):
        monkeypatch.setattr("vgg16_xray.predict.MAX_BYTES", limit)
        read = standard_input(monkeypatch, FILM.read_bytes() + (b"" if answer == "answered" else bytes(10**6)))
        code, out, _ = run(capsys, "-", "film.jpg", "--format", "csv", "--quiet")
        first, second = rows(out)
        assert code == (answer == "error")
        assert (first["path"], first["answer"], second["answer"]) == ("-", answer, "answered")
        assert first["reason"].startswith(reason)
        assert read.tell() <= size


def test_a_closed_standard_input_is_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    code, out, _ = run(capsys, "-", "--format", "csv")
    assert (code, rows(out)[0]["reason"]) == (1, "cannot be read (standard input is closed)")


def test_what_holds_no_film_is_a_row_among_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    long, dangling = f"{'a' * 300}.jpg", Path("dangling.jpg")
    Path("empty").mkdir()
    dangling.symlink_to("nowhere.jpg")
    given = [long, "empty", "film.jpg", "*.none", "missing.jpg", "film.jpg/x.png", "dangling.jpg"]
    code, out, err = run(capsys, *given, "--format", "csv")
    found = rows(out)
    assert (code, [row["path"] for row in found]) == (1, given)
    assert [row["answer"] for row in found] == ["error", "error", "answered", *["error"] * 4]
    assert found[0]["reason"] == "cannot be read (File name too long)"
    assert found[1]["reason"].startswith("must hold films (.bmp, ")
    assert found[3]["reason"] == "must match files, found none"
    assert {row["reason"] for row in found[4:]} == {"must be a file, found none"}
    assert "6 of 7 files could not be read" in err


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_what_may_not_be_read_is_a_row_too(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("closed", "tree/a", "tree/b", "tree/c"):
        Path(name).mkdir(parents=True)
        shutil.copy(FILM, f"{name}/film.jpg")
    shutil.copy(FILM, "locked.jpg")
    for name in ("closed", "tree/b", "locked.jpg"):
        Path(name).chmod(0)
    try:
        code, out, _ = run(capsys, "locked.jpg", "closed/film.jpg", "closed", "film.jpg", "tree", "--format", "csv")
    finally:
        for name in ("closed", "tree/b"):
            Path(name).chmod(0o700)
    found = [(row["path"], row["reason"] or row["answer"]) for row in rows(out)]
    denied = "cannot be read (Permission denied)"
    assert code == 1
    assert found == [
        ("locked.jpg", denied),
        ("closed/film.jpg", denied),
        ("closed", denied),
        ("film.jpg", "answered"),
        ("tree/a/film.jpg", "answered"),
        ("tree/b", denied),
        ("tree/c/film.jpg", "answered"),
    ]


def test_a_folder_that_cannot_be_listed_stands_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        Path("tree", name).mkdir(parents=True)
        shutil.copy(FILM, Path("tree", name))
    real = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    denied = NoFilm("tree/b", "cannot be read (Permission denied)")
    assert films_in([Path("tree")]) == [Path("tree/a/normal.jpg"), denied, Path("tree/c/normal.jpg")]


NAME = "r\x1b[31mred\x07\u202e.png"
SEEN = r"r\x1b[31mred\x07\u202e.png"


def test_a_name_gives_the_terminal_no_orders_and_is_kept_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(NAME).write_text("no film")
    for format_ in ("csv", "jsonl", "json"):
        _, out, _ = run(capsys, NAME, "--format", format_, "--quiet")
        kept = rows(out)[0] if format_ == "csv" else json.loads(out)
        assert (kept["predictions"][0] if format_ == "json" else kept)["path"] == NAME
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda self: True)
    for format_ in ("csv", "jsonl", "json", "table"):
        monkeypatch.setenv("COLUMNS", "200")
        _, out, _ = run(capsys, NAME, "--format", format_, "--quiet")
        assert "\x07" not in out
        assert "\u202e" not in out
        assert "\x1b[31m" not in out
        assert (SEEN if format_ in ("csv", "table") else "red") in out
    _, _, err = run(capsys, "film.jpg", "--out", f"{NAME}/x")
    assert "\x1b" not in err


def answer(name: str, *may_be: str, **more: object) -> Prediction:
    p = {"COVID": 0.1, "Lung_Opacity": 0.2, "Normal": 0.6, "Viral Pneumonia": 0.1}
    return Prediction(path=name, prediction="Normal", confidence=0.6, probabilities=p, set=may_be, **more)  # type: ignore[arg-type]


def test_the_set_stands_in_csv_and_where_it_is_more_in_the_table() -> None:
    answers = [
        answer("one", "Normal"),
        answer("two", "Lung_Opacity", "Normal"),
        answer("three", "COVID", "Normal", answer="abstained", reason="unsure"),
        answer("four", "COVID", "Normal", answer="refused", reason="no film"),
        Prediction(path="five", answer="error", reason="must be a file, found none"),
    ]
    labels = list(answers[0].probabilities)
    text = rendered(answers, "csv", labels=labels, model=None, colours=False)
    sets = [row["set"] for row in rows(text)]
    assert sets == ["Normal", "Lung_Opacity|Normal", "COVID|Normal", "COVID|Normal", ""]
    assert text.splitlines()[0].endswith(",answer,reason,set")
    table = rendered(answers, "table", labels=labels, model=None, colours=False)
    said = [line.split("│")[2].strip() for line in table.splitlines() if line.startswith("│")]
    assert said == ["Normal", "Normal or Lung_Opacity", "(Normal or COVID) abstained", "(Normal) refused", "error"]
    assert "│ reason" not in rendered(answers[:2], "table", labels=labels, model=None, colours=False)


def test_a_narrow_terminal_gets_whole_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda self: True)
    answers = [answer("folder/of/films/one.png", "Lung_Opacity", "Normal")]
    for columns, heading in ((80, "probability"), (120, "Viral Pneumonia")):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = rendered(answers, "table", labels=list(answers[0].probabilities), model=None, colours=True)
        assert heading in text
        assert "…" not in text
        assert "folder/of/films/one.png" in text
        assert "Normal or Lung_Opacity" in text
        assert ("all probabilities: --format csv or json" in text) == (columns == 80)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["--format", "csv"], "the rows that are written are whole"),
        (["--format", "jsonl"], "the rows that are written are whole"),
        (["--format", "csv", "--out", "a.csv"], "no answer is written"),
        (["--json"], "no answer is written"),
        ([], "no answer is written"),
    ],
    ids=str,
)
def test_ctrl_c_says_what_was_written(
    arguments: list[str], written: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream(self: Classifier, images: list[Path], **_: object) -> Iterator[Prediction]:
        yield Prediction(path=str(images[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "stream", stream)
    code, out, err = run(capsys, "film.jpg", "film.jpg", *arguments)
    assert code == 130
    assert err == (
        f"vgg16-xray: interrupted after 1 of 2 films; {written}; the same command begins with the first film again\n"
    )
    assert ("film.jpg" in out) == ("whole" in written)
    assert list(Path().iterdir()) == [Path("film.jpg")]


def test_rows_come_while_other_films_wait() -> None:
    many = ["film.jpg"] * 64
    command = [sys.executable, "-m", "vgg16_xray", "predict", *many, "--format", "jsonl", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["path"] == "film.jpg"
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    rest = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 130, err
    assert 1 + len(rest) < len(many)
    # Between a row and the next one it may be either.
    assert int(re.search(r"interrupted after (\d+) of 64 films; the rows", err)[1]) - len(rest) in (1, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
@pytest.mark.parametrize("arguments", [["predict", "film.jpg", "--quiet"], ["--version"]], ids=["predict", "version"])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "vgg16_xray", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=600)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot be written (No space left on device)" in done.stderr
    assert "report" not in done.stderr
