/**
 * This program as a file, the command that runs it again as a daemon, and what V8 has compiled of it.
 *
 *     server                   the built file
 *     .server.cache/serve      0700/0600: the code of the functions that --serve needs, for its next start; so of the daemon, --bridge, --call, --stop
 *
 * Who owns the file keeps these beside it, where that is possible; else each start compiles anew. Remove them at any time.
 */

import { mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { makeRunDirectory, readText, safely, writeOwnFile } from "./socket.ts";
import type { Places } from "./socket.ts";
import { build, runtime, sourceFile } from "./version.ts";

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

/** Node's default is 4 threads for V8, of 20 kB each; what a daemon does takes none of them (bench/README.md). */
const leanFlag = "--v8-pool-size=1";

function defaultFlags(): string[] {
  return { node: [leanFlag], deno: ["run", "--allow-all"], bun: [] }[runtime];
}

/** What stands between runtime and script. Deno does not tell it, and Bun takes a "-" for a flag: there the kernel is asked. */
function ownFlags(): string[] {
  if (runtime === "node")
    return [leanFlag, ...process.execArgv.filter((flag) => flag !== leanFlag && !flag.startsWith("--input-type"))];
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

/**
 * Keeps what V8 has compiled by now, when there is none that fits. Never fails: it is only for speed.
 */
export function keepCompiled(): void {
  const { cache, file } = build || {};
  if (!cache || cache.fits) return;
  safely(() => {
    const { uid, ctimeMs } = statSync(file!);
    if (uid !== process.getuid!() || !cache.key.includes(String(ctimeMs))) return; // its owner could not remove what is ours; or it is another file by now
    safely(() => mkdirSync(dirname(cache.path), { mode: 0o700 }));
    if (cache.isOurs()) writeOwnFile(cache.path, cache.data());
  });
}
