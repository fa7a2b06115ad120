/**
 * Which program this is: its build, its runtime, its file, and the command that runs it again as a daemon.
 *
 * The build hands `__build` to the whole program, which it wraps in one function (see build.mjs); from source there is none.
 */

import { readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { safely } from "./failure.ts";
import { readText, writeOwnFile } from "./record.ts";
import { makeRunDirectory } from "./socket.ts";
import type { Places } from "./socket.ts";

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

export const build: Build | undefined = typeof __build === "object" ? __build : undefined;

/** From source: the path of this module. (The build has no import.meta: its output is CommonJS.) */
const sourceFile = (import.meta as { filename?: string }).filename;

/** Deno and Bun have some things that differ. */
export const runtime = "Bun" in globalThis ? "bun" : "Deno" in globalThis ? "deno" : "node";

export function version(): string {
  if (build) return build.version;
  return (JSON.parse(readFileSync(join(dirname(sourceFile!), "package.json"), "utf8")) as { version: string }).version;
}

/** What --version --json tells. */
export function versionFacts(): Record<string, unknown> {
  const { sha256, file = process.argv[1] } = build || {};
  return { version: version(), sha256, runtime, runtimeVersion: process.versions[runtime], file };
}

/**
 * Says what runs this very program as the daemon of some places: the runtime and the flags that this process was started with, when it is this
 * program's own; those of a script that has imported it are that script's business.
 *
 * A program that came through a pipe (`node - --serve < holdfast.js`) is written to the run directory first.
 *
 * @throws {Failure} It cannot be written (exit code 73).
 */
export function daemonCommand(places: Places, isImported = false): string[] {
  const flags = isImported ? defaultFlags() : ownFlags();
  return [
    process.execPath,
    ...flags,
    programFile(places, isImported),
    "--serve",
    "--launched",
    "--socket",
    places.socket,
  ];
}

function defaultFlags(): string[] {
  return { node: [], deno: ["run", "--allow-all"], bun: [] }[runtime];
}

/** What stands between runtime and script. Deno does not tell it, and Bun takes a "-" for a flag: there the kernel is asked. */
function ownFlags(): string[] {
  if (runtime === "node") return process.execArgv.filter((flag) => !flag.startsWith("--input-type"));
  const words = (readText("/proc/self/cmdline") || "").split("\0").slice(0, -1);
  const scriptAt = words.length - process.argv.slice(2).length - 1;
  return scriptAt > 0 ? words.slice(1, scriptAt) : defaultFlags();
}

function programFile(places: Places, isImported: boolean): string {
  const script = isImported ? undefined : process.argv[1];
  const known = [script, build ? build.file : join(dirname(sourceFile!), "holdfast.ts")].find(
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
