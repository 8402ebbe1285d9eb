"""What starting costs: `--help`, `import vgg16_xray`, and what that loads; python benchmarks/start.py."""

from __future__ import annotations

import statistics
import subprocess
import sys

from table import Row, hand_over, words
from timed import timed

TIMES = 9
HEAVY = ("torch", "onnxruntime")


def median_seconds(*arguments: str) -> float:
    """The first start reads the disk and does not count."""
    found = [timed([sys.executable, *arguments]).seconds for _ in range(TIMES + 1)]
    return statistics.median(found[1:])


def main() -> None:
    bare = median_seconds("-c", "pass")
    rows = []
    for what, arguments, aim in (
        ("`vgg16-xray --help`", ("-m", "vgg16_xray", "--help"), "< 0.5 s"),
        ("`import vgg16_xray`", ("-c", "import vgg16_xray"), ""),
    ):
        seconds = median_seconds(*arguments)
        against, ratio = f"{words(bare)}, Python alone", f"{seconds / bare:.1f}"
        rows.append(Row(what=what, ours=words(seconds), against=against, ratio=ratio, aim=aim))
    command = [sys.executable, "-X", "importtime", "-c", "import vgg16_xray"]
    times = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()[1:]
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    heavy = [name for name in HEAVY if name in names]
    rows.append(
        Row(
            what=f"`python -X importtime -c 'import vgg16_xray'`: {len(times)} modules, of {' or '.join(HEAVY)}",
            ours=", ".join(heavy) or "none",
            aim="none",
        )
    )
    hand_over(rows)


if __name__ == "__main__":
    main()
