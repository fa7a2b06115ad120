/** The command line: its help, its options, and their reading. What is misspelt is refused, and what it nearly is is named. */

import { cannot, exitCodes, type Failure, nearest } from "./failure.ts";

/** Fits a screen of 80 by 24, as each of the modes' own. */
export const help = `holdfast: a remote server that is still there when you come back, with its work

  --run COMMAND [ARG…]     start a process that outlives this line; follow it
  --attach ID              come back to one     --logs ID     read what it said
  --wait ID                wait for its end     --list        all there are
  --kill ID [SIGNAL]       end one              --forget ID   one that has ended

  --serve                  start the daemon, or join the one that runs
  --bridge                 join stdin and stdout to it, for a client over ssh
  --call METHOD [PARAMS]   one request
  --status                 what the daemon is doing
  --doctor                 what a logout does to daemons here; what mends it
  --stop                   end it; for 10 s a --serve revives it, with its work
  --version, -v, --help, -h

Each but --version takes --socket PATH, and each has a help of its own: --run
--help. Single and double dashes are equal.

  scp holdfast.js host:     ssh host node holdfast.js --run --detach make -j4
Exit codes: 0 done, 1 failed, 64 usage, 69 no daemon, 73 cannot create, 75 busy,
77 no permission, 78 will not survive logout (--require-survival).
`;

/** Of --run, --attach and --wait, whose exit code is that of the process. */
const runCodes = `Exit codes: the process's, 128+n for a signal; 125 for a failure of our own, and
why; 126 and 127 for a command that cannot be run, or is not there.
`;

interface Mode {
  /** What --MODE --help prints; none of its own: the general one. */
  help?: string;
  /** How many words it takes besides its options, and what they are. */
  words?: [least: number, most: number, names: string];
}

/** In the order in which they are named where none is given. */
export const modes: Record<string, Mode> = {
  run: {
    words: [1, Infinity, "COMMAND"],
    help: `--run [OPTION…] [--] COMMAND [ARG…]: start a process that outlives this line

  --id ID               its name; by default the command's, then NAME-2, …
  --detach, -d          do not follow it: print its id. It has no stdin
  --terminal, -t        give it a terminal: yours, by ssh -t; Ctrl-\\ leaves it
  --detach-key KEY      what leaves it instead: ctrl-a, …; or none
  --cwd DIRECTORY       where it starts; by default here
  --env NAME=VALUE      into its environment, which is ours; any number of them
  --enable-linger       switch lingering on: it survives logout on more hosts
  --require-survival    do not start it where it would not survive logout
  --socket PATH

Starts the daemon where none runs. Our options end at the first word that is
none, or at --. stdin, stdout and stderr are the process's; Ctrl-C and TERM are
sent to it. When the line is lost it goes on: --attach ID comes back.

  ssh -t host node holdfast.js --run -t bash
  ssh host "node holdfast.js --run -- sh -c 'a && b'"

${runCodes}`,
  },
  attach: {
    words: [1, 1, "ID"],
    help: `--attach ID [OPTION…]: come back to a process: its last lines, then what comes

  --no-stdin            do not pass stdin on
  --detach-key KEY      what leaves its terminal: ctrl-a, …; by default ctrl-\\
  --socket PATH

Others that read it go on. What is typed is the process's, Ctrl-C, too. One with
a terminal is drawn again on yours, in its size: ssh -t. Ctrl-\\ leaves it, and
typed twice is one of its own.

${runCodes}`,
  },
  logs: {
    words: [1, 1, "ID"],
    help: `--logs ID [OPTION…]: print what a process has said, as far as it is held

  --follow              and what comes, until it ends
  --lines N             only the last N lines
  --socket PATH
`,
  },
  wait: {
    words: [1, 1, "ID"],
    help: `--wait ID [--socket PATH]: wait for the end of a process\n\n${runCodes}`,
  },
  list: { help: "--list [--json] [--socket PATH]: all processes, running and ended\n" },
  kill: {
    words: [1, 2, "ID and at most one SIGNAL"],
    help: "--kill ID [SIGNAL] [--socket PATH]: send a process and its group a signal, TERM\nby default: KILL, SIGKILL, 9 and -9 are the same\n",
  },
  forget: {
    words: [1, 1, "ID"],
    help: "--forget ID [--socket PATH]: remove a process that has ended, and its output\n",
  },
  serve: {
    help: `--serve [OPTION…]: start the daemon, or join the one that runs

  --socket PATH         where it listens
  --token-file FILE     the token clients are to have; by default one is made
  --token-fd N          the same, from a descriptor
  --lifetime HOW        auto, scope, detach or foreground (for a supervisor)
  --enable-linger       switch lingering on: it survives logout on more hosts
  --require-survival    exit with 78 where it does not survive logout
  --replace             put this version in the place of the one that runs
  --if-idle             replace it only where that ends no process
  --spool SIZE          how much output of a process is kept on disk; 0: none
  --no-agent            processes get no link to the SSH agent of a client
  --log FILE            --json
`,
  },
  bridge: {
    help: `--bridge [OPTION…]: join stdin and stdout to the daemon, for a client over ssh

  --as-owner            as the daemon's owner: the client needs no token
  --no-start            do not start a daemon again that has died
  --socket PATH

It speaks length-prefixed JSON, or one JSON object a line, as its peer does.
`,
  },
  stop: {
    help: `--stop [OPTION…]: end the daemon; for 10 s a --serve revives it, with its work

  --grace SECONDS       give them as long as this
  --now                 end them now
  --if-idle             exit with 75 while there are any
  --forget              remove their output, too
  --socket PATH         --json
`,
  },
  status: { help: "--status [--json] [--socket PATH]: what the daemon is doing\n" },
  doctor: {
    help: "--doctor [--json] [--socket PATH]: what this host does to daemons at logout,\nand what mends it\n",
  },
  call: {
    words: [1, 2, "METHOD and at most one PARAMS"],
    help: `--call METHOD [PARAMS] [OPTION…]: one request; PARAMS is JSON, or - for stdin

  --token-file FILE     ask with this token, not as the daemon's owner
  --socket PATH

  node holdfast.js --call files.stat '{"path":"~"}'
`,
  },
  version: { help: "--version [--json]: which holdfast this is\n" },
  help: {},
};

/** Each option: the modes that take it; and its value's name, or none for a switch. */
export const options: Record<string, [modes: string, value?: string]> = {
  socket: ["serve bridge stop status doctor call run attach logs wait list kill forget", "a path"],
  "token-file": ["serve call", "a file"],
  "token-fd": ["serve", "a number"],
  lifetime: ["serve", "auto, scope, detach or foreground"],
  "enable-linger": ["serve run"],
  "require-survival": ["serve run"],
  replace: ["serve"],
  log: ["serve", "a file"],
  spool: ["serve", "a size"],
  "no-agent": ["serve"],
  launched: ["serve"],
  revive: ["serve"],
  "no-start": ["bridge"],
  "as-owner": ["bridge"],
  grace: ["stop", "seconds"],
  now: ["stop"],
  "if-idle": ["serve stop"],
  id: ["run", "an id"],
  detach: ["run"],
  terminal: ["run"],
  "detach-key": ["run attach", "a key"],
  cwd: ["run", "a directory"],
  env: ["run", "NAME=VALUE"],
  "no-stdin": ["attach"],
  follow: ["logs"],
  lines: ["logs", "a number"],
  json: ["serve stop status doctor version list"],
};
/** Short names, as everywhere. */
export const aliases: Record<string, string> = {
  ...{ h: "help", v: "version" },
  ...{ t: "terminal", it: "terminal", ti: "terminal", d: "detach", e: "env", f: "follow", n: "lines" }, // docker's
};
/** What others call it: their names are near to none of ours. */
const otherNames: Record<string, string> = {
  ...{ tty: "terminal", pty: "terminal", name: "id", unit: "id", workdir: "cwd", "working-directory": "cwd", w: "cwd" },
  ...{ setenv: "env", tail: "lines", ps: "list", ls: "list", exec: "run", start: "run", rm: "forget", i: "terminal" },
};
const isMode = (name: string): boolean => Object.hasOwn(modes, name);

export interface CommandLine {
  mode: string;
  options: Record<string, string | true>;
  /** METHOD and PARAMS of --call, ID of --attach, COMMAND and its arguments of --run; the mode or warning that --help is asked about. */
  words: string[];
  /** NAME=VALUE of each --env; left out where there is none. */
  env?: string[];
}

/** What has been read so far. */
interface Reading {
  modes: string[];
  options: CommandLine["options"];
  env: string[];
  words: string[];
}

/**
 * Reads the arguments: exactly one mode, and only options that it takes.
 *
 * @throws {Failure} With exit code 64, naming the argument.
 */
export function parseArguments(args: string[]): CommandLine {
  const reading: Reading = { modes: [], options: {}, env: [], words: [] };
  for (let at = 0; at < args.length; ) at = readArgument(reading, args, at);
  const mode = modeOf(reading);
  if (mode === "help") {
    const asked = reading.modes.filter((name) => name !== mode && name !== "version");
    return { mode, options: {}, words: [...asked, ...reading.words] };
  }
  const { options: given, words, env } = reading;
  for (const name of Object.keys(given))
    if (name !== "forget" && !options[name]![0].split(" ").includes(mode))
      throw usage(`--${name} does not go with --${mode}`);
  checkWords(mode, words);
  if (given.now && given.grace) throw usage("--now and --grace exclude each other");
  if (given["token-fd"] && given["token-file"]) throw usage("--token-fd and --token-file exclude each other");
  return { mode, options: given, words, ...(env.length > 0 ? { env } : {}) };
}

/** @returns Where the next one is. */
function readArgument(reading: Reading, args: string[], at: number): number {
  const word = args[at]!;
  const [, given, inline] = /^--?([a-z][a-z-]*)(?:=([\s\S]*))?$/.exec(word) || [];
  if (reading.modes.includes("run") && (given === undefined || word === "--")) {
    reading.words.push(...args.slice(word === "--" ? at + 1 : at)); // the command's own, whatever they look like
    return args.length;
  }
  const name = given !== undefined && Object.hasOwn(aliases, given) ? aliases[given] : given;
  if (name === undefined) {
    reading.words.push(word);
    return at + 1;
  }
  if (isMode(name) && inline === undefined) {
    if (!reading.modes.includes(name)) reading.modes.push(name);
    return at + 1;
  }
  return at + readOption(reading, word, name, inline, args[at + 1]);
}

/** @returns How many arguments it takes. */
function readOption(
  reading: Reading,
  word: string,
  name: string,
  inline: string | undefined,
  next: string | undefined,
): 1 | 2 {
  const option = Object.hasOwn(options, name) && options[name];
  if (!option) throw usage(`"${word}" is not an option`, nearestOption(name));
  if (reading.options[name] !== undefined && name !== "env") throw usage(`--${name} is given twice`);
  const [, needed] = option;
  if (!needed && inline !== undefined) throw usage(`--${name} takes no value`);
  const value = needed ? (inline ?? next) : true;
  if (!value) throw usage(`--${name} needs ${needed}`);
  if (name === "env") reading.env.push(String(value));
  reading.options[name] = value;
  return needed && inline === undefined ? 2 : 1;
}

/** Exactly one. --help goes with each; and --forget is an option of --stop, too. */
function modeOf({ modes: given, options: read, words }: Reading): string {
  if (given.includes("help")) return "help";
  const [mode, other] = given.includes("stop") ? given.filter((name) => name !== "forget") : given;
  if (mode === undefined) {
    const near = words[0] === undefined ? undefined : nearestOption(words[0]);
    throw usage(`no mode is given, exactly one is needed: --${Object.keys(modes).join(", --")}`, near);
  }
  if (other !== undefined) throw usage(`both --${mode} and --${other} are given, exactly one mode is needed`);
  if (mode === "stop" && given.includes("forget")) read.forget = true;
  return mode;
}

function checkWords(mode: string, words: string[]): void {
  const [least, most, names] = modes[mode]!.words ?? [0, 0, ""];
  // "-" is PARAMS from stdin, and "-9" or "-KILL" a signal
  const isOdd = (word: string, at: number): boolean =>
    mode !== "run" && (most === 0 || /^-[\s\S]/.test(word)) && !(mode === "kill" && at === 1 && /^-\w+$/.test(word));
  const odd = words.find(isOdd);
  if (odd !== undefined) throw usage(`"${odd}" is not an option`, nearestOption(odd.replace(/^-+/, "")));
  if (words.length < least || words.length > most) throw usage(`--${mode} needs ${names}`);
}

function nearestOption(name: string): string | undefined {
  const found = Object.hasOwn(otherNames, name)
    ? otherNames[name]
    : nearest(name.toLowerCase(), [...Object.keys(options), ...Object.keys(modes)]);
  return found && `did you mean --${found}? See --help`;
}

/** The help of one mode. */
export function helpOf(mode: string | undefined): string {
  return (mode !== undefined && modes[mode]?.help) || help;
}

/** "64M", "1G", "0": bytes, or KiB, MiB, GiB of them. */
export function sizeOf(text: string): number {
  const [, digits, unit] = /^(\d{1,15})([KMG]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * 1024 ** " KMG".indexOf((unit || " ").toUpperCase());
  if (Number.isSafeInteger(bytes)) return bytes;
  throw usage(`--spool is "${text}", it must be a size such as 64M, or 0`);
}

/** A mistake in the command line: exit code 64. */
export function usage(what: string, hint = "see --help"): Failure {
  return cannot(`read the command line: ${what}`, { exit: exitCodes.usage, hint });
}
