import os
import subprocess
import sys
from pathlib import Path

import pytest

from vgg16_xray.errors import UserError
from vgg16_xray.files import (
    read_json,
    replace_folder,
    require_writable,
    saying_why_not_written,
    whole_file,
    write_json,
    write_text,
)


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    file = tmp_path / "deep" / "a.txt"
    with whole_file(file) as temporary:
        assert temporary.parent == file.parent
        temporary.write_text("new")
        assert not file.exists()
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(UserError if error is OSError else error), whole_file(file) as temporary:
        temporary.write_text("half")
        raise error
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_process_killed_in_the_block_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    code = (
        "import os, pathlib, sys\n"
        "from vgg16_xray.files import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == -9
    assert file.read_text() == "old"


def test_behind_a_link_the_file_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.txt").symlink_to("elsewhere/b.txt")
    for text in ("first", "second"):
        with whole_file(tmp_path / "a.txt") as temporary:
            assert temporary.parent == tmp_path / "elsewhere"
            temporary.write_text(text)
        assert (tmp_path / "a.txt").is_symlink()
        assert (tmp_path / "elsewhere" / "b.txt").read_text() == text
        assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    (tmp_path / "round.txt").symlink_to("round.txt")
    with pytest.raises(UserError, match=r"round\.txt: cannot be written"):
        write_text(tmp_path / "round.txt", "text")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match="must be a file, found a device or pipe"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.fixture(params=["in one step", "in two"])
def steps(request, monkeypatch):
    if request.param == "in two":
        monkeypatch.setattr("vgg16_xray.files._exchange", lambda one, other: False)
    return request.param


def folder(path, text):
    path.mkdir()
    (path / "a.txt").write_text(text)
    return path


def test_a_folder_takes_the_place_of_another_or_of_none(tmp_path, steps):
    for text in ("first", "second"):
        replace_folder(folder(tmp_path / ".new", text), tmp_path / "it")
        assert (tmp_path / "it" / "a.txt").read_text() == text
        assert list(tmp_path.iterdir()) == [tmp_path / "it"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="cannot exchange folders")
def test_whoever_looks_while_a_folder_is_replaced_finds_the_old_or_the_new_one(tmp_path):
    replace_folder(folder(tmp_path / ".new", "0"), tmp_path / "it")
    code = (
        "import pathlib, sys\n"
        "from vgg16_xray.files import replace_folder\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "for i in range(1, 201):\n"
        "    (here / '.new').mkdir()\n"
        "    (here / '.new' / 'a.txt').write_text(str(i))\n"
        "    replace_folder(here / '.new', here / 'it')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as writer:
        while writer.poll() is None:
            assert (tmp_path / "it").is_dir()
    assert writer.returncode == 0
    assert (tmp_path / "it" / "a.txt").read_text() == "200"


def test_a_process_killed_while_it_removes_the_old_folder_leaves_the_new_one(tmp_path):
    folder(tmp_path / "it", "old"), folder(tmp_path / ".new", "new")
    code = (
        "import os, pathlib, sys\n"
        "from vgg16_xray import files\n"
        "files.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "files.replace_folder(pathlib.Path(sys.argv[1], '.new'), pathlib.Path(sys.argv[1], 'it'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / "it" / "a.txt").read_text() == "new"


def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt", tmp_path / "folder"):
        with pytest.raises(UserError) as caught:
            write_text(target, "text")
        assert str(caught.value).startswith(f"{target}: cannot be written (")
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_disk_is_said(tmp_path):
    full = Path("/dev/full")
    said = pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)")
    with said, saying_why_not_written(tmp_path / "a.txt"), full.open("w") as file:
        file.write("x" * 100_000)


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "a.txt", "Zürich\r\n肺炎\n")
    assert (tmp_path / "a.txt").read_bytes() == "Zürich\r\n肺炎\n".encode()


def test_json_comes_back_and_what_json_cannot_hold_is_refused(tmp_path):
    file = tmp_path / "a.json"
    value = {"label": "肺炎", "values": [1, 0.1, None]}
    write_json(file, value)
    assert read_json(file) == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"loss": float("nan")})
    assert read_json(file) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_damaged_json_is_named(tmp_path, content):
    file = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        read_json(file)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: must be JSON, found"):
        read_json(file)


def test_a_folder_is_tried_before_long_work_and_none_is_made(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UserError, match="file"):
            require_writable(folder)
    if os.path.ismount("/proc"):
        with pytest.raises(UserError, match="/proc/self"):
            require_writable(Path("/proc/self/none"))
