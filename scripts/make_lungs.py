"""Make the network that finds lungs, and measure it on films of a source that it never saw.

Four trainings: each of the three sources left out in turn, and all. A training is resumed where it was killed; the same
seed gives the same network on the same machine.

Usage: python scripts/make_lungs.py --data ../shared --work DIR [--only NAME...] [--table]
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vgg16_xray.trust
from vgg16_xray.files import whole_file
from vgg16_xray.films.decode import decode, to_square
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.progress import progress
from vgg16_xray.trust import lungs
from vgg16_xray.trust.intervals import bootstrap_weights
from vgg16_xray.trust.lungs import dice, load, outline

SOURCES = ("shenzhen", "jsrt", "segmented")
#: Channels of the five levels: what fits 3 MB several times over and runs in a few milliseconds.
CHANNELS = (16, 32, 48, 64, 96)
#: Side of the square that the network sees, pixels: an outline that went through 64 has a Dice of 0.995 with itself.
SIDE = 64
#: Side of the films that are kept for training: three times what the network sees, so that a zoom finds detail.
KEPT = 3 * SIDE
STEPS, BATCH, RATE = 4000, 16, 3e-3
#: What is exported is the average of the weights over the last few hundred steps.
AVERAGED = 0.998
PHANTOMS = 160
#: How often each kind is drawn; a source that is left out leaves its share to the others.
SHARES = {"shenzhen": 0.34, "jsrt": 0.20, "segmented": 0.26, "phantom": 0.12, "none": 0.08}
HEALTHY = {"Normal", "No Finding"}
LEFT_LUNG, RIGHT_LUNG, HEART = 2, 1, 4


# ------------------------------------------------------------------------------------------------------------- network


def block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net whose skips are added, which costs half of what joining them does."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(CHANNELS))
        self.down = nn.ModuleList([block(before, after) for before, after in [(1, CHANNELS[0]), *pairs]])
        self.narrow = nn.ModuleList([nn.Conv2d(after, before, 1) for before, after in pairs])
        self.up = nn.ModuleList([block(before, before) for before, _ in pairs])
        self.out = nn.Conv2d(CHANNELS[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) standardised films -> (B, 1, S, S) logits."""
        skips = [x := self.down[0](x)]
        for down in self.down[1:]:
            skips.append(x := down(F.max_pool2d(x, 2)))
        for level in reversed(range(len(self.up))):
            wide = F.interpolate(self.narrow[level](x), scale_factor=2, mode="bilinear")
            x = self.up[level](wide + skips[level])
        out: Tensor = self.out(x)
        return out


def export(model: UNet, to: Path) -> None:
    """Write the network node by node: batch normalisation folded into the convolutions, weights in half precision."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def convolve(x: str, name: str, conv: nn.Module, norm: nn.Module | None = None) -> str:
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.detach().double()
        bias = torch.zeros(len(weight), dtype=torch.double) if conv.bias is None else conv.bias.detach().double()
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = weight * scale[:, None, None, None]
            bias = norm.bias.detach().double() - norm.running_mean.double() * scale
        half = constant(f"{name}.half", weight.numpy().astype(np.float16))
        full = node("Cast", [half], f"{name}.weight", to=TensorProto.FLOAT)
        pads = [conv.kernel_size[0] // 2] * 4
        inputs = [x, full, constant(f"{name}.bias", bias.numpy().astype(np.float32))]
        return node("Conv", inputs, name, pads=pads, kernel_shape=list(conv.kernel_size))

    def twice(x: str, name: str, layers: nn.Module) -> str:
        assert isinstance(layers, nn.Sequential)
        for k in (0, 3):
            x = node("Relu", [convolve(x, f"{name}.{k}", layers[k], layers[k + 1])], f"{name}.{k}.relu")
        return x

    double = constant("double", np.array([1, 1, 2, 2], np.float32))
    skips = [x := twice("films", "down.0", model.down[0])]
    for level, down in list(enumerate(model.down))[1:]:
        pooled = node("MaxPool", [x], f"pool.{level}", kernel_shape=[2, 2], strides=[2, 2])
        skips.append(x := twice(pooled, f"down.{level}", down))
    for level in reversed(range(len(model.up))):
        narrow = convolve(x, f"narrow.{level}", model.narrow[level])
        wide = node(
            "Resize",
            [narrow, "", double],
            f"wide.{level}",
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        x = twice(node("Add", [wide, skips[level]], f"sum.{level}"), f"up.{level}", model.up[level])
    node("Sigmoid", [convolve(x, "logit", model.out)], "lungs")
    shape: list[str | int | None] = ["count", 1, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "lungs",
        [helper.make_tensor_value_info("films", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("lungs", TensorProto.FLOAT, shape)],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(proto)
    with whole_file(to) as temporary:
        save(proto, str(temporary))


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True)
class Case:
    """One film and what was drawn on it."""

    source: str
    finding: str
    film: Path
    mask: Path

    def lungs(self, *, as_drawn: bool = False) -> np.ndarray:
        """(H, W) bool. The masks of `segmented` go on behind the heart, whose outline is taken away unless `as_drawn`;
        nobody else's do."""
        flags = decode_mask(self.mask)
        both = (flags & (LEFT_LUNG | RIGHT_LUNG)) > 0
        return both if as_drawn or self.source != "segmented" else both & ((flags & HEART) == 0)


def decode_mask(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def cases(data: Path) -> list[Case]:
    found = []
    with (data / "elsewhere" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["mask"]:
                root = data / "elsewhere"
                found.append(
                    Case(source=row["source"], finding=row["label"], film=root / row["path"], mask=root / row["mask"])
                )
    with (data / "segmented" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            root = data / "segmented"
            found.append(
                Case(source="segmented", finding=row["finding"], film=root / row["image"], mask=root / row["mask"])
            )
    return found


@dataclass(frozen=True)
class Pool:
    """Films to train on: (N, KEPT, KEPT) uint8, their lungs as 0 or 255, and the kind of each."""

    films: Tensor
    masks: Tensor
    kinds: np.ndarray


def read_pool(data: Path) -> Pool:
    films, masks, kinds = [], [], []
    for case in cases(data):
        films.append(to_square(decode(case.film), KEPT))
        masks.append(to_square(case.lungs().astype(np.uint8) * np.uint8(255), KEPT))
        kinds.append(case.source)
    for n in range(PHANTOMS):
        phantom = draw(CLASSES[n % len(CLASSES)], seed=893, patient=n, size=KEPT)
        films.append(phantom.pixels)
        masks.append(phantom.lungs.astype(np.uint8) * np.uint8(255))
        kinds.append("phantom")
    return Pool(torch.from_numpy(np.stack(films)), torch.from_numpy(np.stack(masks)), np.array(kinds))


def noise(cells: int, count: int, rng: torch.Generator) -> Tensor:
    """(B, 1, SIDE, SIDE) smooth noise of about unit variance with `cells` cells a side."""
    small = torch.randn(count, 1, cells, cells, generator=rng)
    return F.interpolate(small, size=(SIDE, SIDE), mode="bicubic") * 1.3


class Changes:
    """What is done to a batch: all of it a function of the generator."""

    def __init__(self, count: int, rng: torch.Generator) -> None:
        self.count, self.rng = count, rng

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.count, 1, 1, 1, generator=self.rng)

    def chance(self, share: float) -> Tensor:
        return (torch.rand(self.count, 1, 1, 1, generator=self.rng) < share).float()

    def where(self, share: float, changed: Tensor, kept: Tensor) -> Tensor:
        return torch.where(self.chance(share) > 0, changed, kept)

    def geometry(self, films: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Turn, zoom, stretch, shift, mirror, bend; outside is black, or the film's edge."""
        angle = self.between(-1, 1).flatten() ** 3 * 0.45
        zoom = torch.exp(self.between(-0.40, 0.45)).flatten()
        stretch = torch.exp(self.between(-0.25, 0.25)).flatten()
        mirror = 1 - 2 * self.chance(0.5).flatten()
        theta = torch.zeros(self.count, 2, 3)
        theta[:, 0, 0] = mirror * zoom * stretch * angle.cos()
        theta[:, 0, 1] = -zoom * stretch * angle.sin() + self.between(-0.1, 0.1).flatten()
        theta[:, 1, 0] = mirror * zoom / stretch * angle.sin()
        theta[:, 1, 1] = zoom / stretch * angle.cos()
        theta[:, :, 2] = torch.cat([self.between(-0.25, 0.25), self.between(-0.25, 0.25)], 1)[:, :, 0, 0]
        grid = F.affine_grid(theta, [self.count, 1, SIDE, SIDE], align_corners=False)
        bend = torch.cat([noise(4, self.count, self.rng), noise(4, self.count, self.rng)], 1).permute(0, 2, 3, 1)
        grid = grid + self.between(0, 0.06) * bend
        black = F.grid_sample(films, grid, padding_mode="zeros", align_corners=False)
        edge = F.grid_sample(films, grid, padding_mode="border", align_corners=False)
        return self.where(0.5, black, edge), F.grid_sample(masks, grid, padding_mode="zeros", align_corners=False)

    def opacities(self, films: Tensor, masks: Tensor) -> Tensor:
        """Lungs that are ill: patches, haze from below, a side that is white; still lungs."""
        soft = F.avg_pool2d(masks, 3, 1, 1, count_include_pad=False) * (masks > 0.2)
        fine = torch.where(self.chance(0.5) > 0, noise(5, self.count, self.rng), noise(11, self.count, self.rng))
        patches = torch.sigmoid(6 * (fine - self.between(-0.6, 1.0)))
        down = torch.linspace(0, 1, SIDE)[None, None, :, None]
        across = torch.linspace(-1, 1, SIDE)[None, None, None, :]
        below = torch.sigmoid(
            self.between(8, 40) * (down - self.between(0.4, 0.85) + 0.05 * noise(4, self.count, self.rng))
        )
        side = torch.sigmoid(12 * across * (1 - 2 * self.chance(0.5)))
        field = self.where(0.3, below, patches)
        field = self.where(0.35, field * side, field)
        field = self.where(0.06, side * torch.ones_like(field), field)
        flat = films[:, :, ::4, ::4].flatten(1).sort(dim=1).values
        rank = (self.between(0.55, 0.93).flatten() * (flat.shape[1] - 1)).long()
        white = flat.gather(1, rank[:, None])[:, :, None, None] + 0.04 * noise(24, self.count, self.rng)
        weight = soft * field * self.between(0.25, 0.95)
        return self.where(0.55, films + weight * (torch.maximum(white, films) - films), films)

    def tone(self, films: Tensor) -> Tensor:
        """Exposure, contrast, shading, clipping, the negative."""
        films = films.clamp(0, 1) ** torch.exp(self.between(-0.8, 0.8))
        films = films + self.where(0.5, noise(3, self.count, self.rng) * self.between(0, 0.12), torch.zeros(1))
        middle = films.mean(dim=(2, 3), keepdim=True)
        films = (middle + (films - middle) * self.between(0.5, 1.9)).clamp(0, 1)
        return self.where(0.10, 1 - films, films)

    def clutter(self, films: Tensor) -> Tensor:
        """Frames, plates with text, cables; blur and grain."""
        films = films.clone()
        draws = torch.rand(self.count, 40, generator=self.rng).tolist()
        for film, u in zip(films[:, 0], draws, strict=True):
            grey = float(u[0] > 0.5)
            if u[1] < 0.2:  # a frame, each side of its own width
                top, bottom, left, right = (int(v * SIDE / 8) for v in u[2:6])
                film[:top], film[SIDE - bottom :], film[:, :left], film[:, SIDE - right :] = (grey,) * 4
            for k in range(3):
                if u[6 + k] < 0.25:  # a marker or a line of text
                    y, x = (int(v * SIDE) for v in u[9 + 2 * k : 11 + 2 * k])
                    high, wide = 1 + int(4 * u[15 + k]), 2 + int(15 * u[18 + k])
                    plate = film[y : y + high, x : x + wide]
                    plate[:] = float(u[21 + k] > 0.3) * (0.7 + 0.3 * u[24 + k])
                    if u[27 + k] < 0.5:
                        plate[:, ::2] = 1 - plate[:, ::2]
            if u[30] < 0.2:  # a cable or tube
                t = np.linspace(0, 1, 2 * SIDE)
                x = u[31] + (u[32] - u[31]) * t + 0.25 * (u[33] - 0.5) * np.sin(np.pi * t * (1 + 3 * u[34]))
                y = u[35] + (u[36] - u[35]) * t
                inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
                film[(y[inside] * SIDE).astype(int), (x[inside] * SIDE).astype(int)] = 0.55 + 0.45 * float(u[37])
        blurred = F.avg_pool2d(films, 3, 1, 1, count_include_pad=False)
        coarse = F.interpolate(F.avg_pool2d(films, 2), size=(SIDE, SIDE), mode="bilinear")
        films = self.where(0.2, blurred, films)
        films = self.where(0.08, coarse, films)
        grain = torch.randn(films.shape, generator=self.rng)
        return (films + self.chance(0.4) * self.between(0, 0.07) * grain).clamp(0, 1)

    def without_lungs(self, films: Tensor, masks: Tensor) -> Tensor:
        """What is no chest film: films in wrong order of their parts, with their lungs gone, textures, noise."""
        cut = 4
        parts = F.unfold(films, SIDE // cut, stride=SIDE // cut)[:, :, torch.randperm(cut * cut, generator=self.rng)]
        shuffled = F.fold(parts, (SIDE, SIDE), SIDE // cut, stride=SIDE // cut)
        wide = F.max_pool2d(masks, 5, 1, 2)
        tissue = (films * (1 - wide)).sum((2, 3), keepdim=True) / (1 - wide).sum((2, 3), keepdim=True).clamp(min=1)
        filled = films * (1 - wide) + wide * tissue
        for _ in range(3):
            filled = films * (1 - wide) + wide * F.avg_pool2d(filled, 9, 1, 4, count_include_pad=False)
        texture = 0.5 + torch.stack([0.25 / k * noise(2 * 2**k, self.count, self.rng) for k in range(1, 5)]).sum(0)
        plain = self.between(0, 1) + self.between(0, 0.3) * torch.randn(films.shape, generator=self.rng)
        return self.where(0.35, shuffled, self.where(0.4, filled, self.where(0.7, texture, plain))).clamp(0, 1)


def batch(pool: Pool, left_out: str, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """(BATCH, 1, SIDE, SIDE) standardised films and the probability of lung, float32."""
    rng = np.random.default_rng([seed, step])
    kinds = [kind for kind in SHARES if kind != left_out]
    shares = np.array([SHARES[kind] for kind in kinds])
    drawn = rng.choice(kinds, BATCH, p=shares / shares.sum())
    whole = [np.flatnonzero(pool.kinds == kind) for kind in kinds]
    real = np.concatenate([rows for kind, rows in zip(kinds, whole, strict=True) if kind in SOURCES])
    rows = [int(rng.choice(real if kind == "none" else whole[kinds.index(kind)])) for kind in drawn]
    changes = Changes(BATCH, torch.Generator().manual_seed(int(rng.integers(2**62))))
    films, masks = changes.geometry(pool.films[rows][:, None].float() / 255, (pool.masks[rows][:, None].float() / 255))
    films = changes.opacities(films, masks)
    if len(none := np.flatnonzero(drawn == "none")):
        films[none] = Changes(len(none), changes.rng).without_lungs(films[none], masks[none])
        masks[none] = 0
    films = changes.clutter(changes.tone(films)) * 255
    spread = films.std(dim=(2, 3), keepdim=True, correction=0).clamp(min=1)
    return (films - films.mean(dim=(2, 3), keepdim=True)) / spread, masks


# ------------------------------------------------------------------------------------------------------------ training


def rate(step: int) -> float:
    """Up over the first twentieth, then down a half cosine."""
    warm = STEPS // 20
    if step < warm:
        return RATE * (step + 1) / warm
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm)))


def train(pool: Pool, name: str, work: Path, seed: int) -> UNet:
    """Train one network on all but the source `name`; goes on where a killed training was."""
    torch.manual_seed(seed)
    model = UNet()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED), use_buffers=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    state, start = work / f"{name}.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        start = saved["step"]
    model.train()
    with progress(f"train without {name}" if name != "all" else "train on all", total=STEPS, unit="steps") as counter:
        counter.start_at(start)
        for step in range(start, STEPS):
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
            films, wanted = batch(pool, name, seed, step)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(films.to(memory_format=torch.channels_last))
            logits = logits.float()
            found = logits.sigmoid()
            overlap = (2 * (found * wanted).sum((1, 2, 3)) + 10) / (found.sum((1, 2, 3)) + wanted.sum((1, 2, 3)) + 10)
            loss = F.binary_cross_entropy_with_logits(logits, wanted) + 0.5 * (1 - overlap).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            average.update_parameters(model)
            counter.advance(note=f"loss {loss.item():.3f}")
            if (step + 1) % 100 == 0 or step + 1 == STEPS:
                with whole_file(state) as temporary:
                    parts = {"model": model.state_dict(), "average": average.state_dict()}
                    torch.save(parts | {"optimiser": optimiser.state_dict(), "step": step + 1}, temporary)
    return cast(UNet, average.module).eval()


# --------------------------------------------------------------------------------------------------------- measurement


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean: percentile bootstrap over films, 2,000 draws."""
    films = [str(i) for i in range(len(values))]
    weights = np.concatenate(list(bootstrap_weights(films, replicates=2000, seed=seed)))
    low, high = np.percentile(weights @ values / len(values), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came out on one film, by a network that saw no film of its source."""

    case: Case
    #: Dice against :meth:`Case.lungs`, and against the mask as drawn.
    dice: float
    as_drawn: float
    quality: float
    #: Why the lungs do not count as found; empty where they do.
    reason: str

    @property
    def healthy(self) -> bool:
        return self.case.finding in HEALTHY


def measure(model: Path, wanted: list[Case]) -> list[Measured]:
    """Dice of each film at the mask's own size, whether or not its lungs count as found."""
    session, rows = load(model), []
    for case in wanted:
        mask, quality, reason = outline(session, decode(case.film))
        overlaps = [dice(mask, case.lungs(as_drawn=as_drawn)) for as_drawn in (False, True)]
        rows.append(
            Measured(case=case, dice=overlaps[0], as_drawn=overlaps[1], quality=quality, reason=reason),
        )
    return rows


def line(source: str, finding: str, rows: list[Measured]) -> str:
    values = np.array([row.dice for row in rows])
    low, high = interval(values)
    cells = [
        source,
        finding,
        f"{len(rows)}",
        f"{values.mean():.3f} ({low:.3f} to {high:.3f})",
        f"{np.median(values):.3f}",
        f"{values.min():.3f}",
        f"{(values < 0.9).sum()}",
        f"{sum(bool(row.reason) for row in rows)}",
        f"{np.mean([row.as_drawn for row in rows]):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(rows: list[Measured]) -> str:
    """The table of docs/lungs.md."""
    heads = ("left out", "finding", "films", "mean Dice (95 % interval)", "median", "lowest", "below 0.90", "not found")
    lines = [f"| {' | '.join([*heads, 'mean, as drawn'])} |", "|---" * (len(heads) + 1) + "|"]
    for source in SOURCES:
        of_source = [row for row in rows if row.case.source == source]
        for finding in sorted({row.case.finding for row in of_source}):
            lines.append(line(source, finding, [row for row in of_source if row.case.finding == finding]))
    for name, healthy in (("healthy", True), ("ill", False)):
        if kept := [row for row in rows if row.healthy == healthy]:
            lines.append(line("**each in turn**", f"**{name}**", kept))
    lines += ["", "The fifteen worst:", ""]
    for row in sorted(rows, key=lambda row: row.dice)[:15]:
        said = row.reason or "found"
        name = f"{row.case.source}/{row.case.film.name}"
        lines.append(f"- `{name}` ({row.case.finding}): {row.dice:.3f}, quality {row.quality:.2f}; {said}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of elsewhere/ and segmented/")
    parser.add_argument(
        "--work", type=Path, required=True, help="where unfinished trainings and their networks are kept"
    )
    parser.add_argument("--only", nargs="+", choices=[*SOURCES, "all"], help="some trainings, by the source left out")
    parser.add_argument("--table", action="store_true", help="measure the networks in --work and print the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)

    if not arguments.table:
        pool = read_pool(arguments.data)
        for name in arguments.only or [*SOURCES, "all"]:
            model = train(pool, name, arguments.work, arguments.seed)
            export(model, arguments.work / f"{name}.onnx")
            probe, _ = batch(pool, name, arguments.seed, STEPS)
            with torch.no_grad():
                wanted = model(probe).sigmoid().numpy()
            got = load(arguments.work / f"{name}.onnx").run(None, {"films": probe.numpy()})[0]
            print(f"{name}: exported, largest difference to torch {np.abs(got - wanted).max():.1e}")
    if arguments.table or not arguments.only:
        rows = []
        for name in SOURCES:
            if (model_file := arguments.work / f"{name}.onnx").exists():
                rows += measure(model_file, [case for case in cases(arguments.data) if case.source == name])
        print(table(rows))
        if (final := arguments.work / "all.onnx").exists():
            packaged = Path(vgg16_xray.trust.__file__).with_name(lungs.MODEL)
            with whole_file(packaged) as temporary:
                temporary.write_bytes(final.read_bytes())
            print(f"{packaged.name}: {packaged.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
