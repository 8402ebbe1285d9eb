"""The command line: instant help, one line for an error, exit codes, and what is missing is named."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from vgg16_xray import RESEARCH_USE_ONLY, __version__, cli
from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json
from vgg16_xray.rundir import CacheDir, RunDir

COMMANDS = (
    *("demo", "download", "run", "preprocess", "init", "train", "validate", "test", "report", "compare", "predict"),
    *("cache", "audit", "export", "check", "evaluate", "recalibrate", "heat", "serve", "page"),
)
HEAVY = ("torch", "onnxruntime", "pandas", "sklearn", "matplotlib", "scipy", "pyarrow", "pydicom", "PIL", "numpy")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=600
    )


def vgg16_xray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgg16_xray", *arguments], capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize(
    "arguments", [None, ["--help"], ["train", "--help"], ["cache", "--help"], ["--version"]], ids=str
)
def test_help_and_import_load_nothing_heavy(arguments: list[str] | None) -> None:
    done = python(
        "import sys, vgg16_xray\n"
        + (
            ""
            if arguments is None
            else f"from vgg16_xray.cli import _run\ncode = _run({arguments!r})\nassert code == 0\n"
        )
        + f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version() -> None:
    done = vgg16_xray("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vgg16-xray {__version__}\n", "")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli._run([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys) == run(capsys, "--help")
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert RESEARCH_USE_ONLY.split(".")[0] in " ".join(out.split())
    assert all(f"  {command} " in out for command in COMMANDS)


def test_the_commands_are_those_that_are_tested() -> None:
    assert set(typer.main.get_command(cli.app).commands) == set(COMMANDS)  # type: ignore[attr-defined]


def test_the_page_about_the_command_line_is_what_the_command_line_says() -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "cli_docs.py"))
    assert script["PAGE"].read_text("utf-8") == script["page"](), "run: python scripts/cli_docs.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"Example: vgg16-xray {command} " in out


@pytest.mark.parametrize("command", ["audit all", "audit leaks", "audit shortcuts", "cache clear"])
def test_every_command_within_a_command_has_one_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    group, name = command.split()
    assert name in typer.main.get_command(cli.app).commands[group].commands  # type: ignore[attr-defined]
    code, out, err = run(capsys, group, name, "--help")
    assert (code, err) == (0, "")
    assert f"Example: vgg16-xray {group} " in out


def test_no_command_within_a_command_is_forgotten() -> None:
    groups = {
        name: set(getattr(one, "commands", ()))
        for name, one in typer.main.get_command(cli.app).commands.items()  # type: ignore[attr-defined]
    }
    assert {name: inner for name, inner in groups.items() if inner} == {
        "audit": {"all", "leaks", "shortcuts"},
        "cache": {"clear"},
    }


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pre", {"predict", "preprocess"}),
        ("predict --mo", {"--model"}),
        ("audit ", {"all", "leaks", "shortcuts"}),
        ("predict --format ", {"table", "json", "jsonl", "csv"}),
        ("compare --format ", {"table", "json"}),
    ],
)
def test_the_shell_completes_commands_and_options(words: str, offered: set[str]) -> None:
    asked = {"_VGG16_XRAY_COMPLETE": "complete_bash", "COMP_WORDS": f"vgg16-xray {words}"}
    asked["COMP_CWORD"] = str(len(words.split(" ")))
    # As the installed program, whose name the variable has.
    code = "import sys; sys.argv[0] = 'vgg16-xray'; from vgg16_xray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600, env=os.environ | asked
    )
    assert (done.returncode, set(done.stdout.split()), done.stderr) == (0, offered, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_each_shell(shell: str, tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'vgg16-xray'; from vgg16_xray.cli import main; main()"
    # typer finds out by itself in which shell it runs, but for this variable of its own tests.
    told = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, "--install-completion", shell],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=told,
    )
    assert done.returncode == 0, done.stderr
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert any("_VGG16_XRAY_COMPLETE=complete_" in text for text in written)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tran"], "No such command 'tran'"),
        (["train"], "Missing argument"),
        (["audit"], "Missing argument 'what'; --help shows how"),
        (["train", "{tmp}", "--bogus"], "No such option: --bogus"),
        (["--bogus"], "No such option: --bogus"),
        (["train", "{tmp}/none"], "{tmp}/none: must be a run directory, found none"),
        (["train", "{tmp}/file"], "{tmp}/file: must be a run directory, found a file"),
        (["init", "{tmp}/none"], "{tmp}/none: must be a run directory, found none"),
        (["train", "{tmp}"], "{tmp}: step 'initialise' must be finished first; run: vgg16-xray init {tmp}"),
        (["validate", "{tmp}"], "{tmp}: step 'train' must be finished first; run: vgg16-xray train {tmp}"),
        (["test", "{tmp}"], "{tmp}: step 'train' must be finished first"),
        (["init", "{tmp}"], "{tmp}: step 'preprocess' must be finished first"),
        (["init", "{tmp}", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["init", "{tmp}", "--epochs", "x"], "Invalid value for '--epochs'"),
        (["init", "{tmp}", "--epochs", "20000"], "recipe.epochs: must be between 1 and 10,000, found 20000"),
        (["init", "{tmp}", "--seed", "-1"], "Invalid value for '--seed'"),
        (["init", "{tmp}", "--seed", str(2**70)], "Invalid value for '--seed'"),
        (["init", "{tmp}", "--recipe", "better"], "--recipe: must be one of best, default, fast, light, notebook"),
        (["init", "{tmp}", "--head", "dense"], "recipe.head: must be one of linear, gap, vgg, found 'dense'"),
        (["init", "{tmp}", "--train-from", "top"], "recipe.train_from: must be one of head"),
        (["preprocess", "{tmp}/none", "--out", "{tmp}/new"], "{tmp}/none: "),
        (["run", "{tmp}/none", "--out", "{tmp}/new"], "{tmp}/none: "),
        (["run", "{tmp}/films", "--out", "{tmp}/new", "--resume"], "{tmp}/new: --resume needs a training that was"),
        (["run", "{tmp}/films", "--out", "{tmp}/new", "--map", "x"], "--map: "),
        (["run", "{tmp}/films", "--out", "{tmp}/file"], "{tmp}/file: "),
        (["demo", "--films", "3"], "Invalid value for '--films'"),
        (["cache", "clear", "--older-than", "-1"], "Invalid value for '--older-than'"),
        (["cache", "clean"], "No such command 'clean'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "films").mkdir()
    code, out, err = run(capsys, *(text.format(tmp=tmp_path) for text in arguments))
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"vgg16-xray: {line.format(tmp=tmp_path)}"), err
    assert not (tmp_path / "none").exists(), "a misspelt run is not made"


@pytest.mark.parametrize(("option", "value"), [("--epochs", "-3"), ("--epochs", "x"), ("--seed", str(2**70))])
def test_a_value_that_is_refused_is_repeated(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = run(capsys, "init", str(tmp_path), option, value)
    assert option in err
    assert re.search(rf"(^| |'){value}[' ;]", err), err


def test_a_real_process_ends_with_the_code(tmp_path: Path) -> None:
    done = vgg16_xray("train", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"vgg16-xray: {tmp_path / 'none'}: must be a run directory, found none\n"


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_a_traceback_anywhere(place: str, tmp_path: Path) -> None:
    command = ["train", str(tmp_path / "none")]
    done = vgg16_xray(*(["--debug", *command] if place == "before" else [*command, "--debug"]))
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "UserError" in done.stderr.splitlines()[-1]


def test_behind_two_dashes_debug_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "--", "--debug")
    assert (code, err) == (2, "vgg16-xray: --debug: must be a run directory, found none\n")


def test_what_nobody_expected_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("vgg16_xray.steps.train.train", fail)
    code, _, err = run(capsys, "train", tmp_path)
    assert code == 2
    assert err == (
        "vgg16-xray: unexpected ZeroDivisionError: two lines; what is finished is kept; --debug shows where, please "
        "report it\n"
    )
    with pytest.raises(ZeroDivisionError):
        cli._run(["train", str(tmp_path), "--debug"])


def test_an_interrupt_is_one_line_and_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vgg16_xray.steps.train.train", interrupt)
    code, _, err = run(capsys, "train", tmp_path)
    assert code == 130
    assert err.strip() == "vgg16-xray: interrupted; what is finished is kept, and the same command goes on from there"


def test_an_interrupt_before_the_command_line_is_loaded_has_no_traceback() -> None:
    done = python(
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'vgg16_xray.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from vgg16_xray.__main__ import main\n"
        "main()\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    def __repr__(self):
        return "Blocker"

import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.partition(".")[0] in {blocked!r} else real(name, package)
importlib.util.find_spec = find_spec
sys.meta_path.insert(0, Blocker())
from vgg16_xray.cli import main
main()
"""


@pytest.mark.parametrize("command", ["train {tmp}", "demo --to {tmp}", "predict x.png --model {tmp}", "report {tmp}"])
def test_a_missing_extra_is_one_line_with_the_command_that_mends_it(command: str, tmp_path: Path) -> None:
    blocked = ("torch", "pandas")
    RunDir(tmp_path).config.write_text("")
    done = python(BLOCKED.format(blocked=blocked), *command.format(tmp=tmp_path).split())
    name = command.split(maxsplit=1)[0]
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"vgg16-xray: vgg16-xray {name} needs the extra 'train', and torch, pandas are not installed; "
        'install it with: pip install "kbs-vgg16-xray[train]"\n'
    )
    assert list(tmp_path.iterdir()) == [RunDir(tmp_path).config]


def test_help_needs_no_extra() -> None:
    done = python(BLOCKED.format(blocked=("torch", "pandas", "sklearn", "matplotlib", "safetensors")), "run", "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_cache_is_listed_and_cleared(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "cache") == (0, f"{own_cache}: 0 stores, 0 B\n", "")
    for number, days in enumerate((20, 2)):
        store = CacheDir(own_cache).store(f"block5-{number}")
        write_json(store.description, {"what": f"store {number}", "shards": 1})
        store.shard(0, 0).write_bytes(bytes(2_000_000))
        used = time.time() - days * 86_400
        os.utime(store.description, (used, used))
    code, out, err = run(capsys, "cache")
    assert (code, err) == (0, "")
    older, newer, total = out.splitlines()
    assert older.split() == ["2", "MB", "used", *older.split()[3:5], "block5-0", "store", "0"]
    assert older.split()[3] == time.strftime("%Y-%m-%d", time.localtime(time.time() - 20 * 86_400))
    assert newer.endswith("block5-1  store 1")
    assert total == f"{own_cache}: 2 stores, 4 MB"
    code, out, err = run(capsys, "cache", "clear", "--older-than", "7")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"removed {older}", f"{own_cache}: 1 store removed, 2 MB"]
    assert run(capsys, "cache", "clear")[1].endswith(f"{own_cache}: 1 store removed, 2 MB\n")
    assert run(capsys, "cache") == (0, f"{own_cache}: 0 stores, 0 B\n", "")


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    code = "import sys, os\nos.close(0)\nfrom vgg16_xray.cli import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(timeout=600)
    assert "Traceback" not in errors
    assert "unexpected" not in errors


def test_errors_of_the_user_have_their_exit_code() -> None:
    assert UserError("x").exit_code == 2


def test_a_terminal_without_utf_8_loses_nothing(small_run: RunDir) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgg16_xray", "test", str(small_run.path)],
        capture_output=True,
        check=False,
        timeout=600,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"accuracy" in done.stdout
