"""Films a second that `vgg16_xray.films.phantom` draws on one core: ``python benchmarks/phantoms.py [--size 256]``."""

from __future__ import annotations

import argparse
import time

from vgg16_xray.films.phantom import CLASSES, draw


def main() -> None:
    """Draw films of all classes in turn and print the rate; processor time, so that other work does not count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the films in pixels")
    parser.add_argument("--films", type=int, default=200, help="number of films")
    given = parser.parse_args()
    draw(CLASSES[0], size=given.size)
    started = time.process_time()
    for n in range(given.films):
        draw(CLASSES[n % len(CLASSES)], patient=n, size=given.size)
    rate = given.films / (time.process_time() - started)
    print(f"{rate:.1f} films/s at {given.size} x {given.size}, one core, {given.films} films")


if __name__ == "__main__":
    main()
