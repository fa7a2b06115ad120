/**
 * The tools of package.json beside this file, from the npm registry, once, in ${XDG_CACHE_HOME:-~/.cache}/holdfast/bundles/<hash of that
 * package.json>. `node tests/bundles/install.mjs` prints the directory.
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const manifest = fileURLToPath(new URL("package.json", import.meta.url));
const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "holdfast/bundles");
const directory = join(cache, createHash("sha256").update(readFileSync(manifest)).digest("hex").slice(0, 12));
if (!existsSync(directory)) install();
console.log(directory);

/** Under a name of its own, then renamed: an installation that was cut short is never taken for a whole one. */
function install() {
  const partial = `${directory}.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  copyFileSync(manifest, join(partial, "package.json"));
  const flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"];
  const env = { NODE_EXTRA_CA_CERTS: process.env.HOLDFAST_TEST_CERTIFICATES, ...process.env };
  const npm = spawnSync("npm", ["install", ...flags], { cwd: partial, stdio: ["ignore", "ignore", "inherit"], env });
  if (npm.status === 0 && !existsSync(directory)) renameSync(partial, directory);
  rmSync(partial, { recursive: true, force: true });
  if (npm.status !== 0) process.exit(1);
}
