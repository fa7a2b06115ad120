/** Rounds side by side, and what becomes of them: medians, spread, and whether a goal is reached. */

import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";

/**
 * Runs every task once in each round, in turn, forwards and backwards: what else the machine does in that time meets all of them alike.
 *
 * @param tasks By name; each resolves to one number. A round of warming up is thrown away.
 * @returns The numbers of each task, by round.
 */
export async function sideBySide(rounds, tasks, progress, { warmup = 1 } = {}) {
  const names = Object.keys(tasks);
  const found = Object.fromEntries(names.map((name) => [name, []]));
  for (let round = -warmup; round < rounds; round++) {
    for (const name of round % 2 === 0 ? names : [...names].reverse()) {
      progress(`${round < 0 ? "warming up" : `round ${round + 1} of ${rounds}`}: ${name}`);
      const value = await tasks[name]();
      if (round >= 0) found[name].push(value);
    }
  }
  return found;
}

export function quantile(values, at) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * at;
  const low = Math.floor(place);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
}

export const median = (values) => quantile(values, 0.5);

/** Half of the rounds lie within the median ± this: half the distance between the quartiles. */
export const spread = (values) => (quantile(values, 0.75) - quantile(values, 0.25)) / 2;

/**
 * Judges one row: ours beside theirs, or ours alone.
 *
 * The ratio is that of the medians: one round that something else has got in the way of does not move it, as it would a ratio of its own. Its spread is
 * half the distance between the quartiles of the ratios that such rounds might have given as well: drawn from these, again and again.
 *
 * @param row `ours`, and `theirs` of the same rounds, or none. `goal` is `{ most: x }`, `{ least: x }`, or absent.
 */
export function judge({ ours, theirs, goal }) {
  const ratios = theirs === undefined ? ours : ours.map((value, round) => value / theirs[round]);
  const middle = theirs === undefined ? median(ours) : median(ours) / median(theirs);
  const wide = theirs === undefined ? spread(ours) : spread(drawnRatios(ours, theirs));
  const isReached =
    goal === undefined ? undefined : goal.most !== undefined ? middle <= goal.most : middle >= goal.least;
  const isWorse =
    goal === undefined ? false : goal.most !== undefined ? middle - wide > goal.most : middle + wide < goal.least;
  return { ratios, middle, wide, isReached, isWorse };
}

/** The same ones each time: by a generator that begins with the same number. */
function drawnRatios(ours, theirs, count = 400) {
  let state = 1;
  const next = () => {
    state = (state * 48271) % 2147483647; // Park and Miller's
    return state / 2147483647;
  };
  return Array.from({ length: count }, () => {
    const rounds = ours.map(() => Math.floor(next() * ours.length));
    return median(rounds.map((round) => ours[round])) / median(rounds.map((round) => theirs[round]));
  });
}

/** A child of ours, ended with us by its pid. */
const children = new Set();

export function start(command, args, options = {}) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"], ...options });
  children.add(child);
  child.once("exit", () => children.delete(child));
  return child;
}

export function exitOf(child) {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve(child.exitCode);
  return new Promise((done, fail) => child.once("error", fail).once("exit", done));
}

export async function end(child, signal = "SIGTERM") {
  if (child.exitCode === null && child.signalCode === null) child.kill(signal);
  await exitOf(child);
}

export function endAll() {
  for (const child of children) child.kill("SIGKILL");
}

/** Runs a command to its end; its stdout. */
export async function output(command, args, options = {}) {
  const child = start(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
  let text = "";
  let errors = "";
  child.stdout.setEncoding("utf8").on("data", (chunk) => (text += chunk));
  child.stderr.setEncoding("utf8").on("data", (chunk) => (errors += chunk));
  const code = await new Promise((done, fail) => child.once("error", fail).once("close", done));
  if (code !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${code}: ${errors}${text}`);
  return text;
}

export function sleep(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

/** PSS of a process in kB: what it has for itself, and its part of what it shares. proc_pid_smaps(5). */
export function pssOf(pid) {
  return Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))[1]);
}

/** What only it has, in kB: Private_Clean and Private_Dirty. */
export function privateOf(pid) {
  return [...readFileSync(`/proc/${pid}/smaps_rollup`, "utf8").matchAll(/^Private_\w+:\s+(\d+) kB/gm)]
    .slice(0, 2)
    .reduce((sum, [, kB]) => sum + Number(kB), 0);
}

export function threadsOf(pid) {
  return readdirSync(`/proc/${pid}/task`).length;
}

/** Times that its threads have slept and were woken: each voluntary switch is one. proc_pid_status(5). */
export function wakeUpsOf(pid) {
  return readdirSync(`/proc/${pid}/task`).reduce((sum, task) => {
    return (
      sum +
      Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/task/${task}/status`, "utf8"))[1])
    );
  }, 0);
}
