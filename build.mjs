// Builds dist/holdfast.js: all modules in one file that runs as CommonJS and as an ES module, whatever its name.
//
// esbuild writes CommonJS, which an ES module cannot run: it has no require. The file is therefore one async function
// that finds its own require: the one at hand, or one made by node:module. The syntax is lowered to Node 12, so that an old
// Node reads the file far enough to be told, in one line, what is needed.
import { build } from "esbuild";
import { chmodSync, mkdirSync, readFileSync, statSync } from "node:fs";

const { version } = JSON.parse(readFileSync(new URL("package.json", import.meta.url), "utf8"));
const outfile = new URL("dist/holdfast.js", import.meta.url).pathname;

const banner = `#!/usr/bin/env node
// holdfast ${version}: a remote server that is still there when you come back. MIT licence. Built from TypeScript sources.
(async function (require, module) {
if (typeof Deno === "undefined" && parseInt(process.versions.node, 10) < 18) {
  process.stderr.write("holdfast: error: Cannot run on Node " + process.versions.node + ": version 18 or later is needed\\n");
  process.exitCode = 1; return;
}
if (!require)  require = (await import("node:module")).createRequire(process.cwd() + "/");
`;

mkdirSync(new URL("dist/", import.meta.url), { recursive: true });
await build({
  entryPoints: [new URL("holdfast.ts", import.meta.url).pathname],
  outfile,
  bundle: true,
  platform: "node",
  format: "cjs",
  target: "node12",
  external: ["node:*"],
  define: { __VERSION__: JSON.stringify(version) },
  banner: { js: banner },
  footer: { js: '})(typeof require === "function" ? require : undefined, typeof module === "object" ? module : {});' },
  logLevel: "warning",
});
chmodSync(outfile, 0o755);
if (!process.argv.includes("--quiet")) console.log(`dist/holdfast.js: ${version}, ${Math.ceil(statSync(outfile).size / 1000)} kB`);
