// time limit: 400 s; long
/**
 * A million cases on CI and by `npm run test:faults`, fifty thousand elsewhere: the first of them, the same ones in each run. `npm run fuzz` does
 * others, for as long as it is given.
 */

import { spawnSync } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { runsAll } from "./daemon.ts";
import { argumentsTarget } from "./fuzz/arguments.ts";
import { frameTarget } from "./fuzz/frame.ts";
import { keptTarget } from "./fuzz/kept.ts";
import { liveTarget } from "./fuzz/live.ts";
import { createRandom } from "./fuzz/random.ts";
import { claimTarget, recordTarget, stopTarget, tokenTarget } from "./fuzz/record.ts";
import { rpcTarget } from "./fuzz/rpc.ts";
import type { Target } from "./fuzz/target.ts";
import { demand, rowOf, runTarget } from "./fuzz/target.ts";
import { toolsTarget } from "./fuzz/tools.ts";

const runs: [Target, cases: number][] = [
  [frameTarget, 450_000],
  [rpcTarget, 249_800],
  [argumentsTarget, 270_000],
  [toolsTarget, 10_000],
  [recordTarget, 7000],
  [claimTarget, 5000],
  [tokenTarget, 5500],
  [stopTarget, 500],
  [keptTarget, 200],
  [liveTarget, 2000],
];

const fuzz = suite("fuzzing");

fuzz("has a million cases", () =>
  assert.is(
    runs.reduce((sum, [, cases]) => sum + cases, 0),
    1_000_000,
  ),
);

for (const [target, all] of runs) {
  const cases = runsAll || process.env.CI === "true" ? all : all / 20;
  fuzz(`finds nothing in ${cases} cases: ${target.name}`, async () => {
    const outcome = await runTarget(target, { seed: 1, cases });
    console.log(`\n${rowOf(outcome)}, ${outcome.seconds.toFixed(1)} s`);
    assert.is(outcome.failures.join("\n\n"), "");
    assert.is(outcome.cases, cases);
  });
}

fuzz("tells the seed of a case that fails, and what repeats it; and of what is wrong in the end", async () => {
  const target: Target = {
    name: "test",
    lanes: 3,
    async run(useCheck) {
      await useCheck(async (random, seed) =>
        demand(seed !== 17 || random(1000) !== createRandom(17)(1000), "It is wrong", { seed }),
      );
      throw new Error("It is not as it was");
    },
  };
  const { cases, failures } = await runTarget(target, { seed: 10, cases: 20 });
  assert.is(cases, 20);
  assert.match(
    failures[0]!,
    /^Error: It is wrong\n {2}\{"seed":17\}\n[\s\S]*\n {2}npm run fuzz -- --only test --seed 17 --cases 1$/,
  );
  assert.match(
    failures[1]!,
    /^after seeds 10 to 29: Error: It is not as it was\n[\s\S]*\n {2}npm run fuzz -- --only test --seed 10 --cases 20$/,
  );
  assert.is(failures.length, 2);
});

fuzz("runs one case by its seed, as its message says", () => {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ["tests/fuzz/run.mjs", "--only", "frame", "--seed", "123456", "--cases", "1"],
    { encoding: "utf8" },
  );
  assert.is(stderr, "");
  assert.match(
    stdout,
    /^FUZZ frame: 1 cases, seed 123456\.\.123456, 0 failures\n[\s\S]*\n\| frame \| 1 \| \d\.\d \| good \|\n$/,
  );
  assert.is(status, 0);
  assert.is(spawnSync(process.execPath, ["tests/fuzz/run.mjs", "--only", "nothing"]).status, 64);
});

fuzz.run();
