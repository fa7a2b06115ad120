/** Which build this is. The build hands `__build` to all modules, which it wraps in one function (see build.mjs); from source there is none. */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";

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
  /** Where V8's compiled code of the program is kept for this mode; undefined where it is not. */
  cache?: CodeCache;
}

export interface CodeCache {
  /** Of this mode, in a directory beside the built file. */
  path: string;
  /** Of which program, as last changed, and which node it is: the file begins with it. */
  key: string;
  /** It was there, and V8 took it. */
  fits: boolean;
  /** Nobody else can write into its directory. Throws where there is none. */
  isOurs(): boolean;
  /** The whole file, of what is compiled by now. */
  data(): Uint8Array;
}
declare const __build: Build;

export const build: Build | undefined = typeof __build === "object" ? __build : undefined;

/** From source: the path of this module. (The build has no import.meta: its output is CommonJS.) */
export const sourceFile = (import.meta as { filename?: string }).filename;

/** Deno and Bun have some things that differ. */
export const runtime = "Bun" in globalThis ? "bun" : "Deno" in globalThis ? "deno" : "node";

export function version(): string {
  if (build) return build.version;
  return (JSON.parse(readFileSync(join(dirname(sourceFile!), "package.json"), "utf8")) as { version: string }).version;
}
