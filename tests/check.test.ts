// time limit: 600 s; long
/** What `npm run check` runs, each by itself: the types by tsc, format and lint by biome, and the types once more by Deno, which reads the sources as they are. */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const cache =
  process.env.HOLDFAST_RUNTIMES ?? join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "holdfast/runtimes");
const hasDeno = process.env.CI === "true" || existsSync(cache);

const test = suite("check");

for (const [name, command] of [
  ["tsc finds no mistake", ["npx", "tsc"]],
  ["biome finds nothing to mend", ["npx", "biome", "check", "--error-on-warnings", "--colors=off"]],
  ["deno check finds no mistake", [process.execPath, "tests/runtimes/run.mjs", "--check"]], // with npm run test:runtimes, or on CI
] as const) {
  (name.startsWith("deno") && !hasDeno ? test.skip : test)(name, () => {
    const { status, stdout, stderr } = spawnSync(command[0]!, command.slice(1), { encoding: "utf8" });
    assert.is(status, 0, `${stdout}${stderr}`);
  });
}

test.run();
