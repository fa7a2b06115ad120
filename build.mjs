/**
 * Builds `dist/`: `holdfast.js`, all modules in one file that runs under any runtime, by any name, in either module type; its types; and a
 * package.json that says that it is CommonJS, since the sources beside it are ES modules.
 *
 *     #!/bin/sh                                   executed: a shell finds node, nodejs, bun or deno
 *     ":" //; …                                   to JavaScript a string and a comment, to a shell a command
 *     ;(async function holdfast(require, module) {
 *       is this Node too old?                     the syntax up to the program is Node 12's, so that an old one reads as far as this
 *       require, or one made by node:module       an ES module has none
 *       const __build = {…}                       version, hash, run or imported, its own text: see version.ts
 *       load()(require, module, __build)          compiles the program, or takes what V8 made of it before
 *       /*! (function (require, module, __build, U) {   U is undefined: it has no argument
 *         what is needed of node:                 what takes long to load when it is first used
 *         …modules…                               side by side
 *       }) *\/
 *     })(require, module)
 *
 * The program is a comment, so that it is not read before it is known whether it needs to be: V8 takes 3 ms to read 150 kB, and 0.2 ms to read past them.
 * What it has compiled of them in the same mode before, it takes from a file beside this one in 0.5 ms (see program.ts). A comment that begins with
 * "!" is left in place by Bun and Deno, too, which rewrite what they run.
 *
 * One function, so that it has its own text, even when it was read from stdin: a function's toString() is its source. The lines for a shell are
 * not in it.
 *
 * The names are left whole, whitespace and syntax are not: written out it would be a quarter larger. A function begins a line, short ones share one. `--readable`
 * writes `dist/holdfast.readable.js` as well, the same program with all its whitespace.
 *
 * The hash stands in the file itself, and is that of the file with zeros in its place: `sed "s/$hash/$(printf %064d 0)/" holdfast.js | sha256sum`.
 * Two builds of the same sources are the same bytes.
 */
import { build, transform } from "esbuild";
import { createHash } from "node:crypto";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL(".", import.meta.url));
const { values: options } = parseArgs({
  options: {
    quiet: { type: "boolean" },
    readable: { type: "boolean" },
    out: { type: "string", default: `${root}dist` },
  },
});
const { version } = JSON.parse(readFileSync(`${root}package.json`, "utf8"));
const unhashed = "0".repeat(64);

// every line of it begins in JavaScript with a string and a comment
const head = `#!/bin/sh
":" //; for runtime in node nodejs bun; do command -v "$runtime" >/dev/null && exec "$runtime" "$0" "$@"; done
":" //; command -v deno >/dev/null && exec deno run --allow-all "$0" "$@"
":" //; echo "holdfast: error: Cannot run: there is no node, nodejs, bun or deno on the PATH" >&2; exit 127
// holdfast ${version}, MIT licence: built from TypeScript sources
;(`;
const tail = `)(typeof require=="function"&&require,typeof module=="object"?module:{});\n`;

/** Of a file of the cache: what it is of, and how long the code is that follows; a multiple of 8, for V8. */
const headBytes = 176;

// Run or imported: CommonJS knows. A script from stdin, and an ES module, which has no import.meta that CommonJS could read too, look at where they
// are, in a stack, and compare it with the script that was run. Only they: a stack costs 3 million instructions.
//
// The cache is V8's own code, which it trusts: only a directory of ours in which nobody else can write is read. V8 itself looks whether it is of its
// version and flags; the key says of which program, as it stands there since it was last changed (ctime), and by which node.
const prologue = `async function holdfast(require, module) {
if (typeof Deno === "undefined" && parseInt(process.versions.node, 10) < 18) {
  process.stderr.write("holdfast: error: Cannot run on Node " + process.versions.node + ": version 18 or later is needed\\n");
  process.exitCode = 1;
  return;
}
const __place = () => (/(?:\\(|file:\\/\\/|at |@)(\\/[^\\n]*|\\[stdin\\]|\\[eval\\d*\\]):\\d+:\\d+\\)?$/m.exec(new Error().stack) || [])[1] || "";
if (!require) require = (await import("node:module")).createRequire("/");
const __build = {
  version: ${JSON.stringify(version)},
  sha256: "${unhashed}",
  main: require.main === module || /(^|\\/)(\\[stdin\\]|\\[eval\\d*\\]|\\$deno\\$stdin\\.\\w+)$/.test(__place()) || isScript(),
  file: module.filename || undefined,
  text: () => ";(" + holdfast.toString() + ${JSON.stringify(tail)},
};
load()(require, module, __build);
function isScript() {
  try {
    const { realpathSync } = require("node:fs"), { pathToFileURL } = require("node:url");
    return [process.argv[1], realpathSync(process.argv[1])].some((path) => [path, pathToFileURL(path).pathname].includes(__place()));
  } catch (error) {
    return false;
  }
}
function load() {
  const text = holdfast.toString(), start = text.search(/\\/\\*!/) + 3;
  if (start < 3) throw new Error("Cannot run holdfast: it was bundled or minified, and its program, a comment, is lost");
  let cache, cachedData;
  try {
    cache = findCache();
    const bytes = cache.isOurs() && require("node:fs").readFileSync(cache.path), code = bytes.subarray(${headBytes}, -1);
    // V8 trusts it blindly: what a crash of the host kept from the disk is zeros, hundreds of them in a row, or fewer and the end
    if (bytes.latin1Slice(0, ${headBytes}) === headOf(cache, code) && bytes.at(-1) && !code.includes(Buffer.alloc(512))) cachedData = code;
  } catch (error) {
    // there is none yet, or is to be none
  }
  const script = new (require("node:vm").Script)(text.slice(start, text.lastIndexOf("*/")), { filename: module.filename || process.argv[1], lineOffset: LINES, cachedData });
  __build.cache = cache;
  if (cache) {
    cache.fits = script.cachedDataRejected === false;
    cache.data = () => {
      const code = script.createCachedData();
      return Buffer.concat([Buffer.from(headOf(cache, code)), code, Buffer.from(".")]);
    };
  }
  return script.runInThisContext();
}
function headOf({ key }, code) {
  return (key + code.length).padEnd(${headBytes});
}
function findCache() {
  const mode = ["launched", "serve", "bridge", "call", "stop"].find((name) => process.argv.includes("--" + name)), file = module.filename;
  if (!mode || !__build.main || !file || globalThis.Deno || globalThis.Bun) return;
  const { basename, dirname } = require("node:path"), { lstatSync, statSync } = require("node:fs");
  const directory = dirname(file) + "/." + basename(file) + ".cache", { size, mtimeMs } = statSync(process.execPath);
  return {
    path: directory + "/" + mode,
    key: [__build.sha256, statSync(file).ctimeMs, process.version, size, mtimeMs, ""].join(" "),
    isOurs() {
      const stats = lstatSync(directory); // a link's mode is 0777
      return stats.uid === process.getuid() && (stats.mode & 0o77) === 0;
    },
  };
}
`;

/**
 * In one file nothing is gained by modules of ours that are evaluated late: `await import("./call.ts")` becomes an import like the others, and
 * all modules stand side by side. What they import of node: stands once, before them: esbuild would call
 * `(0, import_node_child_process.spawn)(…)`. What takes node long to load is late: it is required when it is first used.
 */
const hoisted = {
  "node:fs": "now",
  "node:path": "now",
  "node:buffer": "now",
  "node:os": "late",
  "node:crypto": "late",
  "node:child_process": "late",
  "node:util": "late",
  "node:fs/promises": "late",
  "node:net": "late",
  "node:stream": "late",
};
const nodeNames = new Map();
const codes = Object.fromEntries(
  [
    ...readFileSync(`${root}failure.ts`, "utf8").matchAll(
      /^export const (exitCodes|errorCodes) = (\{[^}]*\}) as const;$/gm,
    ),
  ].map(([, table, body]) => [
    table,
    Object.fromEntries([...body.matchAll(/(\w+): (-?\d+)/g)].map(([, name, code]) => [name, code])),
  ]),
);
/** Numbers that have a name in a module, and nowhere another value: it stands for them then. Not those that tests change, or look for, in the built file. */
const named = ["checkMs", "strangerMs", "maxStrangers", "strangerAnswerBytes"];
const numbers = /^const (\w+) = (0x[\da-f]+|\d[\d_]*(?: << \d+)?);$/gm;
const constants = {};
for (const name of readdirSync(root).filter((name) => name.endsWith(".ts"))) {
  for (const [, constant, text] of readFileSync(root + name, "utf8").matchAll(numbers)) {
    const [number, shift = 0] = text.replaceAll("_", "").split(" << ").map(Number);
    const value = String(number * 2 ** shift);
    constants[constant] = (constants[constant] ?? value) === value && !named.includes(constant) ? value : "";
  }
}
for (const name of Object.keys(constants)) if (constants[name] === "") delete constants[name];
const nodeImports = {
  name: "node imports",
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.ts$/ }, ({ path }) => ({
      loader: "ts",
      contents: withoutDynamicImports(withCodes(readFileSync(path, "utf8")))
        .replace(numbers, (line, name) => (name in constants ? "" : line))
        .replace(/^import \{([^}]*)\} from "(node:[\w/]+)";$/gm, (_, list, module) => {
          const names = list
            .split(",")
            .map((name) => name.trim())
            .filter((name) => name !== "");
          for (const name of names) {
            if ((nodeNames.get(name) ?? module) !== module)
              throw new Error(`"${name}" is imported from ${module} and from ${nodeNames.get(name)}`);
            nodeNames.set(name, module);
          }
          return "";
        }),
    })),
};

/** `exitCodes.busy` as its number, as a compiler would have it of a constant. */
function withCodes(source) {
  return source.replace(/\b(exitCodes|errorCodes)\.(\w+)/g, (_, table, name) => codes[table][name]);
}

function withoutDynamicImports(source) {
  const modules = new Set();
  const text = source.replace(
    /\(await import\("\.\/(\w+)\.ts"\)\)/g,
    (_, name) => (modules.add(name), `${name}Module`),
  );
  return [...modules].map((name) => `import * as ${name}Module from "./${name}.ts";`).join("") + text;
}

function nodePrelude() {
  const lines = Object.entries(hoisted).map(([module, when]) => {
    const names = [...nodeNames]
      .filter(([, from]) => from === module)
      .map(([name]) => name.replace(" as ", ": "))
      .sort();
    return `const {${names}} = ${when === "now" ? `require("${module}")` : `late(() => require("${module}"))`};\n`;
  });
  return (
    `const late = (load) => new Proxy({}, { get: (_, name) => new Proxy(function () {}, {
  get: (_, key) => load()[name][key],
  apply: (_, self, given) => load()[name](...given),
  construct: (_, given) => new (load()[name])(...given),
}) });
` + lines.join("")
  );
}

/** What can be imported. */
let exported;
mkdirSync(options.out, { recursive: true });
const program = await programText({ minifyWhitespace: true, minifySyntax: true });
const { code: loader } = await transform(`${prologue}}`, {
  minifyWhitespace: true,
  minifySyntax: true,
  target: "node12",
  supported: { "dynamic-import": true },
});
// version and hash begin a line each: sed is to find them
const text = fileOf(
  loader.replace(/(version|sha256):"/g, '\n$1: "').replace(/[;}](?=const |function )/g, "$&\n"),
  program,
);
const hash = createHash("sha256").update(text).digest("hex");
write("holdfast.js", text.replace(unhashed, hash), 0o755);
if (options.readable) write("holdfast.readable.js", fileOf(`${prologue}}`, await programText({})), 0o755);
write("package.json", '{ "type": "commonjs" }\n', 0o644);
writeTypes();
if (!options.quiet) {
  console.log(
    `dist/holdfast.js: ${version}, ${Math.ceil(statSync(`${options.out}/holdfast.js`).size / 1000)} kB, sha256 ${hash}`,
  );
}

/** Traces name the lines of this file: the program is told how many are before it. */
function fileOf(loader, program) {
  // the last line is not run: it is for those who look for names without running it
  const before = `${head}${loader.replace(/\}\s*$/, "")}\n0&&(module.exports={${exported}});\n`;
  return `${before.replace("LINES", before.split("\n").length - 1)}/*!${program}*/\n}${tail}`;
}

async function programText(form) {
  const modules = await bundle(form); // which also finds out what is needed of node
  const { code } = await transform(
    `load(function (require, module, __build, U) {\n"use strict";\n${nodePrelude()}${modules}})`,
    form,
  );
  if (code.match(/\bU\b/g).length > 1) throw new Error("the program has a U of its own");
  const text = code
    .replace(/^load|;\s*$/g, "")
    // compact, it has no newlines but those of templates, which are not to change where a runtime sets the lines of a comment anew
    .replaceAll("\n", form.minifyWhitespace ? "\\n" : "\n")
    .replace(/\bvoid 0\b/g, "U")
    .replace(/\/\* @__PURE__ \*\/ ?|^ *\/\*\*[^]*?\*\/$/gm, "")
    .replace(/(.{400,}?[;}])(?=(?:async )?function \w+\()/g, "$1\n");
  if (text.includes("*/")) throw new Error(`the program ends its comment: ${/.{0,80}\*\/.{0,20}/.exec(text)}`);
  return text;
}

async function bundle(form) {
  const { outputFiles } = await build({
    entryPoints: [`${root}holdfast.ts`],
    bundle: true,
    write: false,
    platform: "node",
    format: "esm",
    target: "node18",
    charset: "ascii", // with one that is not, V8 holds two bytes for each character of the whole text
    external: ["node:*"],
    plugins: [nodeImports],
    define: {
      "Number.MAX_SAFE_INTEGER": "9007199254740991",
      "import.meta.main": "undefined",
      "import.meta.filename": "undefined",
      ...constants,
    },
    logLevel: "warning",
    ...form,
  });
  return outputFiles[0].text.replace(/export\s*\{([^}]*)\};?\s*$/, (_, names) => {
    exported = names.replace(/\w+ as /g, "").trim();
    return `module.exports={${names.replace(/(\w+) as (\w+)/g, "$2:$1")}};`;
  });
}

/** By rename: somebody may be running the file that is there, or building at the same time. */
function write(name, content, mode) {
  const path = `${options.out}/${name}`;
  writeFileSync(`${path}.${process.pid}`, content);
  chmodSync(`${path}.${process.pid}`, mode);
  renameSync(`${path}.${process.pid}`, path);
}

/** api.ts shows nothing of other modules, so that its declarations stand alone. */
function writeTypes() {
  const directory = `${options.out}/.types.${process.pid}`;
  const tsc = spawnSync(
    process.execPath,
    [
      `${root}node_modules/typescript/bin/tsc`,
      `${root}api.ts`,
      "--ignoreConfig",
      "--declaration",
      "--emitDeclarationOnly",
      "--noCheck",
      "--outDir",
      directory,
      ..."--target ES2022 --module NodeNext --allowImportingTsExtensions --types node --skipLibCheck --stripInternal".split(
        " ",
      ),
    ],
    { encoding: "utf8", cwd: root },
  );
  if (tsc.status !== 0) throw new Error(`Cannot write the types: ${tsc.stdout}${tsc.stderr}`);
  write("holdfast.d.ts", readFileSync(`${directory}/api.d.ts`, "utf8"), 0o644);
  rmSync(directory, { recursive: true });
}
