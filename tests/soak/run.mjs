/**
 * `npm run soak -- [--minutes 30] [--seed N] [--share 50] [--only NAME,…] [--program FILE] [--out DIR]`: see soak.ts. Progress as it goes, then a table
 * and an SVG. Beside it, in a process of its own, the library's: library.ts; `--only library` is that alone. `--share` is in percent of one core, for daemon and clients together. Exit code 1 if anything was wrong.
 * Ctrl-C ends it early, as the time would.
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { build } from "esbuild";

const text = (value) => ({ type: "string", default: value });
const { values: options } = parseArgs({
  options: {
    minutes: text("30"),
    seed: text(String(Date.now() % 1_000_000)),
    share: text("50"),
    only: text(""),
    program: text(""),
    out: text(""),
  },
});
const given = (path) => resolve(process.env.INIT_CWD ?? ".", path); // npm runs scripts at the top
const root = fileURLToPath(new URL("../..", import.meta.url));
const out = options.out === "" ? join(root, "tests/soak/plots") : given(options.out);
const program = options.program === "" ? {} : { program: given(options.program) };
process.chdir(root);
const [minutes, seed, share] = [options.minutes, options.seed, options.share].map(Number);
if (!(minutes > 0 && Number.isSafeInteger(seed) && share > 0)) {
  console.error("error: Cannot soak: --minutes and --share must be positive numbers, --seed an integer");
  process.exit(64);
}

const bundles = resolve(`node_modules/.cache/holdfast-soak-${process.pid}`);
await build({
  entryPoints: ["tests/soak/soak.ts", "tests/soak/library.ts"],
  outdir: bundles,
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node18",
  packages: "external",
  logLevel: "warning",
});
const library = ["", "library"].includes(options.only) ? soakLibrary() : Promise.resolve([0]);
process.once("exit", () => rmSync(bundles, { recursive: true }));
if (options.only === "library") process.exit((await library)[0] ?? 1);
const { soak } = await import(pathToFileURL(join(bundles, "soak.mjs")).href);

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => stop.abort());
console.log(`${minutes} minutes, seed ${seed}, ${share} % of a core`);
const { problems, summary, table, svg } = await soak({
  seconds: minutes * 60,
  seed,
  share: share / 100,
  stop: stop.signal,
  progress: (line) => console.log(line),
  ...(options.only === "" ? {} : { only: options.only.split(",") }),
  ...program,
});
mkdirSync(out, { recursive: true });
const path = join(out, `soak-${seed}.svg`);
writeFileSync(path, svg);
console.log(`\n${table}\n\n${summary}\n${path}`);
for (const problem of problems) console.error(`error: ${problem}`);
console.log(
  problems.length === 0
    ? "Nothing was wrong"
    : `${problems.length} wrong. Again with: npm run soak -- --minutes ${minutes} --seed ${seed} --share ${share}`,
);
const [libraryCode] = await library;
process.exit(problems.length === 0 && libraryCode === 0 ? 0 : 1);

/** Told to end when we are: then it ends its daemon, and what that holds. */
function soakLibrary() {
  const args = ["--expose-gc", join(bundles, "library.mjs"), String(minutes * 60), String(seed)];
  const child = spawn(process.execPath, args, { stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => child.kill("SIGTERM"));
  return once(child, "exit");
}
