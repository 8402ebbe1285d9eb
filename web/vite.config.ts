import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";

import { defineConfig } from "vite";

// Not every web server knows that .mjs is a script.
const output = { assetFileNames: ({ names }: { names: string[] }) => `assets/[name]-[hash]${names[0]?.endsWith(".mjs") ? ".js" : "[extname]"}` };

/** The built page says what it was built from, and a test of the package compares. */
function builtFrom() {
  const files = readdirSync(".", { recursive: true, withFileTypes: true })
    .filter((file) => file.isFile())
    .map((file) => `${file.parentPath}/${file.name}`.replace(/^\.\//, ""))
    .filter((path) => !path.startsWith("node_modules/"))
    .sort();
  const hash = createHash("sha256");
  for (const path of files) hash.update(`${path}\0`).update(createHash("sha256").update(readFileSync(path)).digest());
  return hash.digest("hex");
}

// Relative addresses: the same files are served at / by `vgg16-xray serve` and from any folder of any web server.
export default defineConfig({
  base: "./",
  plugins: [
    {
      name: "built-from",
      generateBundle() {
        this.emitFile({ type: "asset", fileName: "built-from.txt", source: `${builtFrom()}\n` });
      },
    },
  ],
  // The .wasm and its loader are files beside the page: the page's Content-Security-Policy forbids code from strings.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "production"] },
  worker: { format: "es", rollupOptions: { output } },
  build: {
    outDir: "../src/vgg16_xray/serve/page",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: { input: ["index.html", "docs.html"], output },
  },
});
