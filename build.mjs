/**
 * Builds `dist/`: `holdfast.js`, all modules in one file that runs under any runtime, by any name, in either module type; its hash and types; the
 * library for applications, as ES module and CommonJS, which starts daemons from the file beside it; and a package.json that says that what ends in
 * .js is CommonJS, since the sources beside it are ES modules.
 *
 *     #!/usr/bin/env sh                           executed: a shell finds a runtime
 *     ":" //; …                                   to JavaScript a string and a comment, to a shell a command
 *     ;(async function holdfast(require, module) {
 *       is this Node too old?                     the syntax of the file is Node 12's, so that an old one reads as far as this
 *       require, or one made by node:module       an ES module has none
 *       const __build = {…}                       version, hash, run or imported, its own text: see program.ts
 *       …what esbuild makes of the modules…
 *     })(require, module)
 *
 * One function, so that the program has its own text, even when it was read from stdin: a function's toString() is its source. The lines for a
 * shell are not in it.
 *
 * The hash stands in the file itself, and is that of the file with zeros in its place: `sed "s/$hash/$(printf %064d 0)/" holdfast.js | sha256sum`.
 * That of the file as it is stands in `holdfast.js.sha256`, for `sha256sum -c`. Two builds of the same sources are the same bytes.
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { build } from "esbuild";

/** An administrator is to read it: what is larger than this has been filled with something. */
const maxBytes = 472_000;
const root = fileURLToPath(new URL(".", import.meta.url));
const { values: options } = parseArgs({
  options: { quiet: { type: "boolean" }, out: { type: "string", default: `${root}dist` } },
});
const { version } = JSON.parse(readFileSync(`${root}package.json`, "utf8"));
const unhashed = "0".repeat(64);

// Each of its lines begins in JavaScript with a string and a comment. An ssh command has a short PATH: what version managers and packages install is
// looked for where they put it, the newest. A node beside the file comes first. One that is too old says so itself.
const places = [
  "~/.nvm/versions/node/*/bin ~/.local/share/fnm/node-versions/*/installation/bin ~/.volta/bin",
  "~/.local/share/mise/installs/node/*/bin ~/.asdf/installs/nodejs/*/bin /usr/local/bin /opt/homebrew/bin /snap/bin",
];
const head = `#!/usr/bin/env sh
":" //; case $0 in */*) here=\${0%/*} ;; *) here=. ;; esac; best=; top=0
":" //; age() { v=$("$1" --version 2>/dev/null); v=\${v#v}; m=\${v#*.}; case $v in 1[89].*|[2-9][0-9].*) echo $((\${v%%.*} * 1000 + \${m%%.*})) ;; *) echo 0 ;; esac; }
":" //; for n in "$here/node" node nodejs; do [ "$(age "$n")" -gt 0 ] && exec "$n" "$0" "$@"; done
":" //; command -v bun >/dev/null && exec bun "$0" "$@"; command -v deno >/dev/null && exec deno run --allow-all "$0" "$@"
":" //; for n in ${places[0]}; do a=$(age "$n/node"); [ "$a" -gt "$top" ] && best=$n/node top=$a; done
":" //; for n in ${places[1]}; do a=$(age "$n/node"); [ "$a" -gt "$top" ] && best=$n/node top=$a; done
":" //; [ -z "$best" ] || exec "$best" "$0" "$@"
":" //; for n in ~/.bun/bin /usr/local/bin /opt/homebrew/bin; do [ -x "$n/bun" ] && exec "$n/bun" "$0" "$@"; done
":" //; for n in ~/.deno/bin /usr/local/bin /opt/homebrew/bin; do [ -x "$n/deno" ] && exec "$n/deno" run --allow-all "$0" "$@"; done
":" //; command -v node >/dev/null && exec node "$0" "$@"
":" //; echo "holdfast: error: Cannot run: there is no node, nodejs, bun or deno, neither on the PATH nor where version managers put one" >&2
":" //; echo "holdfast: hint: put a node (18 or later) beside this file, as $here/node" >&2; exit 127
// holdfast ${version}, MIT licence: built from TypeScript sources
`;
// "this" is undefined in an ES module, where names of these may be those of a script from stdin that has imported it
const tail = `})(...(this && typeof require === "function" ? [require, module] : [undefined, {}]));
`;

// Run or imported: CommonJS knows. A script from stdin has no main module; and an ES module, without the import.meta that CommonJS cannot parse, knows
// where it stands only from a stack: it was run when the script that was run stands there.
const prologue = `;(async function holdfast(require, module) {
"use strict";
if (typeof Deno === "undefined" && parseInt(process.versions.node, 10) < 18) {
  process.stderr.write("holdfast: error: Cannot run on Node " + process.versions.node + ": version 18 or later is needed\\n");
  process.exitCode = 1;
  return;
}
if (!require) require = (await import("node:module")).createRequire("/");
const __build = {
  version: ${JSON.stringify(version)},
  sha256: "${unhashed}",
  main: undefined,
  file: module.filename || undefined,
  text: () => ";(" + holdfast.toString() + ${JSON.stringify(tail.slice(1))},
};
__build.main = (() => {
  if (require.main && require.main === module) return true;
  if (module.id !== undefined) return /^\\[(stdin|eval\\d*)\\]$/.test(module.id);
  const place = String(new Error().stack).split("\\n").find((line) => /:\\d+:\\d+\\)?$/.test(line)) || "";
  if (/\\[(stdin|eval\\d*)\\]|\\$deno\\$stdin/.test(place)) return true;
  try {
    const paths = [process.argv[1], require("node:fs").realpathSync(process.argv[1])];
    const names = paths.concat(paths.map((path) => require("node:url").pathToFileURL(path).href));
    return names.some((name) => place.includes(name + ":"));
  } catch (error) {
    return false;
  }
})();
`;

mkdirSync(options.out, { recursive: true });
const text =
  head + prologue + (await bundle("holdfast.ts", "cjs", { target: "node12" })).replace(/^"use strict";\n/, "") + tail;
const sha256 = createHash("sha256").update(text).digest("hex");
const file = text.replace(unhashed, sha256);
if (file.length > maxBytes) throw new Error(`dist/holdfast.js has ${file.length} bytes, at most ${maxBytes} are meant`);
write("holdfast.js", file, 0o755);
write("holdfast.js.sha256", `${createHash("sha256").update(file).digest("hex")}  holdfast.js\n`);
write("package.json", '{ "type": "commonjs" }\n');
const define = { __library: JSON.stringify(version) };
write("index.mjs", await bundle("deploy.ts", "esm", { define: { ...define, __filename: "undefined" } }));
write("index.cjs", await bundle("deploy.ts", "cjs", { define: { ...define, "import.meta.url": "undefined" } }));
const types = declare(["library", "api", "deploy"]);
for (const name of ["holdfast.d.ts", "index.d.mts", "index.d.cts"]) write(name, types);
if (!options.quiet) console.log(`dist/holdfast.js: ${version}, ${Math.ceil(file.length / 1000)} kB, sha256 ${sha256}`);

async function bundle(entry, format, more) {
  const { outputFiles } = await build({
    absWorkingDir: root, // its comments name the sources by it: the same bytes wherever it is called
    entryPoints: [root + entry],
    bundle: true,
    write: false,
    platform: "node",
    format,
    target: "node18",
    supported: { "dynamic-import": true },
    charset: "utf8",
    external: ["node:*"],
    // what only sources have: the file is CommonJS
    define: { "import.meta.main": "undefined", "import.meta.filename": "undefined", "import.meta.url": "undefined" },
    logLevel: "warning",
    ...more,
  });
  return outputFiles[0].text;
}

/** By rename: somebody may be running the file that is there, or building at the same time. */
function write(name, content, mode = 0o644) {
  const path = `${options.out}/${name}`;
  writeFileSync(`${path}.${process.pid}`, content);
  chmodSync(`${path}.${process.pid}`, mode);
  renameSync(`${path}.${process.pid}`, path);
}

/** The declarations of modules that show nothing of others but each other, as one. */
function declare(modules) {
  const directory = `${options.out}/.types.${process.pid}`;
  const flags =
    "--ignoreConfig --declaration --emitDeclarationOnly --noCheck --target ES2022 --module NodeNext --allowImportingTsExtensions --types node --skipLibCheck --stripInternal --outDir";
  const args = [`${root}node_modules/typescript/bin/tsc`, `${root}deploy.ts`, ...flags.split(" "), directory];
  const tsc = spawnSync(process.execPath, args, { encoding: "utf8", cwd: root });
  if (tsc.status !== 0) throw new Error(`Cannot write the types: ${tsc.stdout}${tsc.stderr}`);
  const texts = modules.map((name) => readFileSync(`${directory}/${name}.d.ts`, "utf8"));
  rmSync(directory, { recursive: true });
  return texts.join("\n").replace(/^(import|export) .* from "\.\/.*;\n/gm, "");
}
