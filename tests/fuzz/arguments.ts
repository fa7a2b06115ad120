/** Command lines of real words and garbage: each is read as what it says, or refused with exit code 64 and words. */

import type { CommandLine } from "../../arguments.ts";
import { parseArguments } from "../../arguments.ts";
import { Failure } from "../../failure.ts";
import { oddNames } from "./json.ts";
import type { Random } from "./random.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Target } from "./target.ts";
import { demand } from "./target.ts";

export const argumentsTarget: Target = { name: "arguments", run: async (useCheck) => useCheck(checkArguments) };

/** Each mode's options; the last one of --serve is only for the program itself. */
const takes: Record<string, string> = {
  serve:
    "socket token-file token-fd lifetime enable-linger require-survival replace log spool json if-idle no-agent launched revive",
  bridge: "socket no-start as-owner",
  stop: "socket grace now if-idle json",
  status: "socket json",
  doctor: "socket json",
  call: "socket token-file",
  run: "socket id detach terminal detach-key cwd env enable-linger require-survival",
  attach: "socket no-stdin detach-key",
  logs: "socket follow lines",
  wait: "socket",
  list: "socket json",
  kill: "socket",
  forget: "socket",
  version: "json",
  help: "",
};
const modes = Object.keys(takes);
const names = [...new Set(Object.values(takes).join(" ").split(" "))];
const valued = "socket token-file token-fd lifetime log spool grace id detach-key cwd env lines".split(" ");
/** How many words each takes; the others none. */
const wordCounts: Record<string, [least: number, most: number]> = {
  ...{ call: [1, 2], run: [1, 1000], attach: [1, 1], logs: [1, 1], wait: [1, 1], kill: [1, 2], forget: [1, 1] },
};
const values = [
  "/s",
  "a b",
  "-",
  "--",
  "auto",
  "5",
  "",
  "=",
  "server.ping",
  "{}",
  "x".repeat(5000),
  "\ud800",
  "\0",
  "--serve",
  ...oddNames,
];
/** Other names of theirs. */
const shortNames: Record<string, string> = {
  ...{ h: "help", v: "version", n: "lines", f: "follow" },
  ...{ t: "terminal", it: "terminal", ti: "terminal", d: "detach", e: "env" },
};
const ownMembers = Reflect.ownKeys(Object.prototype).length;

export function checkArguments(random: Random): void {
  const args = Array.from({ length: random(7) }, () => randomWord(random));
  const said = reread(args);
  let line: CommandLine;
  try {
    line = parseArguments(args);
  } catch (error) {
    demand(said === undefined, "It was refused, and is right", args, String(error));
    demand(error instanceof Failure, "It threw what is no Failure", args, String(error));
    demand(
      error.exit === 64 && /--help$/.test(error.hint ?? "") && /^Cannot read the command line: \S/.test(error.message),
      "It was refused otherwise",
      args,
      error.message,
    );
    demand(
      !/undefined|\[object|function/.test(error.message.replaceAll(/"[\s\S]*"/g, "")),
      "Its words are those of an error of ours",
      args,
      error.message,
    );
    return;
  } finally {
    demand(Reflect.ownKeys(Object.prototype).length === ownMembers, "Object.prototype has changed", args);
  }
  demand(said !== undefined, "It was read, and is wrong", args, line);
  demand(
    JSON.stringify(sorted(line)) === JSON.stringify(sorted(said)),
    "It was read otherwise than a second time",
    args,
    line,
    said,
  );
  if (line.mode === "help") return; // what it is asked about may be anything
  const written = writtenAnew(line);
  demand(
    JSON.stringify(sorted(parseArguments(written))) === JSON.stringify(sorted(line)),
    "Written in another order it is another",
    args,
    written,
  );
}

/** In another order: words first; but those of a command, which are its own, behind all else. */
function writtenAnew({ mode, options, words, env = [] }: CommandLine): string[] {
  const given = Object.entries(options)
    .filter(([name]) => name !== "env")
    .map(([name, value]) => (value === true ? `-${name}` : `--${name}=${value}`));
  const all = [`-${mode}`, ...given, ...env.map((pair) => `--env=${pair}`)];
  return mode === "run" ? [...all, "--", ...words] : [...words, ...all];
}

function randomWord(random: Random): string {
  const kind = random(10);
  if (kind < 3) return `${pick(random, ["-", "--"])}${pick(random, modes)}`;
  if (kind < 7)
    return `${pick(random, ["-", "--"])}${pick(random, names)}${random(4) === 0 ? `=${pick(random, values)}` : ""}`;
  if (kind < 8) return pick(random, values);
  if (kind < 9) return `${pick(random, ["-", "--", "---"])}${pick(random, oddNames)}`;
  return mutateBytes(random, Buffer.from(`--${pick(random, names)}`)).toString();
}

/** What a line says; undefined when it says nothing that can be done. */
function reread(args: string[]): CommandLine | undefined {
  const found = new Set<string>();
  const words: string[] = [];
  const given: [name: string, value: string | true][] = [];
  for (let at = 0; at < args.length; at++) {
    const word = args[at]!;
    const [name, value] = readWord(word);
    if (name === undefined && found.has("run")) {
      words.push(...args.slice(word === "--" ? at + 1 : at));
      break;
    }
    if (name === undefined) words.push(word);
    else if (modes.includes(name) && value === undefined) found.add(name);
    else if (valued.includes(name)) given.push([name, value ?? args[++at] ?? ""]);
    else if (!names.includes(name) || value !== undefined) return undefined;
    else given.push([name, true]);
  }
  return lineOf([...found], given, words);
}

/** The name of an option or mode, and its value where it stands behind a "="; nothing for a word. */
function readWord(word: string): [name?: string, value?: string] {
  if (!/^--?[a-z][a-z-]*(=|$)/.test(word)) return [];
  const [name, ...rest] = word.replace(/^--?/, "").split("=");
  const whole = Object.hasOwn(shortNames, name!) ? shortNames[name!]! : name!;
  return rest.length === 0 ? [whole] : [whole, rest.join("=")];
}

function lineOf(found: string[], given: [string, string | true][], words: string[]): CommandLine | undefined {
  const envs = given.filter(([name]) => name === "env").map(([, value]) => String(value));
  const once = given.filter(([name]) => name !== "env").map(([name]) => name);
  if (new Set(once).size !== once.length || given.some(([, value]) => value === "")) return undefined;
  const options = Object.fromEntries(given);
  if (found.includes("help"))
    return {
      mode: "help",
      options: {},
      words: [...found.filter((name) => !["help", "version"].includes(name)), ...words],
    };
  const isStop = found.includes("stop");
  const [mode, ...others] = isStop ? found.filter((name) => name !== "forget") : found;
  if (mode === undefined || others.length > 0) return undefined;
  if (!fits(mode, options, words)) return undefined;
  if (isStop && found.includes("forget")) options.forget = true;
  return { mode, options, words, ...(envs.length > 0 ? { env: envs } : {}) };
}

/** Whether a mode can be given these. */
function fits(mode: string, options: CommandLine["options"], words: string[]): boolean {
  const [least, most] = wordCounts[mode] ?? [0, 0];
  const isWord = (word: string, at: number): boolean =>
    mode === "run" || !/^-[\s\S]/.test(word) || (mode === "kill" && at === 1 && /^-\w+$/.test(word));
  return (
    Object.keys(options).every((name) => takes[mode]!.split(" ").includes(name)) &&
    words.length >= least &&
    words.length <= most &&
    words.every(isWord) &&
    !("now" in options && "grace" in options) &&
    !("token-fd" in options && "token-file" in options)
  );
}

function sorted({ mode, options, words, env }: CommandLine): unknown {
  return [mode, env, Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1)), words];
}
