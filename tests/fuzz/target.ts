/**
 * What a fuzz target is, and how its cases are run.
 *
 * A case is a seed. So a failure is told by its seed alone, and the command in its message repeats exactly that case.
 */

import type { Random } from "./random.ts";
import { createRandom } from "./random.ts";

/** Makes a case of what `random` gives, does it, and throws unless all that must hold does. */
export type Check = (random: Random, seed: number) => void | Promise<void>;

export interface Target {
  name: string;
  /** Cases under way at once, where they wait more than they work. 1 when absent. */
  lanes?: number;
  /** Seconds that the longest case may take. 20 when absent. */
  limitS?: number;
  /** Hands over the check, with whatever it needs around it; ends that, and throws unless all is as it was before. */
  run(useCheck: (check: Check) => Promise<void>): Promise<void>;
}

export interface Run {
  /** The first seed; the others follow it. */
  seed: number;
  /** How many; fewer when the time is up before. */
  cases: number;
  /** No case begins after this, in ms of performance.now(). */
  until?: number;
  /** Told now and then. */
  progress?(done: number, failures: number): void;
}

export interface Outcome {
  name: string;
  cases: number;
  seed: number;
  seconds: number;
  /** What is wrong, each with the command that repeats it. */
  failures: string[];
}

/** After so many a target ends: one bug fails most cases. */
const maxFailures = 5;
/** A target whose cases return at once lets timers run after so many. */
const breathCases = 1000;

/** Runs cases of a target from one seed on. Never rejects: what goes wrong is a failure. */
export async function runTarget(target: Target, { seed, cases, until = Infinity, progress }: Run): Promise<Outcome> {
  const outcome: Outcome = { name: target.name, cases: 0, seed, seconds: 0, failures: [] };
  const start = performance.now();
  let next = seed;
  const lane = async (check: Check): Promise<void> => {
    while (next < seed + cases && outcome.failures.length < maxFailures && performance.now() < until) {
      const one = next++;
      try {
        const result = check(createRandom(one), one);
        if (result !== undefined) await within(target.limitS ?? 20, result);
      } catch (error) {
        outcome.failures.push(`${wordsOf(error)}\n  npm run fuzz -- --only ${target.name} --seed ${one} --cases 1`);
      }
      if (++outcome.cases % breathCases === 0) await new Promise((done) => setImmediate(done));
      progress?.(outcome.cases, outcome.failures.length);
    }
  };
  try {
    await target.run(
      async (check) => void (await Promise.all(Array.from({ length: target.lanes ?? 1 }, () => lane(check)))),
    );
  } catch (error) {
    outcome.failures.push(
      `after seeds ${seed} to ${next - 1}: ${wordsOf(error)}\n  npm run fuzz -- --only ${target.name} --seed ${seed} --cases ${outcome.cases}`,
    );
  }
  outcome.seconds = (performance.now() - start) / 1000;
  return outcome;
}

export function rowOf({ name, cases, seed, failures }: Outcome): string {
  return `FUZZ ${name}: ${cases} cases, seed ${seed}..${seed + cases - 1}, ${failures.length} failures`;
}

/** Throws an Error with both, as JSON or words, unless it is so. */
export function demand(isSo: boolean, what: string, ...shown: unknown[]): asserts isSo {
  if (!isSo) throw new Error([what, ...shown.map(show)].join("\n  "));
}

function show(value: unknown): string {
  const text =
    typeof value === "string"
      ? value
      : Buffer.isBuffer(value)
        ? JSON.stringify(value.toString("latin1"))
        : JSON.stringify(value, (_, inner) =>
            inner instanceof Uint8Array || inner?.type === "Buffer"
              ? Buffer.from(inner.data ?? inner).toString("latin1")
              : inner,
          );
  return text === undefined
    ? "undefined"
    : text.length > 2000
      ? `${text.slice(0, 2000)}… (${text.length} characters)`
      : text;
}

async function within(seconds: number, result: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error(`It did not end within ${seconds} s`)), seconds * 1000);
  });
  await Promise.race([result, late]).finally(() => clearTimeout(timer));
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : `It threw ${String(error)}`;
}
