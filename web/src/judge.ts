/** From probabilities to an answer: the page's copy of `trust/calibrate.py` and `trust/refuse.py`. */
import type { Film } from "./film";
import { type Refusal, refuse } from "./refuse";

export interface Config {
  format: number;
  labels: string[];
  size: number;
  preprocessing: string;
  recipe: string;
  temperature: number;
  head: { cam_weights: number[][] | null };
  conformal: Conformal | null;
  refusal: Refusal | null;
  trained_on: { films?: Record<string, Record<string, number>> };
  figures: { test?: { images: number; overall: { accuracy?: Figure } } };
  sha256: Record<string, string>;
}

export interface Figure {
  value: number;
  low: number | null;
  high: number | null;
}

export interface Conformal {
  score: "lac" | "aps";
  alpha: number;
  thresholds: number[];
}

export interface Judgement {
  answer: "answered" | "abstained" | "refused";
  reason: string;
  /** Classes in the conformal set, the most probable first; null where the model has none. */
  set: number[] | null;
}

export function judge(config: Config, film: Film, probabilities: number[], embedding: Float32Array): Judgement {
  const set = config.conformal && conformalSet(config.conformal, probabilities);
  const [answer, reason] = config.refusal ? refuse(config.refusal, film, probabilities, embedding) : (["answered", ""] as const);
  return { answer, reason, set };
}

/** A set that is not empty holds the most probable class too: it is what the film is called. */
export function conformalSet(conformal: Conformal, probabilities: number[]): number[] {
  const order = probabilities.map((_, k) => k).sort((a, b) => probabilities[b] - probabilities[a]);
  let added = 0;
  const inside = order.filter((k) => {
    added = Math.min(added + probabilities[k], 1);
    const score = conformal.score === "lac" ? 1 - probabilities[k] : added;
    // A film at the threshold is let in, whatever a graph rounds.
    return score <= conformal.thresholds[k] + 1e-7;
  });
  return inside.length && inside[0] !== order[0] ? [order[0], ...inside] : inside;
}
