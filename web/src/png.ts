/**
 * PNG, decoded here: a browser's own decoder gives 8 bits, and a film of 12 or 16 bits would not be the one that the
 * model gets elsewhere. What is inflated is bounded by what the header says, so a bomb stops at its size.
 */
import { checkSize, Film, luminance, scaleByDepth, UnreadableFilm } from "./film";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const CHANNELS: Record<number, number> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
/** Adam7: first column and row, step in columns and rows. */
const PASSES = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
] as const; // prettier-ignore

/** Chunks that hold something packed beside the pixels, and where it begins. */
const PACKED: Record<string, (data: Uint8Array) => Uint8Array> = {
  zTXt: (data) => data.subarray(data.indexOf(0) + 2),
  iCCP: (data) => data.subarray(data.indexOf(0) + 2),
  iTXt: (data) => {
    const flag = data.indexOf(0) + 1;
    const language = data.indexOf(0, flag + 2) + 1;
    return data[flag] === 1 ? data.subarray(data.indexOf(0, language) + 1) : data.subarray(data.length);
  },
};
/** What such a chunk may unpack to, bytes: Pillow's `MAX_TEXT_CHUNK`, beyond which the command line refuses the file. */
const MOST_UNPACKED = 1 << 20;

export function isPng(bytes: Uint8Array): boolean {
  return SIGNATURE.every((value, i) => bytes[i] === value);
}

export async function decodePng(bytes: Uint8Array): Promise<Film> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts: Uint8Array[] = [];
  let palette = new Uint8Array();
  let transparency: Uint8Array | undefined;
  let [width, height, depth, colour, interlaced] = [0, 0, 0, 0, 0];
  for (let at = 8; ; ) {
    if (at + 12 > bytes.length) throw damaged("it ends too early");
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IEND") break;
    if (at + 12 + length > bytes.length) throw damaged("it ends too early");
    if (kind === "IHDR") {
      [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
      [depth, colour, interlaced] = [data[8], data[9], data[12]];
      if (!(colour in CHANNELS) || ![1, 2, 4, 8, 16].includes(depth)) throw damaged("its header makes no sense");
      checkSize(width, height);
    } else if (kind === "PLTE") palette = data.slice();
    else if (kind === "tRNS") transparency = data;
    else if (kind === "IDAT") parts.push(data);
    else if (kind in PACKED && (await unpacksBeyond(PACKED[kind](data)))) throw damaged("a note in it unpacks without end");
    at += 12 + length;
  }
  if (!width) throw damaged("it has no header");

  const channels = CHANNELS[colour];
  const passes = interlaced ? PASSES : ([[0, 0, 1, 1]] as const);
  const sizes = passes.map(([x, y, dx, dy]) => [Math.ceil((width - x) / dx), Math.ceil((height - y) / dy)] as const);
  const lineBytes = (columns: number) => Math.ceil((columns * channels * depth) / 8);
  const total = sizes.reduce((sum, [w, h]) => sum + (w > 0 && h > 0 ? h * (1 + lineBytes(w)) : 0), 0);
  const lines = await inflate(parts, total);

  const samples = new Uint16Array(width * height * channels);
  const step = Math.max(1, (channels * depth) >> 3);
  let at = 0;
  passes.forEach(([x0, y0, dx, dy], pass) => {
    const [w, h] = sizes[pass];
    if (w <= 0 || h <= 0) return;
    let before: Uint8Array = new Uint8Array(lineBytes(w));
    for (let row = 0; row < h; row++) {
      const line = lines.subarray(at + 1, at + 1 + before.length);
      unfilter(lines[at], line, before, step);
      at += 1 + before.length;
      before = line;
      for (let i = 0; i < w * channels; i++) {
        const x = x0 + Math.floor(i / channels) * dx;
        samples[((y0 + row * dy) * width + x) * channels + (i % channels)] = sample(line, i, depth);
      }
    }
  });
  return { width, height, grey: toGrey(samples, { depth, colour, channels, palette, transparency }) };
}

/** Exactly `total` bytes of the stream; what is there beyond them is not inflated. */
async function inflate(parts: Uint8Array[], total: number): Promise<Uint8Array> {
  const out = new Uint8Array(total);
  let filled = 0;
  try {
    const stream = new Blob(parts as BlobPart[]).stream().pipeThrough(new DecompressionStream("deflate"));
    const reader = stream.getReader();
    while (filled < total) {
      const { done, value } = await reader.read();
      if (done) break;
      out.set(value.subarray(0, total - filled), filled);
      filled += value.length;
    }
    void reader.cancel().catch(() => undefined);
  } catch {
    throw damaged("its pixels cannot be unpacked");
  }
  if (filled < total) throw damaged("it ends too early");
  return out;
}

/** Whether it unpacks to more than may be; what cannot be unpacked does not, and is passed over as elsewhere. */
async function unpacksBeyond(packed: Uint8Array): Promise<boolean> {
  let length = 0;
  try {
    const reader = new Blob([packed as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (let part = await reader.read(); !part.done && length <= MOST_UNPACKED; part = await reader.read())
      length += part.value.length;
    void reader.cancel().catch(() => undefined);
  } catch {
    // Ends early or is no zlib stream.
  }
  return length > MOST_UNPACKED;
}

/** PNG specification, section 9: each byte as its difference from its neighbours to the left (a), above (b), both (c). */
function unfilter(kind: number, line: Uint8Array, above: Uint8Array, step: number): void {
  if (kind === 0) return;
  if (kind > 4) throw damaged("a line has an unknown filter");
  for (let i = 0; i < line.length; i++) {
    const a = i >= step ? line[i - step] : 0;
    const b = above[i];
    if (kind === 1) line[i] += a;
    else if (kind === 2) line[i] += b;
    else if (kind === 3) line[i] += (a + b) >> 1;
    else {
      const c = i >= step ? above[i - step] : 0;
      const [da, db, dc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      line[i] += da <= db && da <= dc ? a : db <= dc ? b : c;
    }
  }
}

function sample(line: Uint8Array, i: number, depth: number): number {
  if (depth === 8) return line[i];
  if (depth === 16) return (line[2 * i] << 8) | line[2 * i + 1];
  const bit = i * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

interface Kind {
  depth: number;
  colour: number;
  channels: number;
  palette: Uint8Array;
  transparency: Uint8Array | undefined;
}

/** As `_to_grey`: 16-bit grey by its depth, colour as luminance, what is transparent over black. */
function toGrey(samples: Uint16Array, { depth, colour, channels, palette, transparency }: Kind): Uint8Array {
  if (colour === 0 && depth === 16) return scaleByDepth(samples);
  if (colour === 0 && depth === 8 && !transparency) return Uint8Array.from(samples);
  // Pillow reads 16-bit colour by its upper byte, and widens fewer than 8 bits of grey.
  const eight = (value: number) => (depth === 16 ? value >> 8 : depth < 8 ? (value * 255) / (2 ** depth - 1) : value);
  const transparent = transparency && colour !== 3 ? new Uint16Array(transparency.length / 2) : undefined;
  transparent?.forEach((_, i) => (transparent[i] = (transparency![2 * i] << 8) | transparency![2 * i + 1]));
  const grey = new Uint8Array(samples.length / channels);
  for (let i = 0; i < grey.length; i++) {
    const at = i * channels;
    let level: number;
    let alpha = 255;
    // Over black, luminance and opacity may be multiplied in either order, to a grey level.
    if (colour === 3) {
      const entry = 3 * samples[i];
      if (entry >= palette.length) throw damaged("a colour is not in its palette");
      level = luminance(palette[entry], palette[entry + 1], palette[entry + 2]);
      alpha = transparency?.[samples[i]] ?? 255;
    } else if (colour === 0 || colour === 4) {
      level = eight(samples[at]);
      if (colour === 4) alpha = eight(samples[at + 1]);
    } else {
      level = luminance(eight(samples[at]), eight(samples[at + 1]), eight(samples[at + 2]));
      if (colour === 6) alpha = eight(samples[at + 3]);
    }
    if (transparent?.every((value, c) => value === samples[at + c])) alpha = 0;
    grey[i] = alpha < 255 ? Math.round((level * alpha) / 255) : level;
  }
  return grey;
}

function damaged(how: string): UnreadableFilm {
  return new UnreadableFilm(`This PNG is damaged: ${how}.`);
}
