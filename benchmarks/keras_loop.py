"""The notebook's own Keras loop: a frozen VGG16 on x/255, Flatten and Dense, Adam, 7 epochs, everything drawn anew.

    .venv-keras/bin/python benchmarks/keras_loop.py FILMS --weights BASE.safetensors [--epochs 7] [--paced]

FILMS holds `train` and `val`, each with a folder a class. Prints a line of JSON an epoch. With `--paced` an epoch
begins when a line arrives on standard input, so that somebody else may have the cores in between. Runs in TensorFlow's
virtual environment and knows nothing of `vgg16_xray` but the format of its weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

SIDE, BATCH = 224, 32
SEED = 1234


class Pace(keras.callbacks.Callback):
    """Times each epoch, its validation included, from the line that allows it."""

    def __init__(self, *, paced: bool) -> None:
        super().__init__()
        self._paced = paced

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        if self._paced:
            say(ready=epoch + 1)
            # Who paced it is gone: nobody wants the epoch.
            if not sys.stdin.readline():
                raise SystemExit(1)
        self._started, self._worked = time.perf_counter(), time.process_time()

    def on_test_begin(self, logs: object = None) -> None:
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        done = time.perf_counter()
        say(
            epoch=epoch + 1,
            seconds=round(done - self._started, 3),
            training_seconds=round(self._trained - self._started, 3),
            core_seconds=round(time.process_time() - self._worked, 3),
            **{name: float(value) for name, value in (logs or {}).items()},
        )


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def put_weights(base: Any, file: Path) -> None:
    """Our base has torchvision's names and order, (out, in, h, w); Keras wants (h, w, in, out)."""
    tensors = load_file(file)
    convolutions = [layer for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]
    numbers = sorted({int(name.split(".")[1]) for name in tensors})
    for layer, number in zip(convolutions, numbers, strict=True):
        kernel, bias = (tensors[f"features.{number}.{kind}"].astype(np.float32) for kind in ("weight", "bias"))
        layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])


def build(classes: int, weights: Path) -> Any:
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(SIDE, SIDE, 3))
    put_weights(base, weights)
    for layer in base.layers:
        layer.trainable = False
    answers = keras.layers.Dense(classes, activation="softmax")(keras.layers.Flatten()(base.output))
    model = keras.Model(base.input, answers)
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--paced", action="store_true")
    given = parser.parse_args()
    keras.utils.set_random_seed(SEED)
    generator = tf.keras.preprocessing.image.ImageDataGenerator
    changed = generator(rescale=1 / 255, shear_range=0.2, zoom_range=0.2, horizontal_flip=True)
    as_they_are = generator(rescale=1 / 255)
    flow = {"target_size": (SIDE, SIDE), "batch_size": BATCH, "class_mode": "categorical"}
    train = changed.flow_from_directory(given.films / "train", seed=SEED, **flow)
    validation = as_they_are.flow_from_directory(given.films / "val", shuffle=False, **flow)
    build(train.num_classes, given.weights).fit(
        train, validation_data=validation, epochs=given.epochs, callbacks=[Pace(paced=given.paced)], verbose=0
    )


if __name__ == "__main__":
    main()
