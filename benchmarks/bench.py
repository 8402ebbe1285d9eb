"""Run the benchmarks and keep what they found in docs/benchmarks.md, a section a kind of machine.

    python benchmarks/bench.py [PART ...] --keras .venv-keras/bin/python

Parts: see PARTS; all by default, a quarter of an hour to half an hour. What a part found is kept when it has finished
and stays until the part is run again on the same kind of machine, so a bench can be stopped and gone on with by part.
Every system gets the same two cores, also where there are more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from table import HEADER, ROWS, Row

from vgg16_xray import __version__
from vgg16_xray.files import read_json, write_json, write_text
from vgg16_xray.learn.engines import machine_in_words
from vgg16_xray.rundir import key_of

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
#: Name of a part -> its script, in the order of the table.
PARTS = {
    "accuracy": "equal_accuracy.py",
    "bundle": "bundle.py",
    "engines": "engines.py",
    "finetune": "finetune.py",
    "scale": "scale.py",
    "start": "start.py",
}
#: Parts that run the notebook's loop.
NEED_KERAS = {"accuracy", "finetune"}
#: What stands above this line in the page is written by hand.
MARK = "<!-- What follows is written by `make bench`. -->\n"


def run_part(part: str, *, keras: Path | None) -> dict[str, Any]:
    """Run a script; what it handed over, or where it handed over nothing, what it printed."""
    command = [sys.executable, str(HERE / PARTS[part])]
    if part in NEED_KERAS:
        command += ["--keras", str(keras)]
    busy, started = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "rows.json"
        print(f"-- {part}: {' '.join(command)}", flush=True)
        said = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {ROWS: str(file)}) as script:
            for line in script.stdout or ():
                print(line, end="", flush=True)
                said.append(line)
        if script.returncode:
            raise SystemExit(f"{part}: ended with {script.returncode}; what was measured before is kept")
        found: dict[str, Any] = {"rows": [], "remarks": ["".join(said).strip()], "figure": None}
        if file.exists():
            found |= json.loads(file.read_text("utf-8"))
    return found | {
        "measured": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "seconds": round(time.monotonic() - started),
        # More than nothing at the start means that somebody else was at work.
        "load_before": round(busy, 1),
    }


def page(machines: Mapping[str, Mapping[str, Any]], *, docs: Path) -> str:
    """The generated part of the page; writes the drawings beside it."""
    out = [MARK]
    for machine, parts in machines.items():
        there = [(part, parts[part]) for part in PARTS if part in parts]
        rows = [str(Row(**row)) for _, found in there for row in found["rows"]]
        out.append(f"\n## {machine}\n")
        if rows:
            out.append(f"\n{HEADER}\n" + "\n".join(rows) + "\n")
        for part, found in there:
            if found.get("figure"):
                name = f"benchmark-{part}-{key_of(machine)[:8]}.svg"
                write_text(docs / "figures" / name, found["figure"])
                out.append(f"\n![{part}, on {machine}](figures/{name})\n")
        out += [f"\n{remark}\n" for _, found in there for remark in found["remarks"]]
        when = "; ".join(
            f"{part} {found['measured']} in {found['seconds']} s, load before it {found['load_before']}"
            for part, found in there
        )
        out.append(f"\nMeasured: {when}.\n")
    return "".join(out)


def keep(part: str, found: Mapping[str, Any], *, docs: Path) -> None:
    """Put what a part found into the section of this kind of machine, and write the page anew."""
    numbers, written = docs / "benchmarks.json", docs / "benchmarks.md"
    machines = read_json(numbers) if numbers.exists() else {}
    machines.setdefault(machine_in_words(), {})[part] = dict(found)
    write_json(numbers, machines)
    head = written.read_text("utf-8").partition(MARK)[0]
    write_text(written, head + page(machines, docs=docs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--keras", type=Path, help="a Python with TensorFlow, for " + " and ".join(sorted(NEED_KERAS)))
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    parts = given.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    if NEED_KERAS & set(parts) and not given.keras:
        parser.error(f"--keras must be given for {', '.join(sorted(NEED_KERAS & set(parts)))}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    for part in parts:
        keep(part, run_part(part, keras=given.keras), docs=DOCS)
    print(f"kept in {DOCS / 'benchmarks.md'}, under: {machine_in_words()}")


if __name__ == "__main__":
    main()
