/**
 * Fuzzes for as long as it is given: `npm run fuzz -- [--minutes 30] [--seed N] [--cases N] [--only TARGET]`
 *
 * Each target gets its part of the time; `--cases` ends it sooner. The seed of the first case is drawn unless it is given; each case has its
 * own, and the seed of a failure is printed with the command that repeats exactly that case. The built file is the one that `--only live` runs.
 * Exit code 1 if anything failed.
 */

import { rmSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

process.chdir(fileURLToPath(new URL("../..", import.meta.url)));
/** Below node_modules, where a bundle finds its external packages; by pid, so that two runs do not meet. */
const directory = `node_modules/.cache/holdfast-fuzz/${process.pid}`;
await build({
  ...{
    entryPoints: ["tests/fuzz/main.ts"],
    outfile: `${directory}/main.mjs`,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node18",
  },
  ...{ packages: "external", sourcemap: "inline", logLevel: "warning" },
});
process.setSourceMapsEnabled(true);
process.once("exit", () => rmSync(directory, { recursive: true, force: true }));
await import(pathToFileURL(`${directory}/main.mjs`).href);
