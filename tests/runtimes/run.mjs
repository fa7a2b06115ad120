/**
 * One table: dist/holdfast.js and the sources on each runtime, feature by feature. `npm run test:runtimes [-- runtime …]`
 * With `--check` Deno checks the types of the sources, and that is all: a part of `npm run check`.
 *
 * The runtimes of package.json beside this file come from the npm registry, once, into ${XDG_CACHE_HOME:-~/.cache}/holdfast/runtimes/<hash of that
 * package.json>; HOLDFAST_RUNTIMES names another directory that has them. The features are those of features.ts. Exit code 1 if one is not "ok".
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
process.chdir(join(here, "../.."));
if (process.platform !== "linux" || process.arch !== "x64") {
  console.error("error: Cannot run the table: the runtimes of tests/runtimes/package.json are for Linux on x64");
  process.exit(process.env.CI === "true" ? 1 : 0);
}

const modules = join(process.env.HOLDFAST_RUNTIMES ?? install(), "node_modules");
if (process.argv[2] === "--check") {
  const binary = join(modules, "@deno/linux-x64-glibc/deno");
  const checked = spawnSync(binary, ["check", "--quiet", "holdfast.ts"], {
    stdio: "inherit",
    env: { ...process.env, NO_COLOR: "1" },
  });
  process.exit(checked.status ?? 1);
}

const bundle = `node_modules/.cache/holdfast-runtimes-${process.pid}.mjs`;
process.once("exit", () => rmSync(bundle, { force: true }));
await build({
  entryPoints: [`${here}features.ts`],
  outfile: bundle,
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node18",
  packages: "external",
  logLevel: "warning",
});
const { runtimes, runTable } = await import(pathToFileURL(bundle).href);
process.exitCode = (await runTable(runtimes(modules), process.argv.slice(2))) ? 0 : 1;

/** Installs under a name of its own, then renames: an installation that was cut short is never taken for a whole one. */
function install() {
  const manifest = readFileSync(`${here}package.json`);
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "holdfast/runtimes");
  const directory = join(cache, createHash("sha256").update(manifest).digest("hex").slice(0, 12));
  if (existsSync(directory)) return directory;
  console.log(`installing the runtimes into ${directory} …`);
  const partial = `${directory}.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  copyFileSync(`${here}package.json`, join(partial, "package.json"));
  // no scripts: Node is in the packages as it is; the binaries of deno and bun are in packages of their own, for each platform
  const npm = spawnSync(
    "npm",
    ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"],
    {
      cwd: partial,
      stdio: ["ignore", "inherit", "inherit"],
      env: { NODE_EXTRA_CA_CERTS: process.env.HOLDFAST_TEST_CERTIFICATES, ...process.env },
    },
  );
  if (npm.status !== 0) process.exit(1);
  try {
    renameSync(partial, directory);
  } catch (error) {
    if (!existsSync(directory)) throw error; // another run was quicker
    rmSync(partial, { recursive: true });
  }
  return directory;
}
