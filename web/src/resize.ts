/** Pillow's resizing of 8-bit grey, bit by bit: fixed-point weights, across first, then down. */
import type { Film } from "./film";

/** Bits behind the point of a weight: `PRECISION_BITS` of Pillow's Resample.c, 32 - 8 - 2. */
const BITS = 22;

export type Filter = "box" | "bilinear";

const SUPPORT: Record<Filter, number> = { box: 0.5, bilinear: 1 };
const WEIGHT: Record<Filter, (x: number) => number> = {
  box: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0),
  bilinear: (x) => Math.max(0, 1 - Math.abs(x)),
};

/** For each new pixel: the first old one that counts, and the weights from there on. */
function weights(from: number, to: number, filter: Filter): { first: number; of: Float64Array }[] {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const support = SUPPORT[filter] * wide;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const of = Float64Array.from({ length: last - first }, (_, k) => WEIGHT[filter]((k + first - centre + 0.5) / wide));
    const sum = of.reduce((a, b) => a + b, 0);
    return { first, of: of.map((weight) => Math.floor((weight / sum) * 2 ** BITS + 0.5)) };
  });
}

export function resize({ width, height, grey }: Film, toWidth: number, toHeight: number, filter: Filter): Uint8Array {
  const half = 2 ** (BITS - 1);
  const byte = (sum: number) => Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
  const narrow = new Uint8Array(toWidth * height);
  const columns = weights(width, toWidth, filter);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < toWidth; x++) {
      const { first, of } = columns[x];
      let sum = half;
      for (let k = 0, at = y * width + first; k < of.length; k++) sum += grey[at + k] * of[k];
      narrow[y * toWidth + x] = byte(sum);
    }
  const out = new Uint8Array(toWidth * toHeight);
  weights(height, toHeight, filter).forEach(({ first, of }, y) => {
    for (let x = 0; x < toWidth; x++) {
      let sum = half;
      for (let k = 0; k < of.length; k++) sum += narrow[(first + k) * toWidth + x] * of[k];
      out[y * toWidth + x] = byte(sum);
    }
  });
  return out;
}
