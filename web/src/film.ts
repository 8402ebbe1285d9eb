/** What a film is to the model: the page's copy of what `films/decode.py` does, step by step. */

export interface Film {
  width: number;
  height: number;
  /** height x width, 0 black to 255 white. */
  grey: Uint8Array;
}

/** A file that is not a usable radiograph; its message is one line for the reader. */
export class UnreadableFilm extends Error {}

export const MAX_PIXELS = 100_000_000;
export const MIN_SIDE = 32;
export const MAX_RATIO = 32;
export const MAX_BYTES = 512 * 1024 * 1024;

export function checkSize(width: number, height: number): void {
  if (width * height > MAX_PIXELS)
    throw new UnreadableFilm(`A film must have at most ${count(MAX_PIXELS)} pixels. This one has ${width} × ${height}.`);
  if (Math.min(width, height) < MIN_SIDE)
    throw new UnreadableFilm(`A film must have at least ${MIN_SIDE} pixels a side. This one has ${width} × ${height}.`);
  if (Math.max(width, height) > MAX_RATIO * Math.min(width, height))
    throw new UnreadableFilm(`A film must be at most ${MAX_RATIO} times as long as wide. This one has ${width} × ${height}.`);
}

/** Luminance of 8-bit colours, ITU-R 601-2 in the same fixed point as Pillow's mode "L". */
export function luminance(red: number, green: number, blue: number): number {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
}

/** Whole numbers of more than 8 bits, by the smallest usual depth that holds the largest. */
export function scaleByDepth(values: Uint16Array): Uint8Array {
  let largest = 0;
  let widened = true; // 8 bits widened to 16 are multiples of 257 = 65535 / 255, even where the film is dark.
  for (const value of values) {
    if (value > largest) largest = value;
    if (value % 257) widened = false;
  }
  const depth = widened ? 16 : [8, 10, 12, 14, 16].find((bits) => largest < 2 ** bits)!;
  const full = 2 ** depth - 1;
  const half = full >> 1;
  const scaled = new Uint8Array(values.length);
  for (let i = 0; i < scaled.length; i++) scaled[i] = (values[i] * 255 + half) / full;
  return scaled;
}

/** From the smallest value, 0, to the largest, 255. */
export function scaleToRange(values: Float64Array): Uint8Array {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (Number.isNaN(value)) low = NaN;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!Number.isFinite(high - low)) throw new UnreadableFilm("Pixels must be finite. This film has NaN or infinity.");
  const factor = high > low ? 255 / (high - low) : 0;
  const scaled = new Uint8Array(values.length);
  for (let i = 0; i < scaled.length; i++) scaled[i] = roundHalfToEven((values[i] - low) * factor);
  return scaled;
}

/** As numpy rounds. */
function roundHalfToEven(value: number): number {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

export function count(value: number): string {
  return value.toLocaleString("en");
}
