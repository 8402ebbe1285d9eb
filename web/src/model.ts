/** A bundle in the browser: the graph, its configuration, and what an answer is. */
import * as ort from "onnxruntime-web/wasm";
import loader from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import runtime from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import type { Film } from "./film";
import { type Config, type Judgement, judge } from "./judge";

export interface Answer extends Judgement {
  probabilities: number[];
  /** Evidence for each class at each place of the feature map, K x h x w; null where the head gives no exact map. */
  heat: { values: Float32Array; height: number; width: number } | null;
  seconds: number;
}

export class Model {
  private constructor(
    readonly config: Config,
    private readonly session: ort.InferenceSession,
  ) {}

  /** Fetch runtime, configuration and graph, telling how many bytes of how many have come. */
  static async load(folder: string, tell: (done: number, total: number) => void): Promise<Model> {
    const config = (await (await get(`${folder}/config.json`)).json()) as Config;
    if (config.format !== 1) throw new Error(`the model has format ${config.format}, and this page reads format 1`);
    const name = "model.int8.onnx" in config.sha256 ? "model.int8.onnx" : "model.onnx";
    const responses = await Promise.all([get(runtime), get(`${folder}/${name}`)]);
    const sizes = responses.map(lengthOf);
    let done = 0;
    const [wasm, graph] = await Promise.all(
      responses.map((response) => arrived(response, (bytes) => tell((done += bytes), sizes.includes(0) ? 0 : sizes[0] + sizes[1]))),
    );
    await checkHash(name, graph, config.sha256[name]);
    ort.env.wasm.wasmBinary = wasm.buffer as ArrayBuffer;
    ort.env.wasm.wasmPaths = { mjs: new URL(loader, location.href).href };
    // Threads need memory that they share, which browsers give to pages that let in nothing from elsewhere.
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
    return new Model(config, await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] }));
  }

  async answer(film: Film): Promise<Answer> {
    const started = performance.now();
    const pixels = new ort.Tensor("uint8", film.grey, [1, film.height, film.width]);
    const out = await this.session.run({ pixels });
    const probabilities = [...(out.probabilities.data as Float32Array)];
    const embedding = out.embedding.data as Float32Array;
    const heat = heatOf(out.feature_map, this.config.head.cam_weights);
    const judged = judge(this.config, film, probabilities, embedding);
    return { ...judged, probabilities, heat, seconds: (performance.now() - started) / 1000 };
  }
}

/** Grad-CAM: each class's weighted sum of the feature map's channels. Only evidence for a class is kept. */
function heatOf(map: ort.Tensor, weights: number[][] | null): Answer["heat"] {
  if (!weights) return null;
  const [, channels, height, width] = map.dims;
  const features = map.data as Float32Array;
  const size = height * width;
  const values = new Float32Array(weights.length * size);
  weights.forEach((weight, k) => {
    for (let c = 0; c < channels; c++)
      for (let i = 0; i < size; i++) values[k * size + i] += weight[c] * features[c * size + i];
  });
  return { values: values.map((value) => Math.max(0, value)), height, width };
}

async function get(address: string): Promise<Response> {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${new URL(address, location.href).pathname}: the server answered ${response.status}`);
  return response;
}

/** How many bytes will arrive, 0 where that is not said: a body that was compressed on its way is longer than its length. */
function lengthOf({ headers }: Response): number {
  return Number(headers.get("x-uncompressed-length") ?? (headers.has("content-encoding") ? 0 : headers.get("content-length")));
}

async function arrived(response: Response, tell: (bytes: number) => void): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for (const reader = response.body!.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    tell(value.length);
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Where the browser can (over https and on this machine), refuse a graph that is not the one the bundle names. */
async function checkHash(name: string, graph: Uint8Array, expected: string): Promise<void> {
  if (!crypto.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", graph as BufferSource));
  const found = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected) throw new Error(`${name}: its SHA-256 is not the one in config.json`);
}
