/** All that computes: decoding and the model run here, so that the window never freezes. */
import { decode } from "./decode";
import { type Film, UnreadableFilm } from "./film";
import type { Config } from "./judge";
import { type Answer, Model } from "./model";

export type Asked = { kind: "load"; folder: string } | { kind: "film"; id: number; file: Blob };
export type Told =
  | { kind: "progress"; done: number; total: number }
  | { kind: "ready"; config: Config; threads: boolean }
  | { kind: "failed"; reason: string }
  | { kind: "film"; id: number; width: number; height: number; picture: ImageBitmap }
  | { kind: "answer"; id: number; answer: Answer }
  | { kind: "unreadable"; id: number; reason: string };

/** Longest side of the picture that is shown, pixels: as much as a large screen shows. */
const SHOWN = 1600;

const tell = (message: Told, moved: Transferable[] = []) => self.postMessage(message, { transfer: moved });
let model: Promise<Model> | undefined;

self.onmessage = ({ data }: MessageEvent<Asked>) => {
  if (data.kind === "load") {
    model = Model.load(data.folder, (done, total) => tell({ kind: "progress", done, total }));
    model.then(
      ({ config }) => tell({ kind: "ready", config, threads: self.crossOriginIsolated }),
      (error: unknown) => tell({ kind: "failed", reason: error instanceof Error ? error.message : String(error) }),
    );
  } else void answer(data.id, data.file);
};

async function answer(id: number, file: Blob): Promise<void> {
  let film: Film;
  try {
    film = await decode(file);
  } catch (error) {
    const reason = error instanceof UnreadableFilm ? error.message : "This file cannot be read as a film.";
    return tell({ kind: "unreadable", id, reason });
  }
  const picture = await pictureOf(film);
  tell({ kind: "film", id, width: film.width, height: film.height, picture }, [picture]);
  const ready = await model?.catch(() => undefined);
  if (!ready) return;
  try {
    tell({ kind: "answer", id, answer: await ready.answer(film) });
  } catch (error) {
    tell({ kind: "unreadable", id, reason: `The model could not run: ${error instanceof Error ? error.message : error}` });
  }
}

async function pictureOf({ width, height, grey }: Film): Promise<ImageBitmap> {
  const colours = new ImageData(width, height);
  for (let i = 0; i < grey.length; i++) {
    colours.data[4 * i] = colours.data[4 * i + 1] = colours.data[4 * i + 2] = grey[i];
    colours.data[4 * i + 3] = 255;
  }
  const scale = Math.min(1, SHOWN / Math.max(width, height));
  return createImageBitmap(colours, {
    resizeWidth: Math.max(1, Math.round(width * scale)),
    resizeHeight: Math.max(1, Math.round(height * scale)),
    resizeQuality: "high",
  });
}
