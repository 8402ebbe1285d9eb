"""The name of every file that a run leaves. Nobody else spells one.

A step is done when its stamp in ``steps.json`` carries the key of its present inputs and everything it made is still
there, so that a second run does only what is missing or changed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, saying_why_not_written, write_json, write_text

#: Environment variable that names the folder of what runs share.
CACHE_VARIABLE = "VGG16_XRAY_CACHE"
#: Held by whoever writes a folder; the first file in it.
LOCK = ".lock"


@dataclass(frozen=True)
class RunDir:
    """A run directory, and where everything in it lies."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved configuration, versions, seed, data fingerprint: ``run.toml``."""
        return self.path / "run.toml"

    @property
    def steps(self) -> Path:
        """Which step finished when, on which inputs."""
        return self.path / "steps.json"

    @property
    def manifest(self) -> Path:
        """A row a film; row i is film i of :attr:`pixels`."""
        return self.path / "manifest.parquet"

    @property
    def split(self) -> Path:
        """The split as text: ``split.csv`` with path, label, group, split."""
        return self.path / "split.csv"

    @property
    def quarantine(self) -> Path:
        """Files left out, and why."""
        return self.path / "quarantine.csv"

    @property
    def pixels(self) -> Path:
        """(N, 224, 224) uint8."""
        return self.path / "pixels.npy"

    @property
    def history(self) -> Path:
        """Loss and accuracy of every epoch."""
        return self.path / "history.csv"

    @property
    def layers(self) -> Path:
        """The layer table that step 3 printed, with what is trainable."""
        return self.path / "layers.json"

    @property
    def last(self) -> Path:
        """State from which training resumes."""
        return self.path / "checkpoints" / "last" / "state.safetensors"

    @property
    def best(self) -> Path:
        """The model of the best epoch."""
        return self.path / "checkpoints" / "best" / "model.safetensors"

    @property
    def validation(self) -> Path:
        """Step 5's numbers."""
        return self.path / "validation.json"

    @property
    def test(self) -> Path:
        """Step 6's numbers."""
        return self.path / "test.json"

    @property
    def readings(self) -> Path:
        """Every time that test films were measured or compared: when, by which command and model. Only grows."""
        return self.path / "test_readings.csv"

    @property
    def predictions(self) -> Path:
        """A row a film of every split."""
        return self.path / "predictions.csv"

    @property
    def figures(self) -> Path:
        """Folder of the pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    def outputs(self, key: str) -> Path:
        """What a network says of films, kept by an export that may be killed."""
        return self.path / "export" / f"{key}.npz"

    @property
    def leaks(self) -> Path:
        """Which films are one: counts, pairs, and the films under two labels."""
        return self.path / "leaks.json"

    @property
    def pairs(self) -> Path:
        """A row a pair of films that are one, or that nearly were taken for one."""
        return self.path / "pairs.csv"

    @property
    def leaks_page(self) -> Path:
        """The pairs side by side, to be looked at."""
        return self.path / "leaks.html"

    def note_reading(self, checkpoint_sha256: str) -> None:
        """Add a row to the log of readings, before the test films, or what was said of them, are looked at.

        Args:
            checkpoint_sha256: Of the model, or of the models of folds, joined by blanks.

        Raises:
            UserError: The run cannot be written.
        """
        row = io.StringIO()
        writer = csv.writer(row, lineterminator="\n")
        with saying_why_not_written(self.readings):
            if not self.readings.exists():
                writer.writerow(("time", "command", "checkpoint_sha256"))
            command = " ".join(["vgg16-xray", *sys.argv[1:]])
            writer.writerow((time.strftime("%Y-%m-%dT%H:%M:%S%z"), command, checkpoint_sha256))
            with self.readings.open("a", encoding="utf-8") as file:
                file.write(row.getvalue())

    def require(self, file: Path, *, made_by: str) -> Path:
        """Return `file`, or say which step makes it.

        Raises:
            UserError: `file` is not there.
        """
        if not file.exists():
            raise UserError(f"{file}: not there yet", hint=f"run first: vgg16-xray {made_by} {self.path}")
        return file

    def require_step(self, step: str, *, made_by: str) -> None:
        """Refuse to go on from a step that has not finished.

        Raises:
            UserError: It has no stamp.
        """
        if step not in self.stamps():
            raise UserError(
                f"{self.path}: step '{step}' must be finished first", hint=f"run: vgg16-xray {made_by} {self.path}"
            )

    def stamps(self) -> dict[str, Any]:
        """Stamps of the finished steps: ``{step: {"key": str, "finished": str, "seconds": float}}``."""
        stamps = read_json(self.steps) if self.steps.exists() else {}
        if not isinstance(stamps, dict) or not all(isinstance(stamp, dict) for stamp in stamps.values()):
            raise UserError(
                f"{self.steps}: must hold the steps' stamps, found other JSON", hint="delete it to start over"
            )
        return stamps

    def is_done(self, step: str, key: str, outputs: list[Path]) -> bool:
        """Whether `step` finished on inputs with this key and everything it made is still there."""
        return self.stamps().get(step, {}).get("key") == key and all(output.exists() for output in outputs)

    def unstamp(self, *steps: str) -> None:
        """Forget that `steps` finished, before what they made is replaced."""
        stamps = self.stamps()
        kept = {step: stamp for step, stamp in stamps.items() if step not in steps}
        if kept != stamps:
            write_json(self.steps, kept)

    def require_ours(self, data: Sequence[Path]) -> None:
        """Refuse to put a run among the films of `data`, or into a folder that somebody else filled.

        Raises:
            UserError: The folder lies within the films', or holds files and nothing of a run.
        """
        here = self.path.resolve()
        for root in data:
            if root.is_dir() and root.resolve() in (here, *here.parents):
                raise UserError(f"--out: must lie outside the films' folder {root}, found {self.path}")
        if not self.path.is_dir() or any((self.path / name).exists() for name in (LOCK, self.steps.name)):
            return
        if strangers := sorted(file.name for file in self.path.iterdir()):
            raise UserError(
                f"--out: must be new, empty, or a folder that this program made, found '{strangers[0]}' in {self.path}"
            )

    def require_audit_of(self, roots: Iterable[Path]) -> None:
        """Refuse to audit films into a folder that holds a model, or that is of other films.

        Args:
            roots: Folders of the collections.

        Raises:
            UserError: It does.
        """
        if not self.config.exists():
            return
        config = read_config(self)
        if "recipe" in config:
            raise UserError(
                f"--out: must be no run with a model, found {self.path}",
                hint=f"its own films are audited by: vgg16-xray audit {self.path}",
            )
        was, now = set(config.get("data", {}).get("collections", {}).values()), set(map(str, roots))
        if was and was != now:
            listed = [", ".join(sorted(names)) for names in (now, was)]
            raise UserError(f"--out: must be a folder of its own for {listed[0]}, found {self.path} of {listed[1]}")

    def stamp(self, step: str, key: str, *, seconds: float) -> None:
        """Record that `step` finished on inputs with this key."""
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        stamps = self.stamps() | {step: {"key": key, "finished": finished, "seconds": round(seconds, 1)}}
        write_json(self.steps, stamps)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run directory: two processes that write one run would each spoil the other's.

        Raises:
            UserError: Another process holds it, or the folder cannot be written.
        """
        import fcntl

        new = not self.path.exists()
        with saying_why_not_written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("w")
        with lock, self._forgotten_if_nothing_came_of_it() if new else contextlib.nullcontext():
            with saying_why_not_written(self.path):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"{self.path}: must be written by one process at a time, found another at work"
                    ) from error
            self._sweep()
            yield

    @contextmanager
    def _forgotten_if_nothing_came_of_it(self) -> Iterator[None]:
        """Input that is refused at once leaves no folder behind."""
        try:
            yield
        except BaseException:
            if [file.name for file in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
            raise

    def _sweep(self) -> None:
        """Remove what a kill left half-written: `files.whole_file` names it so, and safetensors `.tmp` and letters.

        Folds and other seeds are runs of their own, perhaps at work now, and are swept when they are held.
        """
        for folder in (self.path, self.figures, self.best.parent, self.last.parent):
            for left in folder.glob(".*tmp*"):
                with contextlib.suppress(OSError):
                    left.unlink()


@dataclass(frozen=True)
class FoldsDir:
    """Where a run's folds and other seeds lie, in the run directory itself."""

    path: Path

    @property
    def numbers(self) -> Path:
        """Figures over all folds, and how far the seed moves them."""
        return self.path / "folds.json"

    @property
    def table(self) -> Path:
        """A row a film: what the model says that never saw it."""
        return self.path / "folds.csv"

    @property
    def seeds(self) -> Path:
        """How far the training's seed alone moves the test figures."""
        return self.path / "seeds.json"

    def fold(self, number: int, *, seed: int | None = None) -> RunDir:
        """The run directory of a fold, and of another training seed of it."""
        return RunDir(self.path / "folds" / (f"{number}" if seed is None else f"{number}-seed{seed}"))

    def seed(self, seed: int) -> RunDir:
        """The run directory of another training seed on the single split."""
        return RunDir(self.path / "seeds" / f"{seed}")

    def begun(self) -> bool:
        """Whether the training of any fold was begun."""
        return any(RunDir(folder).last.exists() for folder in (self.path / "folds").glob("*"))


@dataclass(frozen=True)
class AuditDir:
    """Where ``vgg16-xray audit`` puts what it found: a run directory, or a folder beside the data."""

    path: Path

    @property
    def numbers(self) -> Path:
        """Whether a number measured on these films can be believed: verdict, reasons, all figures."""
        return self.path / "audit.json"

    @property
    def page(self) -> Path:
        """The same as a self-contained page."""
        return self.path / "audit.html"

    @property
    def given(self) -> Path:
        """The split that the films came with, which is judged; of films that came with none, not there."""
        return self.path / "audit" / "given.json"

    def part(self, name: str) -> Path:
        """A finished part of the audit, so that a killed one goes on behind it."""
        return self.path / "audit" / f"{name}.json"


@dataclass(frozen=True)
class CardsDir:
    """Where the report puts cards and checklists: a run directory."""

    path: Path

    @property
    def folder(self) -> Path:
        """Model card, data sheet, checklists, a paragraph for the methods; Markdown."""
        return self.path / "cards"

    def file(self, name: str) -> Path:
        """One of them."""
        return self.folder / f"{name}.md"


@dataclass(frozen=True)
class EvaluationDir:
    """Where ``vgg16-xray evaluate --out`` puts what it found."""

    path: Path

    @property
    def page(self) -> Path:
        """The self-contained page."""
        return self.path / "evaluation.html"

    @property
    def numbers(self) -> Path:
        """What :func:`vgg16_xray.evaluate.evaluate` found, as JSON."""
        return self.path / "evaluation.json"


@dataclass(frozen=True)
class HeatDir:
    """Where ``vgg16-xray heat`` puts what it found: a run directory, or the folder of ``--out``."""

    path: Path

    @property
    def numbers(self) -> Path:
        """What :func:`vgg16_xray.heat.heat` found, as JSON."""
        return self.path / "heat.json"

    @property
    def picture(self) -> Path:
        """Some of the films under their heat, with what is drawn on them."""
        return self.path / "heat.jpg"


@dataclass(frozen=True)
class ComparisonDir:
    """Where ``vgg16-xray compare --out`` puts what it found."""

    path: Path

    @property
    def page(self) -> Path:
        """The self-contained page."""
        return self.path / "comparison.html"

    @property
    def numbers(self) -> Path:
        """What :func:`vgg16_xray.trust.compare.compare` found, as JSON."""
        return self.path / "comparison.json"


@dataclass(frozen=True)
class CacheDir:
    """What runs share and any of them can make again: a folder a store of features."""

    path: Path

    @classmethod
    def of_user(cls) -> CacheDir:
        """``$VGG16_XRAY_CACHE``, or ``vgg16-xray`` in the platform's cache folder.

        Raises:
            UserError: The system knows no home directory.
        """
        if own := os.environ.get(CACHE_VARIABLE):
            return cls(Path(own))
        # The XDG base directory specification: a relative path there is to be ignored.
        if Path(xdg := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
            return cls(Path(xdg) / "vgg16-xray")
        try:
            home = Path.home()
        except RuntimeError as error:
            raise UserError(f"{CACHE_VARIABLE}: must name a folder where there is no home, found none") from error
        return cls(home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "vgg16-xray")

    @property
    def engines(self) -> Path:
        """How fast each engine ran on this machine, see :mod:`vgg16_xray.learn.engines`."""
        return self.path / "engines.json"

    def store(self, name: str) -> StoreDir:
        """The store of this name, there or not."""
        return StoreDir(self.path / "features" / name)

    def stores(self) -> list[StoreDir]:
        """The stores that are there, by name."""
        return [StoreDir(folder) for folder in self._folders() if not folder.name.startswith(".")]

    def leaving(self) -> list[Path]:
        """What is being removed."""
        return [folder for folder in self._folders() if folder.name.startswith(".leaving-")]

    def _folders(self) -> list[Path]:
        folder = self.path / "features"
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


@dataclass(frozen=True)
class StoreDir:
    """A store of features in the cache, see :mod:`vgg16_xray.learn.featurestore`."""

    path: Path

    @property
    def description(self) -> Path:
        """What is stored, in words; its time of change is when the store was used last."""
        return self.path / "store.json"

    @property
    def lock(self) -> Path:
        """Held by the process that makes the store."""
        return self.path / LOCK

    @property
    def leaving(self) -> Path:
        """Where the folder goes, in one step, before it is removed."""
        return self.path.with_name(f".leaving-{self.path.name}-{os.getpid()}-{secrets.token_hex(4)}")

    def shard(self, number: int, checksum: int) -> Path:
        """A whole shard, under its number and the CRC-32 of its bytes."""
        return self.path / f"{number:06d}-{checksum:08x}.npy"

    def unfinished(self, number: int) -> Path:
        """A shard that is being made; what a kill leaves there is written over."""
        return self.path / f"{number:06d}.tmp"

    def shards(self) -> list[tuple[int, int, Path]]:
        """(number, checksum, file) of the shards that are there, by number."""
        found = [(re.fullmatch(r"(\d{6,})-([0-9a-f]{8})\.npy", file.name), file) for file in self.path.glob("*.npy")]
        return sorted((int(name[1]), int(name[2], 16), file) for name, file in found if name)


def read_config(run: RunDir) -> dict[str, Any]:
    """Read ``run.toml``.

    Raises:
        UserError: It is missing or is not TOML.
    """
    run.require(run.config, made_by="preprocess DATA --out")
    try:
        return tomllib.loads(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{run.config}: must be TOML, found {error}") from error


def update_config(run: RunDir, /, **sections: Mapping[str, Any]) -> None:
    """Put values into sections of ``run.toml``, whole or not at all; other values stay.

    Raises:
        UserError: The file is not TOML, or cannot be written.
    """
    import tomli_w

    config = read_config(run) if run.config.exists() else {}
    for section, values in sections.items():
        config[section] = config.get(section, {}) | dict(values)
    write_text(run.config, tomli_w.dumps(config))


def key_of(*inputs: Any) -> str:
    """A key (16 hex digits) of values that JSON can hold: equal inputs, equal key, on every machine."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
