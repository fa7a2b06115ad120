/**
 * Which program this is: its build, its runtime, its file, the command that runs it again as a daemon, and what its process hangs on.
 *
 * The build hands `__build` to the whole program, which it wraps in one function (see build.mjs); from source there is none.
 */

import { openSync, readFileSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { cannot, capture, safely } from "./failure.ts";
import type { Identity } from "./record.ts";
import { identify, livenessOf, namesIn, readText, statOf, writeOwnFile } from "./record.ts";
import type { Places } from "./socket.ts";
import { makeRunDirectory } from "./socket.ts";

export interface Build {
  version: string;
  /** SHA-256 in hex of the built file, with 64 zeros in the place of this very hash. */
  sha256: string;
  /** It was run, not imported. */
  main: boolean;
  /** Its path, as CommonJS knows it; undefined where it was parsed as an ES module, or read from stdin. */
  file: string | undefined;
  /** The text of the file without its first lines, which are for a shell; under Deno and Bun, which rewrite what they run, that of an equal program. */
  text(): string;
}
declare const __build: Build;
/** The version, in a library that stands beside the built file, or was bundled into an application. */
declare const __library: string;

export const build: Build | undefined = typeof __build === "object" ? __build : undefined;
const library = typeof __library === "string" ? __library : undefined;

/**
 * From source: the path of this module. Of a library: its own, or that of the application that it was bundled into; and where that was made CommonJS,
 * which knows no import.meta, the script that is run. (The built file needs none.)
 */
const sourceFile = (): string => {
  if (typeof __filename === "string") return __filename;
  const url = (import.meta as { url?: string }).url;
  return url ? fileURLToPath(url) : resolve(process.argv[1] || ".");
};

/** Deno and Bun have some things that differ. */
export const runtime = "Bun" in globalThis ? "bun" : "Deno" in globalThis ? "deno" : "node";

export function version(): string {
  if (build || library) return build ? build.version : library!;
  return (JSON.parse(readFileSync(join(dirname(sourceFile()), "package.json"), "utf8")) as { version: string }).version;
}

/**
 * Sees to it that nobody debugs this process: whoever reaches its port runs code as our user.
 *
 * Node opens one for --inspect, and on a SIGUSR1 that nobody handles: log rotation sends it by habit, and a sandbox may be allowed to. So this comes
 * first of all. One that was asked for is closed at once, one of a signal in the milliseconds before as soon as a start is over: to look for it loads
 * a module; and once more, since it comes a moment later than its signal.
 */
export async function refuseDebuggers(): Promise<void> {
  process.on("SIGUSR1", () => {});
  for (const ms of [200, 1000]) setTimeout(closeDebugger, ms).unref();
  if (process.env.BUN_INSPECT || givenWords().search(debugWords) >= 0) await closeDebugger();
}

/** Not every runtime, nor every build of node, has one. */
async function closeDebugger(): Promise<void> {
  const inspector = await import("node:inspector").catch(() => undefined);
  safely(() => inspector?.url() !== undefined && inspector.close());
}

/** The flags of this process, by its command and by its environment. */
function givenWords(): string {
  return [...process.execArgv, process.env.NODE_OPTIONS].join(" ");
}

/** A word of node's that has a debugger attached, as it stands among others in NODE_OPTIONS. */
const debugWords = /(^|\s)"?--(inspect|debug)(-port"?\s+\S+|\S*)/g;

/** The environment for a daemon of ours: what has it debugged is meant for other programs. Its processes get it again: childEnvironment(). */
export function daemonEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: options, BUN_INSPECT: inspect, ...others } = env;
  const ours = options?.replace(debugWords, "").trim();
  delete others.CLAUDE_RPC_TOKEN; // a client's: /proc would show it as long as the daemon lives
  if (inspect !== undefined) others.HOLDFAST_BUN_INSPECT = inspect;
  if (options !== ours) others.HOLDFAST_NODE_OPTIONS = options;
  return ours === undefined ? others : { ...others, NODE_OPTIONS: ours };
}

/** The environment that the daemon was started from. */
export function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { HOLDFAST_NODE_OPTIONS: options, HOLDFAST_BUN_INSPECT: inspect, ...others } = env;
  if (options !== undefined) others.NODE_OPTIONS = options;
  if (inspect !== undefined) others.BUN_INSPECT = inspect;
  return others;
}

/** What --version --json tells. */
export function versionFacts(): Record<string, unknown> {
  const { sha256, file = process.argv[1] } = build || {};
  return { version: version(), sha256, runtime, runtimeVersion: process.versions[runtime], file };
}

/**
 * Keeps V8's young generation, the process's own, at the size that it has: it would double it again and again as more objects outlive a collection,
 * up to 16 MiB, never give them back, and hold whatever they refer to until they have been filled once more. For a daemon that has started, of its
 * own file: as a flag of its command it would cost 11 ms of each start (bench/README.md). What its caller has chosen for this generation goes before it.
 */
export async function keepYoungSmall(): Promise<void> {
  if (runtime !== "node" || givenWords().includes("semi-space")) return;
  (await import("node:v8")).setFlagsFromString("--semi-space-growth-factor=1");
}

/**
 * Says what runs this very program as the daemon of some places: the runtime and the flags that this process was started with, when it is this
 * program's own; those of a script that has imported it are that script's business.
 *
 * A program that came through a pipe (`node - --serve < holdfast.js`) is written to the run directory first.
 *
 * @param imported It is a library here: its own file, or the one that the application names.
 * @throws {Failure} It cannot be written (exit code 73), or a library does not find its file.
 */
export function daemonCommand(places: Places, imported?: { program: string | undefined }): string[] {
  const flags = imported ? defaultFlags() : ownFlags();
  return [
    process.execPath,
    ...flags,
    imported && !build ? besideFile(imported.program) : programFile(places, imported),
    "--serve",
    "--launched",
    "--socket",
    places.socket,
  ];
}

function defaultFlags(): string[] {
  return { node: [], deno: ["run", "--allow-all"], bun: [] }[runtime];
}

/** Those of this process that a daemon is to have, too: nobody debugs that. */
function ownFlags(): string[] {
  const isOther = (flag: string, at: number, flags: string[]): boolean =>
    !/^--(input-type|inspect|debug)/.test(flag) && !/^--(inspect|debug)-port$/.test(flags[at - 1] ?? "");
  return runtimeFlags().filter(isOther);
}

/** What stands between runtime and script. Deno does not tell it, and Bun takes a "-" for a flag: there the kernel is asked. */
function runtimeFlags(): string[] {
  if (runtime === "node") return process.execArgv;
  const words = (readText("/proc/self/cmdline") || "").split("\0").slice(0, -1);
  const scriptAt = words.length - process.argv.slice(2).length - 1;
  return scriptAt > 0 ? words.slice(1, scriptAt) : defaultFlags();
}

/**
 * The program, as a library finds it: where the application says, or beside itself.
 *
 * @throws {Failure} It is not there.
 */
export function besideFile(program: string | undefined): string {
  const beside = build?.file ?? join(dirname(sourceFile()), library ? "holdfast.js" : "holdfast.ts");
  const path = program === undefined ? beside : resolve(program);
  if (isOnDisk(path)) return path;
  throw cannot(`find holdfast.js at "${path}": there is no such file`, {
    hint: "name it with `program`: an application that is bundled into one file ships holdfast.js beside it",
  });
}

/** The file to name in a hint: the one that was run; where this is a library its own, and not the application's script. */
export function programPath(): string {
  if (build) return (build.main ? process.argv[1] : build.file) || "holdfast.js";
  const beside = join(dirname(sourceFile()), library ? "holdfast.js" : "holdfast.ts");
  return isOnDisk(beside) ? beside : "holdfast.js";
}

function programFile(places: Places, imported?: { program: string | undefined }): string {
  if (imported?.program !== undefined) return besideFile(imported.program);
  const script = imported ? undefined : process.argv[1];
  const known = [script, build ? build.file : join(dirname(sourceFile()), "holdfast.ts")].find(
    (path) => path && isOnDisk(path),
  );
  if (known) return known;
  // .cjs: whatever package.json stands above the run directory
  const copy = join(places.directory, "holdfast.cjs");
  const text = build!.text(); // the sources are on disk
  if (readText(copy) !== text) {
    makeRunDirectory(places.directory);
    writeOwnFile(copy, text);
  }
  return copy;
}

/** A path that leads to the same file in another process: not "-", /dev/stdin, or bash's <(cat holdfast.js). */
function isOnDisk(path: string): boolean {
  return path !== "-" && !/^\/(dev|proc)\//.test(path) && safely(() => statSync(path).isFile()) === true;
}

/** Shells in shells, at most. */
const maxAncestors = 100;

/**
 * Our parent, its parent, and so on: what a channel hangs on.
 *
 * The last one before init is left out where it is not our parent itself: sshd may be restarted, and its sessions go on.
 */
export function ancestors(): Identity[] {
  const chain: Identity[] = [];
  for (let pid = process.ppid; pid > 1 && chain.length < maxAncestors; ) {
    const parent = Number(statOf(pid)[1] ?? 0);
    if (chain.length === 0 || parent > 1) chain.push(identify(pid));
    pid = parent;
  }
  return chain;
}

/** None of our ancestors, as they were, has ended. */
export function areAlive(chain: Identity[]): boolean {
  const isOurs = chain.length === 0 || chain[0]!.pid === process.ppid;
  return isOurs && chain.every((identity) => livenessOf(identity).state !== "dead");
}

export type StdioItem = "ignore" | "pipe" | number;

/**
 * Gives a child nothing, /dev/null, in the place of each descriptor that it would inherit beyond its own: those that our caller left open. Node marks
 * those it was given close-on-exec up to 15, and from there to the first gap; whatever is beyond would stay open in the child, and keep a caller waiting
 * who waits for the end of a pipe. Deno marks none, not even what it listens to.
 *
 * @param stdio The child's own; the others are added.
 * @param marked No higher one than this is looked at that is marked by its runtime.
 * @returns What is to be closed when the child has been started: one for each, since Deno closes it as it hands it on.
 */
export function maskInherited(stdio: StdioItem[], marked: number): number[] {
  const nothing: number[] = [];
  for (const descriptor of inheritedDescriptors(marked)) {
    while (stdio.length < descriptor) stdio.push("ignore"); // of those above 2, that one is left as it is: closed
    stdio[descriptor] = openSync("/dev/null", "r");
    nothing.push(stdio[descriptor]);
  }
  return nothing;
}

function inheritedDescriptors(marked: number): number[] {
  const isInherited = (descriptor: number): boolean =>
    (parseInt(capture(/^flags:\s+(\d+)/m, readText(`/proc/self/fdinfo/${descriptor}`)) || "2000000", 8) & 0o2000000) ===
    0; // O_CLOEXEC
  const limit = Number(capture(/^Max open files\s+(\d+)/m, readText("/proc/self/limits")) || Infinity); // dup2(2) takes none beyond it
  return namesIn("/proc/self/fdinfo")
    .map(Number)
    .filter((descriptor) => descriptor > marked && isInherited(descriptor) && descriptor < limit);
}
