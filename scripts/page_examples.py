"""Draw the films that the web page offers to click: four phantoms, and a picture that is no film.

python scripts/page_examples.py web/public/examples
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vgg16_xray.films.phantom import draw

#: Name of the file -> label and patient of the drawing; chosen by eye, the opacity is easy to see.
FILMS = {
    "normal": ("Normal", 3),
    "covid": ("COVID", 11),
    "lung-opacity": ("Lung_Opacity", 25),
    "viral-pneumonia": ("Viral Pneumonia", 8),
}
SIZE = 512


def no_film() -> np.ndarray:
    """Rings, as of a zone plate: grey, square and sharp, and nothing of a chest in it."""
    y, x = np.mgrid[-1 : 1 : 1j * SIZE, -1 : 1 : 1j * SIZE]
    return ((np.cos(60 * (x**2 + y**2)) + 1) * 127.5).astype(np.uint8)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    films = {name: draw(label, seed=7, patient=patient, size=SIZE).pixels for name, (label, patient) in FILMS.items()}
    for name, pixels in {**films, "no-film": no_film()}.items():
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
