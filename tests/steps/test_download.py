"""Step 1 with real zips, a real killed process, and the real kagglehub against a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from vgg16_xray.errors import MissingExtra, UserError
from vgg16_xray.films.dataset import scan
from vgg16_xray.steps import download as step
from vgg16_xray.steps.download import Downloaded, download

CLASSES = {"COVID": 3, "Lung_Opacity": 2, "Normal": 4, "Viral Pneumonia": 1}
WRAPPER = "COVID-19_Radiography_Dataset"


def film(value: int) -> bytes:
    with io.BytesIO() as buffer:
        Image.new("L", (40, 40), value % 256).save(buffer, "PNG")
        return buffer.getvalue()


def kaggle_tree(counts: dict[str, int] = CLASSES) -> dict[str, bytes]:
    """The members of the published zip, in small."""
    files = {f"{WRAPPER}/README.md.txt": b"read me"}
    for name, count in counts.items():
        files[f"{WRAPPER}/{name}.metadata.xlsx"] = b"a workbook"
        for n in range(1, count + 1):
            files[f"{WRAPPER}/{name}/images/{name}-{n}.png"] = film(n)
            files[f"{WRAPPER}/{name}/masks/{name}-{n}.png"] = film(255 - n)
    return files


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def refusal(to: Path, zipped: Path | None = None, **limits: int) -> str:
    """The one line of a refusal, after which nothing of the name `to` was made."""
    before = to.exists()
    with pytest.raises(UserError) as caught:
        download(to=to, from_zip=zipped, **limits)
    assert to.exists() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "archive.zip", kaggle_tree())


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "radiography"


# --- a zip ---


def test_a_zip_becomes_a_tree_that_can_be_used_as_data(zipped: Path, to: Path) -> None:
    done = download(to=to, from_zip=zipped)
    assert done.folder == to / WRAPPER
    assert done.counts == CLASSES  # masks are not counted
    assert done.came == "zip"
    assert done.version == "sha256:" + hashlib.sha256(zipped.read_bytes()).hexdigest()
    found = tree(to)
    marker = json.loads(found.pop(step.MARKER))
    assert found == kaggle_tree()
    assert (marker["version"], marker["counts"], marker["came"]) == (done.version, CLASSES, "zip")
    assert marker["finished"].startswith("20")
    assert not to.with_name("radiography.partial").exists()


def test_running_again_changes_nothing(zipped: Path, to: Path) -> None:
    first = download(to=to, from_zip=zipped)
    before = {file: file.stat().st_mtime_ns for file in to.rglob("*")}
    assert download(to=to, from_zip=zipped) == first
    assert download(to=to) == first  # without the zip, and without asking Kaggle
    assert {file: file.stat().st_mtime_ns for file in to.rglob("*")} == before


def test_a_finished_download_is_not_mixed_with_another_zip(zipped: Path, to: Path, tmp_path: Path) -> None:
    download(to=to, from_zip=zipped)
    other = make_zip(tmp_path / "other.zip", kaggle_tree({"COVID": 1, "Normal": 1}))
    assert "already" in refusal(to, other)


def test_counts_that_differ_from_the_published_ones_are_named_with_expected_and_found(zipped: Path, to: Path) -> None:
    (warning,) = download(to=to, from_zip=zipped).warnings
    for part in (
        "COVID expected 3,616, found 3;",
        "Lung_Opacity expected 6,012, found 2;",
        "Normal expected 10,192, found 4;",
        "Viral Pneumonia expected 1,345, found 1;",
    ):
        assert part in warning


def test_counts_as_published_are_no_warning(zipped: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "PUBLISHED", CLASSES)
    assert download(to=to, from_zip=zipped).warnings == ()


def test_a_class_that_is_missing_and_one_too_many_are_both_named(to: Path, tmp_path: Path) -> None:
    part = make_zip(tmp_path / "part.zip", kaggle_tree({"COVID": 1, "Tuberculosis": 2}))
    (warning,) = download(to=to, from_zip=part).warnings
    assert "Normal expected 10,192, found none" in warning
    assert "Tuberculosis expected none, found 2" in warning


def test_films_that_vanished_after_the_download_are_reported(zipped: Path, to: Path) -> None:
    download(to=to, from_zip=zipped)
    (to / WRAPPER / "Normal/images/Normal-2.png").unlink()
    done = download(to=to)
    assert done.counts["Normal"] == 3
    assert "Normal 4 then, 3 now" in done.warnings[0]


def test_an_empty_folder_is_filled(zipped: Path, to: Path) -> None:
    to.mkdir()
    assert download(to=to, from_zip=zipped).counts == CLASSES


def test_the_current_folder_is_refused(zipped: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to.mkdir()
    monkeypatch.chdir(to)
    assert "current folder" in refusal(Path(), zipped)


@pytest.mark.parametrize(
    "layout",
    [
        {"COVID/images/a.png", "COVID/masks/a.png", "Normal/images/b.png"},
        {"top/COVID/a.png", "top/Normal/b.jpg", "top/Normal/.hidden.png", "__MACOSX/top/COVID/._a.png"},
        {"a/b/COVID/x/a.png", "a/b/Normal/b.dcm", "a/b/list.csv"},
        {"train/COVID/a.png", "train/Normal/b.png", "test/COVID/c.png", "test/Normal/images/d.png"},
    ],
)
def test_films_are_counted_as_the_next_step_counts_them(layout: set[str], to: Path) -> None:
    write_tree(to, dict.fromkeys(layout, film(1)))
    done = download(to=to)
    dataset = scan([to])
    assert done.counts == Counter(row.label for row in dataset.films)
    assert [done.folder] == list(dataset.collections.values())


# --- hostile and damaged zips ---


def hostile(path: Path, name: str, *, mode: int = 0, content: bytes = b"evil", twice: bytes | None = None) -> Path:
    make_zip(path, kaggle_tree())
    info = zipfile.ZipInfo(name)
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # of a duplicate name
        archive.writestr(info, content)
        if twice is not None:
            archive.writestr(name, twice)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "COVID/../../evil.png",
        "/tmp/evil.png",
        "//server/share/evil.png",
        "..\\evil.png",
        "COVID\\images\\evil.png",
        "C:/evil.png",
        "c:evil.png",
        "..",
        "COVID/evil.png\0.txt",
    ],
)
def test_a_member_that_would_leave_the_folder_is_refused_before_anything_is_written(
    name: str, to: Path, tmp_path: Path
) -> None:
    work = tmp_path / "deep" / "down"
    work.mkdir(parents=True)
    line = refusal(work / "to", hostile(tmp_path / "evil.zip", name))
    assert "evil.zip" in line
    assert repr(name) in line
    assert list(work.iterdir()) == []
    assert not [file for file in tmp_path.rglob("*evil*") if file.name != "evil.zip"]


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (stat.S_IFLNK | 0o777, "link"),
        (stat.S_IFIFO | 0o644, "special"),
        (stat.S_IFCHR | 0o644, "special"),
        (stat.S_IFDIR | 0o755, "special"),
    ],
)
def test_links_and_special_files_are_refused(mode: int, what: str, to: Path, tmp_path: Path) -> None:
    line = refusal(to, hostile(tmp_path / "evil.zip", "COVID/images/x.png", mode=mode, content=b"/etc/passwd"))
    assert what in line
    assert "COVID/images/x.png" in line


def test_a_zip_above_the_size_limit_is_refused(zipped: Path, to: Path) -> None:
    size = sum(map(len, kaggle_tree().values()))
    assert f"at most {size - 1:,} bytes, found {size:,}" in refusal(to, zipped, most_bytes=size - 1)
    assert download(to=to, from_zip=zipped, most_bytes=size).counts == CLASSES


def test_a_zip_above_the_member_limit_is_refused(zipped: Path, to: Path) -> None:
    count = len(kaggle_tree())
    assert f"at most {count - 1} members, found {count}" in refusal(to, zipped, most_members=count - 1)


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_declared(to: Path, tmp_path: Path) -> None:
    bomb = make_zip(tmp_path / "bomb.zip", kaggle_tree())
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("COVID/images/bomb.png", bytes(50_000_000))
        archive.getinfo("COVID/images/bomb.png").file_size = 1000
    line = refusal(to, bomb, most_bytes=100_000)
    assert "bomb.zip" in line
    assert "COVID/images/bomb.png" in line
    assert sum(map(len, tree(tmp_path / "radiography.partial").values())) < 100_000


def test_the_limit_holds_for_the_bytes_written_whatever_was_declared(zipped: Path, tmp_path: Path) -> None:
    target, temporary = tmp_path / "out.png", tmp_path / "out.tmp"
    with zipfile.ZipFile(zipped) as archive, pytest.raises(UserError, match="more than the limit"):
        info = archive.getinfo(f"{WRAPPER}/COVID/images/COVID-1.png")
        step._unpack_one(zipped, archive, info, target, temporary, at_most=info.file_size - 1)
    assert not target.exists()


def test_a_wrong_crc_is_refused_with_zip_and_member(to: Path, tmp_path: Path) -> None:
    files = kaggle_tree() | {f"{WRAPPER}/Normal/images/marked.png": b"the marked content"}
    damaged = make_zip(tmp_path / "damaged.zip", files, zipfile.ZIP_STORED)
    damaged.write_bytes(damaged.read_bytes().replace(b"the marked content", b"the MARKED content"))
    line = refusal(to, damaged)
    assert "damaged.zip" in line
    assert "marked.png" in line
    assert "CRC" in line


def test_a_broken_stream_and_a_hole_in_the_zip_are_refused_with_zip_and_member(zipped: Path, to: Path) -> None:
    content = bytearray(zipped.read_bytes())
    with zipfile.ZipFile(zipped) as archive:
        info = archive.getinfo(f"{WRAPPER}/Normal/images/Normal-1.png")
    for start, length in ((info.header_offset, 4), (info.header_offset + 30 + len(info.filename), info.compress_size)):
        zipped.write_bytes(content[:start] + b"\xff" * length + content[start + length :])
        line = refusal(to, zipped)
        assert "archive.zip" in line
        assert "Normal-1.png" in line


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_broken_stream_of_any_codec_is_refused_with_zip_and_member(
    compression: int, to: Path, tmp_path: Path
) -> None:
    broken = make_zip(tmp_path / "broken.zip", kaggle_tree(), compression)
    with zipfile.ZipFile(broken) as archive:
        info = archive.getinfo(f"{WRAPPER}/Normal/images/Normal-1.png")
    content, start = broken.read_bytes(), info.header_offset + 30 + len(info.filename)
    broken.write_bytes(
        content[: start + 10] + b"\x55" * (info.compress_size - 10) + content[start + info.compress_size :]
    )
    line = refusal(to, broken)
    assert "broken.zip" in line
    assert "Normal-1.png" in line
    assert "damaged" in line


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_off_zip_is_refused(share: float, zipped: Path, to: Path) -> None:
    content = zipped.read_bytes()
    zipped.write_bytes(content[: int(len(content) * share)])
    line = refusal(to, zipped)
    assert "archive.zip" in line
    assert "cut off" in line


def test_an_encrypted_member_is_refused(zipped: Path, to: Path) -> None:
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("COVID/images/secret.png", b"x")
        archive.getinfo("COVID/images/secret.png").flag_bits |= 1
    line = refusal(to, zipped)
    assert "secret.png" in line
    assert "encrypted" in line
    assert not step._partial(to).exists()


def test_an_unknown_compression_is_refused(zipped: Path, to: Path) -> None:
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("COVID/images/odd.png", b"x")
        archive.getinfo("COVID/images/odd.png").compress_type = 97
    assert "odd.png" in refusal(to, zipped)


@pytest.mark.parametrize(
    ("one", "other"),
    [("COVID/images/a.png", "COVID/images/A.png"), ("COVID/a.png", "Covid/b.png"), ("n/\u00e9.png", "n/e\u0301.png")],
)
def test_names_that_only_some_disks_tell_apart_are_refused(one: str, other: str, to: Path, tmp_path: Path) -> None:
    line = refusal(to, make_zip(tmp_path / "case.zip", kaggle_tree() | {one: film(1), other: film(2)}))
    assert "case" in line


def test_a_member_that_is_there_twice_is_refused_when_its_contents_differ(to: Path, tmp_path: Path) -> None:
    name = f"{WRAPPER}/COVID/images/twice.png"
    assert "twice.png" in refusal(to, hostile(tmp_path / "twice.zip", name, content=film(1), twice=film(2)))
    same = hostile(tmp_path / "same.zip", name, content=film(1), twice=film(1))
    assert download(to=to, from_zip=same).counts["COVID"] == CLASSES["COVID"] + 1


def test_a_name_that_is_file_and_folder_is_refused(to: Path, tmp_path: Path) -> None:
    both = make_zip(tmp_path / "both.zip", kaggle_tree() | {"COVID/x": b"", "COVID/x/y.png": film(1)})
    assert "file or a folder" in refusal(to, both)


def test_a_zip_of_something_else_is_refused_before_it_is_unpacked(to: Path, tmp_path: Path) -> None:
    line = refusal(to, make_zip(tmp_path / "letters.zip", {"letters/a.txt": b"dear", "letters/b.txt": b"sir"}))
    assert "letters.zip" in line
    assert step.URL in line
    assert not to.with_name("radiography.partial").exists()


def test_what_is_not_a_zip_is_refused(to: Path, tmp_path: Path) -> None:
    assert "no such file" in refusal(to, tmp_path / "missing.zip")
    assert "found a folder" in refusal(to, tmp_path)
    (tmp_path / "page.zip").write_text("<html>please log in</html>")
    assert "page.zip" in refusal(to, tmp_path / "page.zip")


def test_a_disk_that_is_too_small_is_said_before_unpacking(
    zipped: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 9_000, 1_000))
    assert "found 1,000 free" in refusal(to, zipped)


def test_a_write_that_the_system_refuses_is_one_line_and_goes_on_later(zipped: Path, to: Path) -> None:
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(f"{WRAPPER}/Normal/images/large.png", random.Random(1).randbytes(300_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        line = refusal(to, zipped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "large.png: cannot be written" in line
    assert download(to=to, from_zip=zipped).counts["Normal"] == CLASSES["Normal"] + 1


# --- interrupted ---


def start(to: Path, zipped: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from vgg16_xray.steps.download import download; "
        "download(to=Path(sys.argv[1]), from_zip=Path(sys.argv[2]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, to, zipped], stderr=subprocess.DEVNULL)


def test_a_killed_extraction_is_never_taken_for_finished_and_goes_on(to: Path, tmp_path: Path) -> None:
    counts = {"COVID": 400, "Normal": 400}
    zipped = make_zip(tmp_path / "many.zip", kaggle_tree(counts))
    work = to.with_name("radiography.partial")
    seed = time.time_ns()
    moments = random.Random(seed)
    kept: dict[str, int] = {}
    killed = 0
    for _ in range(3):
        at = len(kept) + moments.randint(1, 200)
        process = start(to, zipped)
        while process.poll() is None and sum(len(files) for *_, files in os.walk(work)) < at:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if to.exists():
            break
        now = {
            file.relative_to(next(work.glob("zip-*"))).as_posix(): file.stat().st_mtime_ns
            for file in work.glob("zip-*/**/*")
            if file.is_file()
        }
        assert kept.items() <= now.items(), f"seed {seed}: what an earlier run unpacked was written again"
        kept = now
    assert killed, f"seed {seed}: finished before the first kill"
    assert kept
    done = download(to=to, from_zip=zipped)
    assert done.counts == counts
    found = tree(to)
    found.pop(step.MARKER)
    assert found == kaggle_tree(counts), f"seed {seed}"
    assert all((to / name).stat().st_mtime_ns == when for name, when in kept.items()), f"seed {seed}"
    assert not work.exists()


def test_files_that_an_interruption_left_wrong_are_written_again(zipped: Path, to: Path) -> None:
    unpacked = step._partial(to) / f"zip-{hashlib.sha256(zipped.read_bytes()).hexdigest()[:16]}"
    files = kaggle_tree()
    short, changed, *_ = [name for name in files if "/images/" in name]
    files[short] = files[short][:-1]
    files[changed] = files[changed][:-1] + b"?"
    write_tree(unpacked, files)
    download(to=to, from_zip=zipped)
    found = tree(to)
    found.pop(step.MARKER)
    assert found == kaggle_tree()


def test_what_was_unpacked_of_another_zip_is_not_mixed_in(zipped: Path, to: Path) -> None:
    write_tree(step._partial(to), {"zip-0123456789abcdef/COVID/images/other.png": film(9)})
    download(to=to, from_zip=zipped)
    assert "other.png" not in " ".join(tree(to))
    assert not step._partial(to).exists()


# --- a folder that is there ---


def test_class_folders_that_are_there_are_used_and_left_alone(to: Path) -> None:
    write_tree(to, kaggle_tree())
    done = download(to=to)
    assert (done.folder, done.counts, done.came, done.version) == (to / WRAPPER, CLASSES, "folder", None)
    assert len(done.warnings) == 1
    assert tree(to) == kaggle_tree()


def test_nothing_is_unpacked_over_class_folders(zipped: Path, to: Path) -> None:
    write_tree(to, kaggle_tree())
    assert "nothing is unpacked over them" in refusal(to, zipped)


@pytest.mark.parametrize(
    "files",
    [
        {"letter.txt": b"dear"},
        {"a.png": film(1), "b.png": film(2)},
        {"COVID/images/a.png": film(1)},
        {"COVID/a.txt": b"", "Normal/b.txt": b""},
        {"jsrt/a.png": film(1), "shenzhen/b.png": film(2)},
    ],
)
def test_a_folder_with_something_else_is_refused_and_left_alone(
    files: dict[str, bytes], zipped: Path, to: Path
) -> None:
    write_tree(to, files)
    for source in (None, zipped):
        line = refusal(to, source)
        assert str(to) in line
        assert "found something else" in line
    assert tree(to) == files


def test_a_file_in_the_folders_place_is_refused(zipped: Path, to: Path) -> None:
    to.write_text("a letter")
    assert "found a file" in refusal(to, zipped)


def test_a_folder_of_the_users_with_the_name_of_the_working_folder_is_kept(zipped: Path, to: Path) -> None:
    mine = write_tree(step._partial(to), {"diary.txt": b"dear"})
    download(to=to, from_zip=zipped)
    assert tree(mine) == {"diary.txt": b"dear"}


# --- Kaggle ---


class Kaggle(ThreadingHTTPServer):
    """What kagglehub asks of Kaggle for a dataset, with the storage behind it."""

    def __init__(self, bundle: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.bundle = bundle
        self.cut_after: int | None = None
        self.status = 200
        self.ranges: list[str | None] = []


class _Answers(BaseHTTPRequestHandler):
    server: Kaggle

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.status != 200:
            self._json({"code": self.server.status, "message": "no"}, self.server.status)
        elif self.path.endswith("/GetDataset"):
            self._json({"currentVersionNumber": 5})
        else:
            self.send_response(302)
            self.send_header("Location", "/bundle.zip")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        bundle, wanted = self.server.bundle, self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(bundle) - start))
        self.send_header("X-Goog-Hash", "md5=" + base64.b64encode(hashlib.md5(bundle).digest()).decode())
        self.end_headers()
        end = len(bundle) if self.server.cut_after is None or wanted else self.server.cut_after
        # kagglehub opens the answer to its first request even where it goes on with a range.
        try:
            self.wfile.write(bundle[start:end])
        except (BrokenPipeError, ConnectionResetError):
            return

    def _json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def kaggle(zipped: Path) -> Iterator[Kaggle]:
    pytest.importorskip("kagglehub")
    # Three pieces of a mebibyte, kagglehub's chunk, so that a connection can break off between two of them.
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(f"{WRAPPER}/Normal/images/large.png", random.Random(1).randbytes(3 << 20))
    with Kaggle(zipped.read_bytes()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(to: Path, port: int) -> tuple[Downloaded | str, str, str]:
    """Run the step with the real kagglehub, in a process of its own, against a port of this machine."""
    code = """
import dataclasses, os, sys
from pathlib import Path
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = f"http://127.0.0.1:{sys.argv[2]}"
from vgg16_xray.errors import UserError
from vgg16_xray.steps.download import download
try:
    print("RESULT" + repr(download(to=Path(sys.argv[1]))))
except UserError as error:
    print("ERROR" + str(error))
assert os.environ["KAGGLEHUB_CACHE"] == "mine"
"""
    env = {key: value for key, value in os.environ.items() if "KAGGLE" not in key and "proxy" not in key.lower()}
    env |= {"HOME": str(to.parent), "KAGGLEHUB_CACHE": "mine"}
    command = [sys.executable, "-c", code, str(to), str(port)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    kind, _, value = ran.stdout.strip().partition("RESULT")
    assert "\n" not in ran.stdout.strip(), "only the result is on standard output"
    assert not kind or kind.startswith("ERROR")
    return ran.stdout.strip().removeprefix("ERROR"), value, ran.stderr


def test_kaggle_gives_the_dataset_with_its_version(kaggle: Kaggle, to: Path) -> None:
    _, result, said = ask(to, kaggle.server_address[1])
    assert "came='kaggle'" in result
    assert "version='5'" in result
    done = download(to=to)
    assert repr(done) == result
    assert done.counts == CLASSES | {"Normal": CLASSES["Normal"] + 1}
    assert json.loads((to / step.MARKER).read_text())["version"] == "5"
    assert sorted(entry.name for entry in to.iterdir()) == [WRAPPER, step.MARKER]
    assert not step._partial(to).exists()
    assert "B/s" in said  # kagglehub's rate and time left


def test_a_connection_that_breaks_off_is_one_line_and_the_next_run_goes_on(kaggle: Kaggle, to: Path) -> None:
    kaggle.cut_after = (2 << 20) + 1000
    line, result, _ = ask(to, kaggle.server_address[1])
    assert not result
    assert "broke off" in line
    assert "the same command goes on" in line
    assert not to.exists()
    kaggle.ranges.clear()
    _, result, _ = ask(to, kaggle.server_address[1])
    assert "came='kaggle'" in result
    assert kaggle.ranges[-1] is not None
    assert int(kaggle.ranges[-1].removeprefix("bytes=").removesuffix("-")) >= 2 << 20
    assert (to / WRAPPER / "Normal/images/large.png").read_bytes() == random.Random(1).randbytes(3 << 20)


@pytest.mark.parametrize("byte", [b"\0", b"\1"])  # zeros are an empty tar archive, ones are none at all
def test_an_archive_without_the_dataset_is_not_kept(byte: bytes, kaggle: Kaggle, to: Path) -> None:
    whole = kaggle.bundle
    kaggle.bundle = byte * len(whole)  # of the right size: kagglehub would take it for a finished download ever after
    line, result, _ = ask(to, kaggle.server_address[1])
    assert not result
    assert "Kaggle" in line
    assert not to.exists()
    kaggle.bundle = whole
    _, result, _ = ask(to, kaggle.server_address[1])
    assert "came='kaggle'" in result


@pytest.mark.parametrize(("status", "what"), [(401, "token"), (403, "token"), (500, "HTTP 500")])
def test_a_refusal_by_kaggle_says_how_to_go_on_by_hand(status: int, what: str, kaggle: Kaggle, to: Path) -> None:
    kaggle.status = status
    line, result, _ = ask(to, kaggle.server_address[1])
    assert not result
    assert what in line
    assert f"vgg16-xray download --from-zip FILE --to {to}" in line


def test_no_network_says_how_to_go_on_by_hand_and_leaves_nothing(kaggle: Kaggle, to: Path) -> None:
    kaggle.server_close()  # its port is free now, and nobody listens
    line, result, _ = ask(to, kaggle.server_address[1])
    assert not result
    assert "no connection to Kaggle" in line
    assert step.URL in line
    assert f"vgg16-xray download --from-zip FILE --to {to}" in line
    assert not to.exists()
    assert not step._partial(to).exists()


def test_without_the_extra_its_installation_is_named(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(MissingExtra, match=r"kbs-vgg16-xray\[kaggle\]"):
        download(to=to)
    assert not step._partial(to).exists()
