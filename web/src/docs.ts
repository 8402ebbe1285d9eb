/** openapi.json as a page: no script of another host, as the usual viewers load. */
import "./style.css";

interface Operation {
  summary?: string;
  description?: string;
  parameters?: { name: string; in: string; required?: boolean; description?: string }[];
  requestBody?: { content: Record<string, unknown> };
  responses: Record<string, { description: string }>;
}

function el(tag: string, name: string, ...children: (Node | string)[]): HTMLElement {
  const made = document.createElement(tag);
  made.className = name;
  made.append(...children);
  return made;
}

/** What stands between double backticks is code. */
function withCode(text: string): (Node | string)[] {
  return text.split("``").map((part, i) => (i % 2 ? el("code", "", part) : part));
}

function door(method: string, path: string, operation: Operation): HTMLElement {
  const text = (operation.description ?? "").split("\n\n").map((paragraph) => el("p", "", ...withCode(paragraph)));
  const given = (operation.parameters ?? []).map(({ name, in: place, description }) => el("li", "", el("code", "", name), ` in ${place}. ${description ?? ""}`));
  const bodies = Object.keys(operation.requestBody?.content ?? {}).map((type) => el("li", "", "Body: ", el("code", "", type)));
  const answers = Object.entries(operation.responses).map(([status, { description }]) => el("li", "", el("code", "", status), ` ${description}`));
  return el(
    "article", "door",
    el("h2", "", el("span", "method", method.toUpperCase()), el("code", "", path)),
    el("p", "lead", operation.summary ?? ""),
    ...text,
    el("ul", "", ...given, ...bodies),
    el("h3", "", "Answers"),
    el("ul", "", ...answers),
  ); // prettier-ignore
}

const { paths } = (await (await fetch("./openapi.json")).json()) as { paths: Record<string, Record<string, Operation>> };
for (const [path, operations] of Object.entries(paths))
  for (const [method, operation] of Object.entries(operations)) document.getElementById("doors")!.append(door(method, path, operation));
