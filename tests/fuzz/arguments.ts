/** Command lines of real words and garbage: each is read as what it says, or refused with exit code 64 and words. */

import { help, parseArguments } from "../../arguments.ts";
import type { CommandLine } from "../../arguments.ts";
import { Failure } from "../../failure.ts";
import { oddNames } from "./json.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Random } from "./random.ts";
import { demand } from "./target.ts";
import type { Target } from "./target.ts";

export const argumentsTarget: Target = { name: "arguments", run: async (useCheck) => useCheck(checkArguments) };

const modes = ["serve", "bridge", "stop", "status", "doctor", "call", "version", "help"];
/** What stands in the help, and the word that only the program itself uses. */
const names = [...new Set([...help.matchAll(/--([a-z-]+)/g)].map(([, name]) => name!)), "launched"];
const switches = ["enable-linger", "require-survival", "replace", "launched", "no-start", "now", "if-idle", "json"];
const values = ["/s", "a b", "-", "--", "auto", "5", "", "=", "server.ping", "{}", "x".repeat(5000), "\ud800", "\0", "--serve", ...oddNames];
const ownMembers = Reflect.ownKeys(Object.prototype).length;

export function checkArguments(random: Random): void {
  const args = Array.from({ length: random(7) }, () => randomWord(random));
  let line: CommandLine;
  try {
    line = parseArguments(args);
  } catch (error) {
    demand(error instanceof Failure, "It threw what is no Failure", args, String(error));
    demand(error.exit === 64 && error.hint === "see --help" && /^Cannot read the command line: \S/.test(error.message), "It was refused otherwise", args, error.message);
    demand(!/undefined|\[object|function/.test(error.message.replaceAll(/"[^]*"/g, "")), "Its words are those of an error of ours", args, error.message);
    return;
  } finally {
    demand(Reflect.ownKeys(Object.prototype).length === ownMembers, "Object.prototype has changed", args);
  }
  const said = reread(args);
  demand(JSON.stringify(sorted(line)) === JSON.stringify(sorted(said)), "It was read otherwise than a second time", args, line, said);
  demand(modes.includes(line.mode) && (line.mode === "call" ? line.words.length === 1 || line.words.length === 2 : line.words.length === 0), "It is no command", args, line);
  const written = [...line.words, `-${line.mode}`, ...Object.entries(line.options).map(([name, value]) => (value === true ? `-${name}` : `--${name}=${value}`))];
  demand(JSON.stringify(sorted(parseArguments(written))) === JSON.stringify(sorted(line)), "Written in another order it is another", args, written);
}

function randomWord(random: Random): string {
  const kind = random(10);
  if (kind < 3) return `${pick(random, ["-", "--"])}${pick(random, modes)}`;
  if (kind < 7) return `${pick(random, ["-", "--"])}${pick(random, names)}${random(4) === 0 ? `=${pick(random, values)}` : ""}`;
  if (kind < 8) return pick(random, values);
  if (kind < 9) return `${pick(random, ["-", "--", "---"])}${pick(random, oddNames)}`;
  return mutateBytes(random, Buffer.from(`--${pick(random, names)}`)).toString();
}

/** What a line says that is right: it need not tell the wrong ones. */
function reread(args: string[]): CommandLine {
  const line: CommandLine = { mode: "", options: {}, words: [] };
  for (let at = 0; at < args.length; at++) {
    const word = args[at]!;
    const name = word.replace(/^--?/, "").split("=")[0]!;
    if (word === name || !/^[a-z]/.test(name)) line.words.push(word);
    else if (modes.includes(name)) line.mode = name;
    else if (switches.includes(name)) line.options[name] = true;
    else line.options[name] = word.includes("=") ? word.slice(word.indexOf("=") + 1) : args[++at]!;
  }
  return line;
}

function sorted({ mode, options, words }: CommandLine): unknown {
  return [mode, Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1)), words];
}
