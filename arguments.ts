/** The command line: its help, its options, and their reading. */

import { cannot, exitCodes, type Failure } from "./failure.ts";

export const help = `holdfast: a remote server that is still there when you come back

  --serve    start the daemon, or join the one that runs
               [--token-file F] [--lifetime auto|scope|detach|foreground] [--enable-linger]
               [--require-survival] [--replace] [--spool SIZE] [--log F] [--json]
  --bridge   join stdin and stdout to the daemon [--no-start]
  --call METHOD [PARAMS]   one request [--token-file F]
  --status   what the daemon is doing [--json]
  --doctor   what this host does to daemons at logout, and what mends it [--json]
  --stop     end the daemon; its processes have 10 s in which a --serve revives it
               [--grace SECONDS | --now] [--if-idle] [--forget]
  --version, --help

Each takes --socket PATH. Single and double dashes are equal.

  scp holdfast.js host:           ssh host node holdfast.js --serve
  echo '{"id":"a","command":"make"}' | ssh host node holdfast.js --call process.spawn -
  ssh host node holdfast.js --bridge      (length-prefixed JSON, or a line each)

Exit codes: 0 done, 1 failed, 64 usage, 69 no daemon, 73 cannot create, 75 busy,
77 no permission, 78 will not survive logout (--require-survival).
`;

/** Each option: the modes that take it; and its value's name, or none for a switch. */
const optionTable: Record<string, [modes: string, value?: string]> = {
  socket: ["serve bridge stop status doctor call", "a path"],
  "token-file": ["serve call", "a file"],
  lifetime: ["serve", "auto, scope, detach or foreground"],
  "enable-linger": ["serve"],
  "require-survival": ["serve"],
  replace: ["serve"],
  log: ["serve", "a file"],
  spool: ["serve", "a size"],
  launched: ["serve"],
  "no-start": ["bridge"],
  "as-owner": ["bridge"],
  grace: ["stop", "seconds"],
  now: ["stop"],
  "if-idle": ["stop"],
  forget: ["stop"],
  json: ["serve stop status doctor version"],
};
const modeNames = "serve bridge stop status doctor call version help".split(" ");

export interface CommandLine {
  mode: string;
  options: Record<string, string | true>;
  /** METHOD and PARAMS of --call. */
  words: string[];
}

/**
 * Reads the arguments: exactly one mode, and only options that it takes.
 *
 * @throws {Failure} With exit code 64, naming the argument.
 */
export function parseArguments(args: string[]): CommandLine {
  let mode: string | undefined;
  const options: CommandLine["options"] = {};
  const words: string[] = [];
  for (let at = 0; at < args.length; at++) {
    const [, name, inline] = /^--?([a-z][a-z-]*)(?:=([\s\S]*))?$/.exec(args[at]!) || [];
    if (name === undefined) {
      words.push(args[at]!);
    } else if (modeNames.includes(name) && inline === undefined) {
      if (mode !== undefined && mode !== name)
        throw usage(`both --${mode} and --${name} are given, exactly one mode is needed`);
      mode = name;
    } else {
      const option = Object.hasOwn(optionTable, name) && optionTable[name];
      if (!option) throw usage(`"${args[at]}" is not an option`);
      if (options[name] !== undefined) throw usage(`--${name} is given twice`);
      const [, needed] = option;
      const value = needed ? (inline ?? args[++at]) : inline;
      if (!needed && inline !== undefined) throw usage(`--${name} takes no value`);
      if (needed && !value) throw usage(`--${name} needs ${needed}`);
      options[name] = value || true;
    }
  }
  if (mode === undefined) throw usage(`no mode is given, exactly one is needed: --${modeNames.join(", --")}`);
  for (const name of Object.keys(options))
    if (!optionTable[name]![0].split(" ").includes(mode)) throw usage(`--${name} does not go with --${mode}`);
  const odd = words.find((word) => mode !== "call" || /^-[^]/.test(word)); // "-" is PARAMS from stdin
  if (odd !== undefined) throw usage(`"${odd}" is not an option`);
  if (mode === "call" && (words.length < 1 || words.length > 2))
    throw usage("--call needs METHOD and at most one PARAMS");
  if (options.now && options.grace) throw usage("--now and --grace exclude each other");
  return { mode, options, words };
}

/** "64M", "1G", "0": bytes, or KiB, MiB, GiB of them. */
export function sizeOf(text: string): number {
  const [, digits, unit] = /^(\d{1,15})([KMG]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * 1024 ** " KMG".indexOf((unit || " ").toUpperCase());
  if (Number.isSafeInteger(bytes)) return bytes;
  throw usage(`--spool is "${text}", it must be a size such as 64M, or 0`);
}

/** A mistake in the command line: exit code 64. */
export function usage(what: string): Failure {
  return cannot(`read the command line: ${what}`, { exit: exitCodes.usage, hint: "see --help" });
}
