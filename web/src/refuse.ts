/** Where the model has no business answering: the page's copy of `trust/refuse.py`. */
import type { Film } from "./film";
import { resize } from "./resize";

/** Half-precision numbers in base64, and their shape. */
interface Packed {
  shape: number[];
  float16: string;
}

export interface Refusal {
  film: Record<"centre" | "spread" | "directions" | "deviations" | "mean" | "scale" | "weights" | "bias", Packed> & {
    threshold: number;
  };
  evidence: { thresholds: number[] };
  labels: string[];
}

/** What a picture is taken for, after "film". */
const REASONS = [
  "it looks like a chest film that lies on its side or stands on its head",
  "it looks like a negative: air white and bones black",
  "it looks like a photograph of a film or of a monitor; take the file itself",
  "it does not look like a frontal chest radiograph",
];
const SMALL = 16;
const LARGE = 128;

export function refuse(refusal: Refusal, film: Film, probabilities: number[], embedding: Float32Array): ["answered" | "abstained" | "refused", string] {
  const of = verdicts(refusal.film, look(film), embedding);
  if (of[0] < refusal.film.threshold) {
    const others = of.slice(1);
    return ["refused", REASONS[others.indexOf(Math.max(...others))]];
  }
  const best = probabilities.indexOf(Math.max(...probabilities));
  const [wanted, found] = [refusal.evidence.thresholds[best], probabilities[best]];
  if (found < wanted)
    return [
      "abstained",
      `${refusal.labels[best]} is answered from a probability of ${wanted.toFixed(3)} on, found ${found.toFixed(3)}: ` +
        "below it, films of other hospitals are too often taken for it",
    ];
  return ["answered", ""];
}

const sum = (values: ArrayLike<number>) => Array.prototype.reduce.call(values, (a, b) => (a as number) + (b as number), 0) as number;
const mean = (values: ArrayLike<number>) => sum(values) / values.length;
const deviation = (values: number[], middle = mean(values)) => Math.sqrt(mean(values.map((value) => (value - middle) ** 2)));
const share = (values: number[], is: (value: number) => boolean) => values.filter(is).length / values.length;
const clip = (value: number, bound: number) => Math.min(bound, Math.max(-bound, value));

function different(grey: Uint8Array): number {
  const seen = new Uint8Array(256);
  for (let i = 0; i < grey.length; i++) seen[grey[i]] = 1;
  return sum(seen);
}

/** What a picture looks like from afar, whatever its size. */
export function look(film: Film): number[] {
  const small = [...resize(film, SMALL, SMALL, "box")];
  const large = [...resize(film, LARGE, LARGE, "bilinear")];
  const greys = new Array<number>(16).fill(0);
  for (const value of large) greys[value >> 4] += 1 / large.length;
  const across: number[] = [];
  const down: number[] = [];
  const border: number[] = [];
  large.forEach((value, i) => {
    const [y, x] = [Math.floor(i / LARGE), i % LARGE];
    if (x) across.push(Math.abs(value - large[i - 1]));
    if (y) down.push(Math.abs(value - large[i - LARGE]));
    // A corner belongs to two borders.
    if (y < 4 || y >= LARGE - 4) border.push(value);
    if (x < 4 || x >= LARGE - 4) border.push(value);
  });
  const middle = mean(small);
  const level = small.map((value) => value - middle);
  const power = Math.max(sum(level.map((value) => value ** 2)), 1e-9);
  const against = (place: (y: number, x: number) => number) =>
    sum(level.map((value, i) => value * level[place(Math.floor(i / SMALL), i % SMALL)])) / power;
  const figures = [
    mean(large) / 255,
    deviation(large) / 255,
    (mean(border) - mean(large)) / 255,
    deviation(border) / 255,
    share(large, (value) => value <= 2),
    share(large, (value) => value >= 253),
    share(across, (value) => value === 0),
    Math.log1p(mean(across)),
    Math.log1p(mean(down)),
    Math.log1p(percentile(across, 0.99)),
    Math.log1p(percentile(down, 0.99)),
    against((y, x) => y * SMALL + (SMALL - 1 - x)),
    against((y, x) => (SMALL - 1 - y) * SMALL + x),
    different(film.grey) / 256,
    -sum(greys.map((grey) => grey * Math.log(grey + 1e-9))),
  ];
  const scale = Math.max(deviation(small), 1);
  return [...level.map((value) => value / scale), ...greys, ...figures, ...waves(large)];
}

/** Moiré and screens are waves: mean power in five rings of frequencies, and how far the largest is above the median. */
function waves(large: number[]): number[] {
  const middle = mean(large);
  const hann = Array.from({ length: LARGE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / (LARGE - 1)));
  const re = Float64Array.from(large, (value, i) => (value - middle) * hann[Math.floor(i / LARGE)] * hann[i % LARGE]);
  const im = new Float64Array(re.length);
  for (let i = 0; i < LARGE; i++) fourier(re, im, i * LARGE, 1);
  for (let i = 0; i < LARGE; i++) fourier(re, im, i, LARGE);
  const bounds = [3, 6, 12, 24, 40, 64];
  const rings: number[][] = bounds.slice(1).map(() => []);
  for (let y = 0; y < LARGE; y++)
    for (let x = 0; x <= LARGE / 2; x++) {
      const radius = Math.hypot(y < LARGE / 2 ? y : y - LARGE, x);
      const ring = bounds.findIndex((bound, i) => radius >= bound && radius < bounds[i + 1]);
      if (ring >= 0) rings[ring].push(re[y * LARGE + x] ** 2 + im[y * LARGE + x] ** 2);
    }
  const bands = rings.map((ring) => Math.log(mean(ring) + 1));
  const peaks = rings.map((ring) => Math.log((ring.reduce((a, b) => Math.max(a, b)) + 1) / (percentile(ring, 0.5) + 1)));
  return [...bands, ...peaks];
}

/** Fast Fourier transform of LARGE numbers that lie `step` apart, in place. */
function fourier(re: Float64Array, im: Float64Array, start: number, step: number): void {
  const swap = (part: Float64Array, a: number, b: number) => ([part[a], part[b]] = [part[b], part[a]]);
  for (let i = 1, j = 0; i < LARGE; i++) {
    let bit = LARGE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) for (const part of [re, im]) swap(part, start + i * step, start + j * step);
  }
  for (let size = 2; size <= LARGE; size *= 2)
    for (let k = 0; k < size / 2; k++) {
      const [cos, sin] = [Math.cos((-2 * Math.PI * k) / size), Math.sin((-2 * Math.PI * k) / size)];
      for (let i = k; i < LARGE; i += size) {
        const [a, b] = [start + i * step, start + (i + size / 2) * step];
        const [x, y] = [re[b] * cos - im[b] * sin, re[b] * sin + im[b] * cos];
        [re[b], im[b], re[a], im[a]] = [re[a] - x, im[a] - y, re[a] + x, im[a] + y];
      }
    }
}

/** As numpy: between two values, by where the share falls. */
function percentile(values: number[], at: number): number {
  const sorted = Float64Array.from(values).sort();
  const place = at * (sorted.length - 1);
  const below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

/** What a picture is, as probabilities: a film, or one of the REASONS why not. */
function verdicts(film: Refusal["film"], looks: number[], embedding: Float32Array): number[] {
  const spread = unpacked(film.spread);
  const centre = unpacked(film.centre);
  const centred = Array.from(embedding, (value, i) => (value - centre[i]) / spread[i]);
  const raw = times(centred, film.directions);
  const rest = Math.log(Math.max(sum(centred.map((v) => v ** 2)) - sum(raw.map((v) => v ** 2)), 1e-3));
  const deviations = unpacked(film.deviations);
  const along = raw.map((value, i) => value / deviations[i]);
  const far = Math.log(Math.max(mean(along.map((v) => v ** 2)), 1e-3));
  const inputs = [...looks, ...along.map((value) => clip(value, 8)), rest, far];
  const [middle, scale, bias] = [unpacked(film.mean), unpacked(film.scale), unpacked(film.bias)];
  const logits = times(inputs.map((value, i) => clip((value - middle[i]) / scale[i], 6)), film.weights).map((v, i) => v + bias[i]);
  const top = Math.max(...logits);
  const parts = logits.map((logit) => Math.exp(logit - top));
  return parts.map((part) => part / sum(parts));
}

function times(row: number[], packed: Packed): number[] {
  const matrix = unpacked(packed);
  const columns = packed.shape[1];
  const out = new Array<number>(columns).fill(0);
  row.forEach((value, i) => {
    for (let c = 0; c < columns; c++) out[c] += value * matrix[i * columns + c];
  });
  return out;
}

const unpackedBefore = new WeakMap<Packed, Float64Array>();

function unpacked(packed: Packed): Float64Array {
  const before = unpackedBefore.get(packed);
  if (before) return before;
  const bytes = Uint8Array.from(atob(packed.float16), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = Float64Array.from({ length: bytes.length / 2 }, (_, i) => half(view.getUint16(2 * i, true)));
  unpackedBefore.set(packed, values);
  return values;
}

/** IEEE 754 half precision: a sign, 5 bits of exponent, 10 of fraction. */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
