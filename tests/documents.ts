/** The documents, and parts of them. Their commands: which a test types on a booted host (tests/host/docs.test.ts), or here (tests/docs.test.ts); and which none does, and why. */

import { readdirSync, readFileSync } from "node:fs";
import * as assert from "uvu/assert";

export const documents = [
  ...readdirSync(".").filter((name) => name.endsWith(".md")),
  ...["docs", "bench", "examples"].flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`)),
].filter((path) => path.endsWith(".md"));

export const texts = new Map(documents.map((path) => [path, readFileSync(path, "utf8")]));

/** All first groups of a pattern. At least one, or the pattern is out of date. */
export function all(pattern: RegExp, text: string, where: string): string[] {
  const found = [...text.matchAll(pattern)].map((match) => match[1]!);
  assert.ok(found.length > 0, `${where} has ${pattern}`);
  return found;
}

/** A section of a document, from its heading to the next one of that level. */
export function section(path: string, heading: string): string {
  const text = texts.get(path)!;
  const level = /^#+/.exec(heading)![0];
  const from = text.indexOf(`\n${heading}\n`);
  assert.ok(from >= 0, `${path} has "${heading}"`);
  const rest = text.slice(from + heading.length + 2);
  const to = rest.search(new RegExp(`^#{1,${level.length}} `, "m"));
  return to < 0 ? rest : rest.slice(0, to);
}

export const sorted = (names: Iterable<string | number>): string[] => [...new Set([...names].map(String))].sort();

export interface Command {
  /** As it stands there, without prompt and comment. */
  line: string;
  /** 0, or what its comment says: `# exit code 75`. */
  exitCode: number;
}

/** What a reader would type; the history is not for that. */
export const manuals = documents.filter((path) => path !== "CHANGELOG.md");

/** No commands: JSON, TypeScript, lines of a configuration and of its sections. */
const isOther = (line: string): boolean => /^(?:[{[→←A-Z ]|(?:import|const|for|await)\b|[\w.]+\.\w+\()/.test(line);
/** Programs that a reader would type. */
const inline = /`((?:ssh|scp|npm|npx|node|deno|bun|python3|sh|sed|loginctl|\.\/[^`\s]+) [^`\n]+)`/g;

/** Indented lines, but for those that are no command and what a command said, and whole `commands` in a text; each once, in their order. */
export function commandsOf(path: string): Command[] {
  const commands = new Map<string, Command>();
  const add = (whole: string): void => {
    const line = whole.replace(/ +# .*$/, "");
    const [, exitCode] = /#.*\bexit code (\d+)/.exec(whole) ?? [];
    if (!commands.has(line)) commands.set(line, { line, exitCode: Number(exitCode ?? 0) });
  };
  let isSaid = false;
  for (const line of readFileSync(path, "utf8").split("\n")) {
    const indented = /^ {4}(?:\$ )?(.+)/.exec(line)?.[1];
    isSaid = indented !== undefined && (isSaid || indented.startsWith("holdfast: "));
    if (indented === undefined) for (const [, command] of line.matchAll(inline)) add(command!);
    else if (!isSaid && !isOther(indented)) add(indented);
  }
  return [...commands.values()];
}

/** It reaches a host; or is what an administrator types on one. */
export const isForHost = ({ line }: Command): boolean => /^(ssh|scp|xargs|loginctl) |\| ssh /.test(line);

const suite = "it is the suite, or a part of it";
const minutes = "it takes minutes";
const part = "it is the beginning of a command, or its name";

/** Commands that no test types, and why. */
export const notTyped: Record<string, string> = {
  "npm ci": "it fetches from a registry; .ci/run begins with it",
  "npm ci && npm run build": "it fetches from a registry; .ci/run does the same",
  "npm install ./holdfast-0.2.0.tgz": "tests/library.test.ts installs one that it has packed",
  "npm pack": "tests/library.test.ts packs it, and installs what comes of that",
  "npm test": suite,
  "npm ci && npm test": suite,
  "npm test -- --only unit": suite,
  "npm test -- --only host": suite,
  "npm test -- frame rpc": suite,
  "npm run check": "each of its parts is typed by tests/check.test.ts",
  "npm run test:host -- --suite bullseye": minutes,
  "npm run test:host -- --all strangers": minutes,
  "npm run test:faults": minutes,
  "npm run test:runtimes": minutes,
  "npm run fuzz -- --minutes 30": "it takes as long as it says; tests/fuzz.test.ts runs one case by it",
  "npm run soak": "it takes half an hour; tests/soak.test.ts runs it for seconds",
  "npm run soak -- --minutes 30": "it takes as long as it says; tests/soak.test.ts runs it for seconds",
  "npm run bench": minutes,
  "npm run bench -- --only relay": minutes,
  "npm run bench -- --write": minutes,
  "npm run bench -- --check": minutes,
  "npm run bench -- --quick": minutes,
  "npm run demo": "its script is run by tests/docs.test.ts, without a build beside other tests",
  "npm ci && npm run demo": "as npm run demo; and it fetches from a registry",
  "npm run host": "its script is run by tests/host/docs.test.ts, without a build beside other tests",
  "npm run host -- --keep": "as npm run host",
  "npm run host -- --suite trixie": "as npm run host; the suite's root is made by debootstrap",
  "npm run release -- 0.2.0": "it commits and tags",
  "node scripts/map.mjs --write": "it writes ARCHITECTURE.md; tests/map.test.ts compares that with what it would write",
  "npx biome check --write": "it writes; tests/check.test.ts runs it without --write",
  "node holdfast.js": part,
  "sh holdfast.js": part,
  "sh -c 'read x'": "it stands for a program that waits",
  "node --max-old-space-size=64": part,
  "node --snapshot-blob": part,
  "loginctl enable-linger": part,
  "loginctl disable-linger": part,
  "loginctl terminate-user": part,
  "ssh -L": part,
  "ssh -L 8080:localhost:8080 host": "it forwards until it is ended",
  "ssh host \"./holdfast.js --run -- sh -c 'a && b'\"": "a and b stand for commands",
  "tar -xJf node-v22.*-linux-x64.tar.xz --strip-components=2 --wildcards '*/bin/node'":
    "a tarball of nodejs.org is not here",
};
