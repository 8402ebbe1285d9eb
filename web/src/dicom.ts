/** DICOM without compression: pixels, modality and VOI transformations as pydicom applies them. */
import dicomParser, { DataSet } from "dicom-parser";

import { checkSize, Film, luminance, scaleToRange, UnreadableFilm } from "./film";

/** Transfer syntaxes without compression, PS3.5 section A: implicit and explicit little endian, explicit big endian. */
const BIG_ENDIAN = "1.2.840.10008.1.2.2";
const PLAIN = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN];
const COMPRESSIONS: [string, string][] = [
  ["1.2.840.10008.1.2.1.99", "deflated"],
  ["1.2.840.10008.1.2.4.50", "JPEG"],
  ["1.2.840.10008.1.2.4.51", "JPEG, 12 bit"],
  ["1.2.840.10008.1.2.4.57", "lossless JPEG"],
  ["1.2.840.10008.1.2.4.70", "lossless JPEG"],
  ["1.2.840.10008.1.2.4.80", "JPEG-LS"],
  ["1.2.840.10008.1.2.4.81", "JPEG-LS"],
  ["1.2.840.10008.1.2.4.90", "JPEG 2000"],
  ["1.2.840.10008.1.2.4.91", "JPEG 2000"],
  ["1.2.840.10008.1.2.5", "RLE"],
];

export function isDicom(bytes: Uint8Array): boolean {
  // PS3.10, section 7.1: 128 bytes of preamble, then the prefix "DICM".
  return String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";
}

export function decodeDicom(bytes: Uint8Array): Film {
  const syntax = transferSyntax(bytes);
  if (!PLAIN.includes(syntax)) {
    const name = COMPRESSIONS.find(([uid]) => uid === syntax)?.[1] ?? `transfer syntax ${syntax || "missing"}`;
    throw new UnreadableFilm(
      `This page reads DICOM without compression, and this file is compressed (${name}). The command line reads it.`,
    );
  }
  try {
    return read(dicomParser.parseDicom(bytes), syntax === BIG_ENDIAN);
  } catch (error) {
    if (error instanceof UnreadableFilm) throw error;
    throw new UnreadableFilm("This DICOM file is damaged.");
  }
}

function transferSyntax(bytes: Uint8Array): string {
  try {
    const header = dicomParser.parseDicom(bytes, { untilTag: "x00020010" });
    return header.string("x00020010")?.trim() ?? "";
  } catch {
    throw new UnreadableFilm("This DICOM file is damaged.");
  }
}

function read(data: DataSet, bigEndian: boolean): Film {
  const [height, width] = [data.uint16("x00280010") ?? 0, data.uint16("x00280011") ?? 0];
  const pixels = data.elements.x7fe00010;
  if (!height || !width || !pixels) throw new UnreadableFilm("This DICOM object holds no image.");
  checkSize(width, height);
  const frames = data.intString("x00280008") || 1;
  if (frames !== 1) throw new UnreadableFilm(`A film must be a single radiograph. This DICOM object has ${frames} frames.`);

  const shown = data.string("x00280004")?.trim() ?? "";
  const channels = data.uint16("x00280002") ?? 1;
  const allocated = data.uint16("x00280100") ?? 0;
  const signed = data.uint16("x00280103") === 1;
  const size = width * height * channels;
  if (![8, 16, 32].includes(allocated)) throw new UnreadableFilm(`This DICOM file has ${allocated} bits a pixel; 8, 16 or 32 are read.`);
  if (pixels.length < (size * allocated) / 8) throw new UnreadableFilm("This DICOM file is damaged: it has too few pixels.");
  const view = new DataView(data.byteArray.buffer, data.byteArray.byteOffset + pixels.dataOffset, pixels.length);
  const name = `get${signed ? "Int" : "Uint"}${allocated}` as "getUint16";
  const value = (i: number) => view[name]((i * allocated) / 8, !bigEndian);

  if (channels === 3) {
    if (allocated !== 8 || (shown !== "RGB" && shown !== "YBR_FULL"))
      throw new UnreadableFilm(`This page reads grey DICOM and 8-bit RGB. This file is ${shown}, ${allocated} bits.`);
    return { width, height, grey: colourToGrey(value, width * height, shown, data.uint16("x00280006") === 1) };
  }
  if (channels !== 1 || !shown.startsWith("MONOCHROME"))
    throw new UnreadableFilm(`This page reads grey DICOM and 8-bit RGB. This file is ${shown || "of no known kind"}.`);
  const values = new Float64Array(size);
  for (let i = 0; i < size; i++) values[i] = value(i);
  const grey = scaleToRange(window(values, data, signed, bigEndian));
  return { width, height, grey: shown === "MONOCHROME1" ? grey.map((level) => 255 - level) : grey };
}

function colourToGrey(value: (i: number) => number, size: number, shown: string, byPlane: boolean): Uint8Array {
  const byte = (level: number) => Math.min(255, Math.max(0, Math.floor(level + 0.5)));
  const [pixel, plane] = byPlane ? [1, size] : [3, 1];
  const grey = new Uint8Array(size);
  for (let i = 0; i < size; i++) {
    const [a, b, c] = [value(i * pixel), value(i * pixel + plane), value(i * pixel + 2 * plane)];
    if (shown === "RGB") grey[i] = luminance(a, b, c);
    else {
      // PS3.3, section C.7.6.3.1.2.
      const [blue, red] = [b - 128, c - 128];
      grey[i] = luminance(byte(a + 1.402 * red), byte(a - 0.344136 * blue - 0.714136 * red), byte(a + 1.772 * blue));
    }
  }
  return grey;
}

/** Modality transformation, then VOI: a table where there is one, else the first window. PS3.3, section C.11. */
function window(values: Float64Array, data: DataSet, signed: boolean, bigEndian: boolean): Float64Array {
  const stored = data.uint16("x00280101") ?? 16;
  let [low, high] = signed ? [-(2 ** (stored - 1)), 2 ** (stored - 1) - 1] : [0, 2 ** stored - 1];
  const table = lookupTable(data, "x00283000", signed, bigEndian);
  const [slope, intercept] = [data.floatString("x00281053"), data.floatString("x00281052")];
  if (table) {
    values = values.map(table.look);
    [low, high] = [0, 2 ** table.depth - 1];
  } else if (slope !== undefined && intercept !== undefined) values = values.map((value) => value * slope + intercept);
  if (slope !== undefined && intercept !== undefined) [low, high] = [low * slope + intercept, high * slope + intercept];

  const voi = lookupTable(data, "x00283010", signed, bigEndian);
  if (voi) return values.map(voi.look);
  let [centre, width] = [data.floatString("x00281050"), data.floatString("x00281051")];
  if (centre === undefined || width === undefined) return values;
  const how = (data.string("x00281056") ?? "LINEAR").trim().toUpperCase();
  const range = high - low;
  if (how === "LINEAR" ? width < 1 : width <= 0) throw new UnreadableFilm("This DICOM file is damaged: its window has no width.");
  if (how === "SIGMOID") return values.map((value) => range / (1 + Math.exp((-4 * (value - centre!)) / width!)) + low);
  if (how === "LINEAR") [centre, width] = [centre - 0.5, width - 1];
  else if (how !== "LINEAR_EXACT") throw new UnreadableFilm(`This DICOM file asks for an unknown window function, ${how}.`);
  const [below, above] = [centre - width / 2, centre + width / 2];
  return values.map((value) =>
    value <= below ? low : value > above ? high : ((value - centre!) / width! + 0.5) * range + low,
  );
}

function lookupTable(data: DataSet, tag: string, signed: boolean, bigEndian: boolean) {
  const item = data.elements[tag]?.items?.[0]?.dataSet;
  const content = item?.elements.x00283006;
  if (!item?.elements.x00283002 || !content) return undefined;
  const entries = item.uint16("x00283002", 0) || 65536;
  const first = (signed ? item.int16("x00283002", 1) : item.uint16("x00283002", 1)) ?? 0;
  const depth = item.uint16("x00283002", 2) ?? 16;
  const view = new DataView(item.byteArray.buffer, item.byteArray.byteOffset + content.dataOffset, content.length);
  const levels = Array.from({ length: Math.min(entries, content.length >> 1) }, (_, i) => view.getUint16(2 * i, !bigEndian));
  return { depth, look: (value: number) => levels[Math.min(Math.max(Math.trunc(value - first), 0), levels.length - 1)] };
}
