/** The command line of run.mjs: targets in turn, progress, and a table in the end. */

import { parseArgs } from "node:util";
import { argumentsTarget } from "./arguments.ts";
import { frameTarget } from "./frame.ts";
import { keptTarget } from "./kept.ts";
import { liveTarget } from "./live.ts";
import { claimTarget, recordTarget, stopTarget, tokenTarget } from "./record.ts";
import { rpcTarget } from "./rpc.ts";
import type { Outcome, Target } from "./target.ts";
import { rowOf, runTarget } from "./target.ts";
import { toolsTarget } from "./tools.ts";

const targets: Target[] = [
  frameTarget,
  keptTarget,
  rpcTarget,
  argumentsTarget,
  toolsTarget,
  recordTarget,
  claimTarget,
  tokenTarget,
  stopTarget,
  liveTarget,
];

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    seed: { type: "string" },
    cases: { type: "string" },
    only: { type: "string" },
  },
});
const chosen = targets.filter(({ name }) => values.only === undefined || name === values.only);
const minutes = Number(values.minutes);
const seed = Number(values.seed ?? Math.floor(Math.random() * 1e9));
const cases = Number(values.cases ?? Number.MAX_SAFE_INTEGER - seed);
if (chosen.length === 0 || ![minutes, seed, cases].every((value) => value >= 0)) {
  console.error(
    `error: Cannot fuzz: --minutes, --seed and --cases take numbers, --only one of ${targets.map(({ name }) => name).join(", ")}`,
  );
  process.exit(64);
}

// by exit(), which ends the daemons too
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit(130));

const outcomes: Outcome[] = [];
for (const target of chosen) {
  const start = performance.now();
  let told = start;
  const until = start + (minutes * 60_000) / chosen.length;
  const progress = (done: number, failures: number): void => {
    if (performance.now() - told < (process.stdout.isTTY ? 1000 : 60_000)) return;
    told = performance.now();
    const words = `${target.name}: ${done} cases, ${Math.round((told - start) / 1000)} of ${Math.round((until - start) / 1000)} s, ${failures} failures`;
    process.stdout.write(process.stdout.isTTY ? `\r\x1b[K… ${words}` : `… ${words}\n`);
  };
  const outcome = await runTarget(target, { seed, cases, until, progress });
  if (process.stdout.isTTY) process.stdout.write("\r\x1b[K");
  console.log(rowOf(outcome));
  for (const failure of outcome.failures) console.log(`  ${failure.replaceAll("\n", "\n  ")}\n`);
  outcomes.push(outcome);
}

console.log(
  [
    "",
    "| target | cases | seconds | result |",
    "| --- | --- | --- | --- |",
    ...outcomes.map(
      ({ name, cases, seconds, failures }) =>
        `| ${name} | ${cases} | ${seconds.toFixed(1)} | ${failures.length === 0 ? "good" : `${failures.length} failures`} |`,
    ),
  ].join("\n"),
);
process.exitCode = outcomes.some(({ failures }) => failures.length > 0) ? 1 : 0;
