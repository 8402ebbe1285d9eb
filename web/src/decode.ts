/** The page's one door for pixels: bytes in, an 8-bit greyscale film out, or one line that says why not. */
import { decodeDicom, isDicom } from "./dicom";
import { checkSize, count, Film, luminance, MAX_BYTES, UnreadableFilm } from "./film";
import { decodePng, isPng } from "./png";

export async function decode(file: Blob): Promise<Film> {
  if (!file.size) throw new UnreadableFilm("This file is empty.");
  if (file.size > MAX_BYTES) throw new UnreadableFilm(`A file must have at most ${count(MAX_BYTES)} bytes. This one has ${count(file.size)}.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const film = isDicom(bytes) ? decodeDicom(bytes) : isPng(bytes) ? await decodePng(bytes) : await decodeJpeg(bytes);
  checkSize(film.width, film.height);
  const first = film.grey[0];
  if (film.grey.every((level) => level === first)) throw new UnreadableFilm("Every pixel of this film is the same. There is nothing to see.");
  return film;
}

/** The browser's own decoder, without colour management, turned by EXIF: both as on the command line. */
async function decodeJpeg(bytes: Uint8Array): Promise<Film> {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8 || bytes[2] !== 0xff)
    throw new UnreadableFilm(`This page reads PNG, JPEG and DICOM. This file is ${looksLike(bytes)}.`);
  checkJpeg(bytes);
  let image: ImageBitmap;
  try {
    const blob = new Blob([bytes as BlobPart], { type: "image/jpeg" });
    image = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new UnreadableFilm("This JPEG is damaged.");
  }
  const { width, height } = image;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false })!;
  context.drawImage(image, 0, 0);
  image.close();
  const grey = new Uint8Array(width * height);
  for (let top = 0, at = 0; top < height; top += 512) {
    const { data } = context.getImageData(0, top, width, Math.min(512, height - top));
    for (let i = 0; i < data.length; i += 4) grey[at++] = luminance(data[i], data[i + 1], data[i + 2]);
  }
  return { width, height, grey };
}

/** Size, before memory is taken; and that the file goes on to its end: browsers paint half a JPEG without a word. */
function checkJpeg(bytes: Uint8Array): void {
  let at = 2;
  while (at + 9 < bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      checkSize((bytes[at + 7] << 8) | bytes[at + 8], (bytes[at + 5] << 8) | bytes[at + 6]);
    if (marker === 0xda) break;
    at += marker === 0xff ? 1 : 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
  }
  for (let end = bytes.length - 2; end > at; end--) if (bytes[end] === 0xff && bytes[end + 1] === 0xd9) return;
  throw new UnreadableFilm("This JPEG is damaged: it ends too early.");
}

function looksLike(bytes: Uint8Array): string {
  const start = String.fromCharCode(...bytes.subarray(0, 12));
  if (start.startsWith("%PDF")) return "a PDF";
  if (start.startsWith("PK\x03\x04")) return "a zip archive";
  if (start.startsWith("GIF8")) return "a GIF";
  if (start.startsWith("II*\0") || start.startsWith("MM\0*")) return "a TIFF, which the command line reads";
  if (start.startsWith("BM")) return "a BMP, which the command line reads";
  if (start.startsWith("RIFF") && start.endsWith("WEBP")) return "a WebP, which the command line reads";
  return bytes.subarray(0, 1024).includes(0) ? "something else" : "text";
}
