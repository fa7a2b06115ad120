// time limit: 400 s; long
/**
 * The table of runtimes, as `npm run test:runtimes` prints it: on CI all of it; elsewhere Deno, and a Node that is too old, and only
 * where the runtimes are installed already: they are 1.3 GB.
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const cache =
  process.env.HOLDFAST_RUNTIMES ?? join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "holdfast/runtimes");
if (process.env.CI !== "true" && !existsSync(cache)) {
  console.log("SKIP 1 the runtimes are not installed here: npm run test:runtimes does it");
  process.exit(0);
}

const isWhole = process.env.CI === "true" || process.env.HOLDFAST_TEST_ALL === "1";
const wanted = isWhole ? [] : ["node16", "deno2"];

const test = suite("The built file");

test("does the same on every runtime, and tells an old one what is needed", () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["tests/runtimes/run.mjs", ...wanted], {
    encoding: "utf8",
    timeout: 380_000,
  });
  console.error(stdout); // the table
  assert.is(status, 0, stdout + stderr);
  assert.match(stdout, isWhole ? /^bun 1 +ok/m : /^deno 2 +ok/m);
});

test.run();
