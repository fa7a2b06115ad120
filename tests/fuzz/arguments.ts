/** Command lines of real words and garbage: each is read as what it says, or refused with exit code 64 and words. */

import type { CommandLine } from "../../arguments.ts";
import { help, parseArguments } from "../../arguments.ts";
import { Failure } from "../../failure.ts";
import { oddNames } from "./json.ts";
import type { Random } from "./random.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Target } from "./target.ts";
import { demand } from "./target.ts";

export const argumentsTarget: Target = { name: "arguments", run: async (useCheck) => useCheck(checkArguments) };

/** Each mode's options; the last one of --serve is only for the program itself. */
const takes: Record<string, string[]> = {
  serve: [
    "socket",
    "token-file",
    "lifetime",
    "enable-linger",
    "require-survival",
    "replace",
    "log",
    "json",
    "launched",
  ],
  bridge: ["socket", "no-start"],
  stop: ["socket", "grace", "now", "if-idle", "json"],
  status: ["socket", "json"],
  doctor: ["socket", "json"],
  call: ["socket", "token-file"],
  version: ["json"],
  help: [],
};
const modes = Object.keys(takes);
/** What stands in the help, and the word that only the program itself uses. */
const names = [...new Set([...help.matchAll(/--([a-z-]+)/g)].map(([, name]) => name!)), "launched"];
const switches = ["enable-linger", "require-survival", "replace", "launched", "no-start", "now", "if-idle", "json"];
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
      error.exit === 64 && error.hint === "see --help" && /^Cannot read the command line: \S/.test(error.message),
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
  const written = [
    ...line.words,
    `-${line.mode}`,
    ...Object.entries(line.options).map(([name, value]) => (value === true ? `-${name}` : `--${name}=${value}`)),
  ];
  demand(
    JSON.stringify(sorted(parseArguments(written))) === JSON.stringify(sorted(line)),
    "Written in another order it is another",
    args,
    written,
  );
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
  const found: string[] = [];
  const words: string[] = [];
  const options: [name: string, value: string | true][] = [];
  for (let at = 0; at < args.length; at++) {
    const word = args[at]!;
    const name = word.replace(/^--?/, "");
    const [before] = name.split("=");
    if (!word.startsWith("-") || word === "-") words.push(word);
    else if (modes.includes(name)) found.push(name);
    else if (switches.includes(name)) options.push([name, true]);
    else if (!names.includes(before!) || modes.includes(before!) || switches.includes(before!)) return undefined;
    else options.push([before!, name.includes("=") ? name.slice(before!.length + 1) : (args[++at] ?? "")]);
  }
  const [mode] = found;
  if (mode === undefined || found.some((one) => one !== mode)) return undefined;
  const line = { mode, options: Object.fromEntries(options), words };
  return options.length === Object.keys(line.options).length && fits(line) ? line : undefined;
}

/** Whether a mode can be given these. */
function fits({ mode, options, words }: CommandLine): boolean {
  const counts = mode === "call" ? [1, 2] : [0];
  return (
    Object.entries(options).every(([name, value]) => takes[mode]!.includes(name) && value !== "") &&
    counts.includes(words.length) &&
    !("now" in options && "grace" in options)
  );
}

function sorted({ mode, options, words }: CommandLine): unknown {
  return [mode, Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1)), words];
}
