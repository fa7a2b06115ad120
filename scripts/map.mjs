/**
 * The map of the modules, drawn from their imports: `node scripts/map.mjs [--write]`
 *
 * Prints each module with its lines and its longest function, and what breaks the rules below. With `--write` the map in ARCHITECTURE.md is brought up to
 * date; tests/map.test.ts compares the two. Exit code 1 if a rule is broken.
 *
 * An import is `import … from "./NAME.ts"`, of types, too: who needs to know a type has to be read after it. A module may import what stands in its own layer
 * or below, and nobody imports in a circle.
 */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";

/** From above to below: who imports, and who is imported. */
export const layers = {
  run: ["holdfast", "arguments"],
  modes: ["jobs", "terminal", "doctor", "bridge", "deploy", "api", "remote"],
  "a daemon from outside": ["control", "reach", "launch"],
  "the daemon": [
    ...["server", "connections", "processes", "children", "adoption", "pty", "readers", "holders", "running"],
    ...["spool", "kept", "environment", "files", "lanes", "rpc"],
  ],
  "both sides": ["lifetime", "host", "client"],
  ground: ["socket", "record", "program", "frame", "failure", "library"],
};

/** As many as there are: the next one takes the place of another. Thirty were meant; to stay within 600 lines each, with terminals, took six more. */
export const maxModules = 36;
export const maxLines = 600;
export const maxFunctionLines = 60;

/** @returns {Map<string, {lines: number, imports: string[], all: string[], longest: {name: string, lines: number}}>} By name, without ".ts". */
export function readModules(directory = ".") {
  const files = readdirSync(directory).filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts"));
  return new Map(files.map((file) => [file.slice(0, -3), readModule(readFileSync(`${directory}/${file}`, "utf8"))]));
}

function readModule(source) {
  const found = [...source.matchAll(/^(?:import|export) (type )?(?:[^;"]*? from )?"\.\/([\w-]+)\.ts"/gm)];
  const imports = [...new Set(found.filter(([, type]) => type === undefined).map(([, , name]) => name))].sort();
  const all = [...new Set(found.map(([, , name]) => name))].sort();
  return { lines: source.split("\n").length - 1, imports, all, longest: longestFunction(source) };
}

/** As formatted, a function of a module ends with the first "}" in its own column. */
function longestFunction(source) {
  const lines = source.split("\n");
  let longest = { name: "", lines: 0 };
  lines.forEach((line, at) => {
    const [, indent, name] = /^(\s*)(?:export )?(?:async )?function\*? (\w+)/.exec(line) ?? [];
    if (name === undefined) return;
    const length = lines.slice(at).indexOf(`${indent}}`) + 1;
    if (length > longest.lines) longest = { name, lines: length };
  });
  return longest;
}

const layerOf = (name) => Object.values(layers).findIndex((names) => names.includes(name));

/** @returns {string[]} What breaks a rule, in words. */
export function problemsOf(modules) {
  const problems = [];
  if (modules.size > maxModules) problems.push(`there are ${modules.size} modules, at most ${maxModules} may be`);
  for (const [name, { lines, all, longest }] of modules) {
    if (layerOf(name) < 0) problems.push(`${name} stands in no layer`);
    if (lines > maxLines) problems.push(`${name} has ${lines} lines, at most ${maxLines} may be`);
    if (longest.lines > maxFunctionLines)
      problems.push(`${name}: ${longest.name}() has ${longest.lines} lines, at most ${maxFunctionLines} may be`);
    for (const other of all)
      if (layerOf(other) < layerOf(name)) problems.push(`${name} imports ${other}, which stands above it`);
  }
  return [...problems, ...circlesOf(modules)];
}

/** Takes away what imports nothing that is left; what stays is in circles, or imports what is. */
function circlesOf(modules) {
  const left = new Map([...modules].map(([name, { all }]) => [name, all.filter((other) => modules.has(other))]));
  for (let before = -1; before !== left.size; ) {
    before = left.size;
    for (const [name, all] of left) if (all.every((other) => !left.has(other))) left.delete(name);
  }
  if (left.size === 0) return [];
  const words = [...left].map(([name, all]) => `${name} (${all.filter((other) => left.has(other)).join(", ")})`);
  return [`there is a circle among ${words.join(", ")}`];
}

/** A table for each layer: the module, its size, and whom it imports. */
export function drawMap(modules) {
  const rows = Object.entries(layers).flatMap(([layer, names]) =>
    names
      .filter((name) => modules.has(name))
      .map((name, at) => {
        const { imports } = modules.get(name);
        return `| ${at === 0 ? layer : ""} | \`${name}.ts\` | ${imports.join(", ")} |`;
      }),
  );
  return ["| layer | module | imports |", "|---|---|---|", ...rows].join("\n");
}

const [begin, end] = ["<!-- map: node scripts/map.mjs --write -->", "<!-- end of map -->"];

/** The map that a document has. */
export function mapIn(text) {
  return text.slice(text.indexOf(begin) + begin.length, text.indexOf(end)).trim();
}

// its own name, too: bundled into a test it is not what was run
if (process.argv[1]?.endsWith("map.mjs") && import.meta.url === pathToFileURL(process.argv[1]).href) {
  process.chdir(fileURLToPath(new URL("..", import.meta.url)));
  const modules = readModules();
  for (const [name, { lines, longest }] of [...modules].sort(([, a], [, b]) => b.lines - a.lines))
    console.log(
      `${name.padEnd(12)} ${String(lines).padStart(4)} lines, longest ${longest.name}() with ${longest.lines}`,
    );
  const problems = problemsOf(modules);
  for (const problem of problems) console.log(`error: ${problem}`);
  if (process.argv.includes("--write")) {
    const text = readFileSync("ARCHITECTURE.md", "utf8");
    const [before, after] = [text.slice(0, text.indexOf(begin)), text.slice(text.indexOf(end))];
    writeFileSync("ARCHITECTURE.md", `${before}${begin}\n${drawMap(modules)}\n${after}`);
  }
  process.exitCode = problems.length > 0 ? 1 : 0;
}
