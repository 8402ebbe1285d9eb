import "./style.css";

import { count } from "./film";
import { drawHeat, drawScale } from "./heat";
import type { Config, Figure } from "./judge";
import type { Answer } from "./model";
import { joined, megabytes, named, outOfHundred, percent } from "./words";
import type { Asked, Told } from "./worker";

const EXAMPLES = [
  ["normal", "Normal"],
  ["covid", "COVID-19"],
  ["lung-opacity", "Lung opacity"],
  ["viral-pneumonia", "Viral pneumonia"],
  ["no-film", "Not a film"],
];

const $ = <T extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as T;
const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
const ask = (message: Asked) => worker.postMessage(message);

let config: Config | undefined;
/** The film that was asked about last: answers about others come too late. */
let current = 0;
let answer: Answer | undefined;
let aspect = 1;
let size = "";

/** An element with attributes and children; text is text, never markup. */
function el(tag: string, attributes: Record<string, string> = {}, ...children: (Node | string)[]): HTMLElement {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// -- what comes in

function read(file: Blob): void {
  answer = undefined;
  $("heat").hidden = $("controls").hidden = true;
  document.body.dataset.state = "reading";
  say(el("p", { class: "eyebrow" }, "Reading the film"), el("p", { class: "headline" }, "One moment"));
  wait();
  ask({ kind: "film", id: ++current, file });
  $("lightbox").scrollIntoView({ block: "nearest" });
}

function take(files: FileList | undefined | null): void {
  if (files?.length) read(files[0]);
}

$("choose").onclick = $("another").onclick = () => $("file").click();
$<HTMLInputElement>("file").onchange = ({ target }) => {
  const input = target as HTMLInputElement;
  take(input.files);
  input.value = ""; // so that the same file may be chosen again
};
document.addEventListener("paste", (event) => take(event.clipboardData?.files));
for (const kind of ["dragenter", "dragover"] as const)
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("dragged");
  });
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragged");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragged");
  take(event.dataTransfer?.files);
});

for (const [name, title] of EXAMPLES) {
  const address = `./examples/${name}.jpg`;
  const button = el("button", { type: "button" }, el("img", { src: address, alt: "", width: "96", height: "96" }), title);
  button.onclick = async () => read(await (await fetch(address)).blob());
  $("examples").append(el("li", {}, button));
}

// -- what the worker tells

worker.onmessage = ({ data }: MessageEvent<Told>) => {
  if (data.kind === "progress") return progress(data.done, data.total);
  if (data.kind === "ready") return ready(data.config, data.threads);
  if (data.kind === "failed") return failed(data.reason);
  if (data.id !== current) return;
  if (data.kind === "film") showFilm(data.picture, data.width, data.height);
  else if (data.kind === "answer") showAnswer(data.answer);
  else unreadable(data.reason);
};
worker.onerror = () => failed("this browser cannot run it");

let loaded = 0;

function progress(done: number, total: number): void {
  loaded = total ? done / total : 0;
  for (const bar of document.querySelectorAll<HTMLProgressElement>("progress")) {
    if (total) bar.value = loaded;
    else bar.removeAttribute("value");
    bar.nextElementSibling!.textContent = loadedInWords(done, total);
  }
}

function loadedInWords(done: number, total: number): string {
  if (!total) return `Loading the model: ${megabytes(done)} MB`;
  return done < total ? `Loading the model: ${megabytes(done)} of ${megabytes(total)} MB` : "Starting the model";
}

/** Outside of what is announced: a screen reader should not say every megabyte. */
function wait(): void {
  $("details").replaceChildren(config ? el("p", { class: "pulse" }, "The model is looking at it.") : loading());
}

function loading(): HTMLElement {
  const text = loaded ? "Loading the model" : "Asking for the model";
  return el("div", { class: "loading" }, el("progress", { max: "1", value: String(loaded), "aria-label": "Loading the model" }), el("p", { class: "soft small" }, text));
}

function ready(found: Config, threads: boolean): void {
  config = found;
  document.body.dataset.model = "ready";
  describeModel(found, threads);
  if (document.body.dataset.state === "empty") welcome();
  else if (document.body.dataset.state === "reading") wait();
}

function failed(reason: string): void {
  document.body.dataset.state = "failed";
  const again = el("button", { type: "button", class: "primary" }, "Try again");
  again.onclick = () => location.reload();
  say(
    el("p", { class: "eyebrow stop" }, "No model"),
    el("p", { class: "headline" }, "The model did not load"),
    el("p", {}, sentence(reason)),
    again,
  );
}

// -- what is shown

function say(...children: Node[]): void {
  $("answer").replaceChildren(...children);
  $("details").replaceChildren();
}

function welcome(): void {
  document.body.dataset.state = "empty";
  say(
    el("p", { class: "eyebrow" }, config ? "Ready" : "One moment"),
    el("p", { class: "headline" }, "What does a network see in this film?"),
    el(
      "ol",
      { class: "gets" },
      el("li", {}, "Its answer, with a probability that was calibrated: a promise that can be counted."),
      el("li", {}, "The classes that cannot be ruled out, or a plain no where it should not answer."),
      el("li", {}, "The places in the film that spoke for it, as a heat map over the film."),
    ),
  );
  if (!config) wait();
}

function showFilm(picture: ImageBitmap, width: number, height: number): void {
  aspect = width / height;
  size = `${width} × ${height}`;
  const canvas = $<HTMLCanvasElement>("film");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d")!.drawImage(picture, 0, 0);
  canvas.setAttribute("aria-label", `The film, ${width} by ${height} pixels`);
  picture.close();
  $("stack").style.aspectRatio = String(aspect);
  $("stack").style.setProperty("--aspect", String(aspect));
  $("empty").hidden = true;
  $("shown").hidden = $("controls").hidden = false;
  $("slider").hidden = $("no-map").hidden = true;
}

function showAnswer(found: Answer): void {
  answer = found;
  const { labels } = config!;
  const best = found.probabilities.indexOf(Math.max(...found.probabilities));
  const [name, p] = [named(labels[best]), found.probabilities[best]];
  document.body.dataset.state = found.answer;
  const guess = el("p", { class: "soft" }, `Its best guess would be ${name}, at ${percent(p)}. That is not an answer.`);
  if (found.answer === "answered")
    say(
      el("p", { class: "eyebrow" }, "The answer"),
      el("p", { class: "headline" }, name, el("span", { class: "figure" }, percent(p))),
      el("p", { class: "soft" }, outOfHundred(p)),
      setInWords(found.set),
    );
  else if (found.answer === "abstained")
    say(
      el("p", { class: "eyebrow warn" }, "No answer"),
      el("p", { class: "headline" }, "The model does not commit itself"),
      el("p", {}, sentence(found.reason)),
      guess,
      setInWords(found.set),
    );
  else
    say(
      el("p", { class: "eyebrow stop" }, "Refused"),
      el("p", { class: "headline" }, "Not a film that it can judge"),
      el("p", {}, sentence(found.reason)),
    );
  const bars = classes(found, best);
  $("details").append(
    found.answer === "refused" ? el("details", {}, el("summary", {}, "What it would have said"), bars) : bars,
    el("p", { class: "soft small took" }, `${size} pixels. Took ${found.seconds.toFixed(2)} s, in this window.`),
  );
  // What a picture that is no film seems to show means nothing.
  if (found.answer === "refused") answer.heat = null;
  $("no-map").hidden = found.answer === "refused" || found.heat !== null;
  $("slider").hidden = found.heat === null;
  showHeat(best);
}

function setInWords(set: number[] | null): Node {
  if (!set) return document.createTextNode("");
  const { conformal, labels } = config!;
  const times = Math.round((1 - conformal!.alpha) * 100);
  const names = set.map((k) => named(labels[k]));
  // Another promise than the probability above: of the list, whatever film it is for, and not of this answer.
  const list = names.length ? `Not ruled out: ${joined(names)}` : "None of its classes fits this film well";
  const meaning = names.length
    ? `A list like this one holds the true class for ${times} of 100 films like those it was calibrated on.`
    : `The true class fits better than this for ${times} of 100 films like those it was calibrated on.`;
  return el("div", { class: "set" }, el("p", {}, el("strong", {}, list)), el("p", { class: "small" }, meaning));
}

/** A row a class: its probability as a bar, and a choice of the class whose evidence is shown. */
function classes(found: Answer, best: number): HTMLElement {
  const rows = config!.labels.map((label, k) => {
    const input = el("input", { type: "radio", name: "class", value: String(k) }) as HTMLInputElement;
    input.checked = k === best;
    input.onchange = () => showHeat(k);
    const fill = el("span", { class: "fill" });
    fill.style.width = `${100 * found.probabilities[k]}%`;
    const inside = found.set?.includes(k) ? [el("span", { class: "tag" }, "not ruled out")] : [];
    return el(
      "label",
      { class: k === best ? "class best" : "class", "data-label": label, "data-p": found.probabilities[k].toFixed(6) },
      input,
      el("span", { class: "name" }, named(label), ...inside),
      el("span", { class: "p" }, percent(found.probabilities[k])),
      el("span", { class: "track", "aria-hidden": "true" }, fill),
    );
  });
  const legend = found.heat ? "Probability of each class. Choose one to see its evidence." : "Probability of each class";
  if (!found.heat) rows.forEach((row) => (row.querySelector("input")!.disabled = true));
  return el("fieldset", { class: "classes" }, el("legend", {}, legend), ...rows);
}

function showHeat(k: number): void {
  const canvas = $<HTMLCanvasElement>("heat");
  if (!answer?.heat) return void (canvas.hidden = true);
  const { values, height, width } = answer.heat;
  const map = values.subarray(k * height * width, (k + 1) * height * width);
  const largest = drawHeat(canvas, map, height, width, aspect);
  const name = named(config!.labels[k]);
  canvas.hidden = !largest;
  $("legend-text").textContent = largest
    ? `Evidence for ${name}: none, to the most in this film`
    : `Nothing in this film speaks for ${name}`;
  fade();
}

function fade(): void {
  $("heat").style.opacity = String(Number($<HTMLInputElement>("opacity").value) / 100);
}

function unreadable(reason: string): void {
  document.body.dataset.state = "error";
  $("shown").hidden = $("controls").hidden = true;
  $("empty").hidden = false;
  say(
    el("p", { class: "eyebrow stop" }, "Cannot be read"),
    el("p", { class: "headline" }, "This is no film that the page can read"),
    el("p", {}, reason),
  );
}

function describeModel(found: Config, threads: boolean): void {
  const { train } = found.trained_on.films ?? {};
  const test = found.figures.test;
  const accuracy = test?.overall.accuracy;
  const facts: [string, string | undefined][] = [
    ["Classes", found.labels.map(named).join(", ")],
    ["Learned from", train && `${count(total(train))} films: ${Object.entries(train).map(([label, n]) => `${named(label)} ${count(n)}`).join(", ")}`],
    ["Tested on", accuracy && `${count(test.images)} other films of the same collection: right on ${share(accuracy)}`],
    ["Network", `VGG16, recipe ${found.recipe}, in ${"model.int8.onnx" in found.sha256 ? "8-bit integers" : "32-bit floats"}`],
    ["Runs on", threads ? "several threads" : "one thread: this address does not isolate the page, so it may not use more"],
  ];
  $("model").replaceChildren(...facts.flatMap(([name, text]) => (text ? [el("dt", {}, name), el("dd", {}, text)] : [])));
}

const total = (counts: Record<string, number>) => Object.values(counts).reduce((a, b) => a + b, 0);

/** A share with its 95 % interval. */
function share({ value, low, high }: Figure): string {
  const percents = (p: number) => (100 * p).toFixed(1);
  return `${percents(value)} %${low === null || high === null ? "" : ` (${percents(low)} to ${percents(high)})`}`;
}

/** A reason as a sentence, with labels as they are named here. */
function sentence(reason: string): string {
  const text = (config?.labels ?? []).reduce((all, label) => all.replaceAll(label, named(label)), reason);
  return `${text.charAt(0).toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;
}

$("opacity").oninput = fade;
drawScale($<HTMLCanvasElement>("scale"));
document.body.dataset.state = "empty";
welcome();
ask({ kind: "load", folder: new URL("./model", location.href).href });
