/** A small map of evidence, drawn over the film in colours that also tell light from dark without seeing colour. */

/** Stops of matplotlib's "inferno" from its third on: below them a film is black too. */
const STOPS = [
  [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84], [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70],
  [252, 255, 164],
]; // prettier-ignore
/** Longest side of the drawn map, pixels; the browser enlarges it. */
const DRAWN = 448;

function colour(value: number): [number, number, number] {
  const at = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const below = Math.min(Math.floor(at), STOPS.length - 2);
  const [a, b] = [STOPS[below], STOPS[below + 1]];
  return [0, 1, 2].map((i) => a[i] + (b[i] - a[i]) * (at - below)) as [number, number, number];
}

/** What is weak is also transparent, so that the film is seen where there is no evidence. */
const opaque = (value: number) => 255 * Math.min(1, 1.25 * value);

/** Returns the largest value; a map that is nothing anywhere is not drawn. */
export function drawHeat(canvas: HTMLCanvasElement, map: Float32Array, rows: number, columns: number, aspect: number): number {
  const largest = map.reduce((a, b) => Math.max(a, b), 0);
  canvas.width = aspect >= 1 ? DRAWN : Math.max(1, Math.round(DRAWN * aspect));
  canvas.height = aspect >= 1 ? Math.max(1, Math.round(DRAWN / aspect)) : DRAWN;
  if (!largest) return 0;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(canvas.width, canvas.height);
  const place = (i: number, size: number, cells: number): [number, number, number] => {
    const at = Math.min(Math.max(((i + 0.5) / size) * cells - 0.5, 0), cells - 1);
    const below = Math.min(Math.floor(at), Math.max(cells - 2, 0));
    return [below, Math.min(below + 1, cells - 1), at - below];
  };
  for (let y = 0, out = 0; y < canvas.height; y++) {
    const [top, bottom, down] = place(y, canvas.height, rows);
    for (let x = 0; x < canvas.width; x++, out += 4) {
      const [left, right, across] = place(x, canvas.width, columns);
      const upper = map[top * columns + left] * (1 - across) + map[top * columns + right] * across;
      const lower = map[bottom * columns + left] * (1 - across) + map[bottom * columns + right] * across;
      const value = (upper * (1 - down) + lower * down) / largest;
      image.data.set(colour(value), out);
      image.data[out + 3] = opaque(value);
    }
  }
  context.putImageData(image, 0, 0);
  return largest;
}

export function drawScale(canvas: HTMLCanvasElement): void {
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(canvas.width, 1);
  for (let x = 0; x < canvas.width; x++) {
    const value = x / (canvas.width - 1);
    image.data.set([...colour(value), opaque(value)], 4 * x);
  }
  context.putImageData(image, 0, 0);
}
