/**
 * The soak: mixed work at random, by a seed, against one built daemon and its successors, for minutes; and what is left of it.
 *
 *     workers    4, each an operation of work.ts after another, no faster than the share of a core allows
 *     samples    each second, from /proc: sample.ts
 *     ends       the daemon is ended now and then in the first half, mostly by kill -9, and started again, mostly by bridges that find it dead
 *     rests      now and then all work pauses, and daemon and kernel are asked what is left
 *
 * At each rest of a daemon its descriptors, threads, children and handles are those of its first rest, exactly; over its rests its memory is flat. In
 * the end no process, socket, claim or temporary file is there.
 *
 * The daemon is the built file as it is, but for two flags of node: --expose-gc, and a --require of a few lines that answer SIGUSR2 with what
 * memory is in use after a collection. The memory of a process is otherwise V8's slack by tens of MiB, in which no leak of a soak's length shows.
 */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { builtFile, isAlive, namesBelow, sleep, until } from "../daemon.ts";
import { createFractions } from "../fuzz/random.ts";
import { Lost, openBridgeLine, Wrong } from "./line.ts";
import { plotSoak } from "./plot.ts";
import type { Checkpoint, Flatness, Rest, Sample } from "./sample.ts";
import { allPids, cpuOf, descriptorKinds, judgeFlatness, leastCheckpoints, sampleOf } from "./sample.ts";
import type { Life, Operation, Site, Worker } from "./work.ts";
import { operations, run, tide, tidy } from "./work.ts";

const workerCount = 4;
const idsPerWorker = 4;
/** After so many mistakes the rest says nothing new. */
const maxProblems = 5;
const logLines = 40;
/** A loaded machine has time; the longest that the daemon itself takes for anything is 25 s. */
const restMs = 60_000;
const operationMs = 240_000;

export interface SoakOptions {
  seconds: number;
  seed: number;
  /** Of one core, for daemon and clients together, on average. */
  share: number;
  /** Another program than the built one. */
  program?: string;
  /** Only these operations. */
  only?: string[];
  /** Told how it goes, twice a minute. */
  progress(line: string): void;
  /** Ends it early. */
  stop?: AbortSignal;
}

export interface SoakResult {
  /** What was wrong, each with seed and operation; none when all is well. */
  problems: string[];
  /** The figures in one line. */
  summary: string;
  table: string;
  svg: string;
  /** Rests that were taken, and kills of the daemon: without either, little was tested. */
  rests: number;
  kills: number;
}

/** What a daemon's life has come to. */
export interface LifeStory extends Life {
  /** Seconds since the soak began. */
  from: number;
  rests: Checkpoint[];
  /** How it ended, as long as it has. */
  end: string | undefined;
}

/** How a daemon is ended on purpose; more often than not as if by the kernel. */
const ends = ["kill -9", "kill -9", "kill -9", "kill -9", "--stop --now", "--serve --replace"] as const;

const probe = `if (process.argv.includes("--launched")) process.on("SIGUSR2", async () => {
  const fs = require("node:fs");
  const least = { heapBytes: Infinity, bufferBytes: Infinity };
  for (let round = 0; round < 4; round++) {
    gc();
    await new Promise((done) => setTimeout(done, 20));
    const { heapUsed, external } = process.memoryUsage();
    least.heapBytes = Math.min(least.heapBytes, heapUsed);
    least.bufferBytes = Math.min(least.bufferBytes, external);
  }
  const counts = {};
  for (const name of process.getActiveResourcesInfo()) if (name !== "Timeout") counts[name] = (counts[name] || 0) + 1;
  const listeners = process.eventNames().reduce((sum, name) => sum + process.listenerCount(name), 0);
  const resources = Object.keys(counts).sort().map((name) => counts[name] + " " + name).join(", ") + ", " + listeners + " listeners of process";
  fs.writeFileSync(process.env.HOLDFAST_SOAK + ".new", JSON.stringify({ ...least, resources }));
  fs.renameSync(process.env.HOLDFAST_SOAK + ".new", process.env.HOLDFAST_SOAK);
});
`;

/** A soak that is under way. */
interface Soak extends Required<Pick<SoakOptions, "seconds" | "seed" | "share" | "progress">> {
  site: Site;
  /** Of the daemon alone: what is found in it in the end is its own. */
  runDirectory: string;
  /** Where the daemon's probe answers. */
  restFile: string;
  random: () => number;
  /** Does what is to be done in order; the others are at work side by side. */
  director: Worker;
  workers: Worker[];
  /** The operations to choose from. */
  chosen: readonly Operation[];
  problems: string[];
  samples: Sample[];
  lives: LifeStory[];
  flatness: Flatness[];
  /** By name of the operation: done, and interrupted. */
  done: Map<string, number>;
  interrupted: Map<string, number>;
  /** Of performance.now(). */
  startedAt: number;
  count: number;
  killed: number;
  healed: number;
  disturbances: number;
  isDisturbing: boolean;
  /** The disturbance that goes on, or the last one: they take turns. */
  turn: Promise<unknown>;
  /** Set while all are to rest. */
  resting: Promise<void> | undefined;
  isOver: boolean;
  /** Operations of the workers that are going on. */
  busy: Set<Promise<void>>;
  /** Seconds of processor time: by daemons that have ended, and by this process and its children before it all began. */
  usedByEnded: Map<number, [number, number]>;
  usedBefore: number;
}

export async function soak(options: SoakOptions): Promise<SoakResult> {
  const soak = createSoak(options);
  const { problems, lives, samples, seed } = soak;
  options.stop?.addEventListener("abort", () => {
    soak.isOver = true;
  });
  const onUncaught = (error: Error): void => {
    blame(soak, "a message that cannot be read, or a mistake of the soak itself", error);
    soak.isOver = true;
  };
  process.on("uncaughtException", onUncaught);
  const onExit = (): void => killAll(soak); // told to end in the middle
  process.once("exit", onExit);
  let [summary, table] = ["", ""];
  try {
    await runAll(soak);
  } catch (error) {
    problems.push(`seed ${seed}: ${(error as Error).stack}`);
  } finally {
    [summary, table] = [figures(soak), tableOf(soak)];
    await clearUp(soak);
    process.removeListener("uncaughtException", onUncaught).removeListener("exit", onExit);
  }
  return {
    ...{ problems, summary, table },
    rests: lives.flatMap((life) => life.rests).length,
    kills: soak.killed,
    svg: plotSoak({ seed, samples, lives, problems, flatness: soak.flatness }),
  };
}

/** All that is done, from the first start to the end; sampled meanwhile. */
async function runAll(soak: Soak): Promise<void> {
  await startAnew(soak);
  let nextProgress = 30;
  const sampler = setInterval(() => {
    const sample = sampleOf(soak.site.life.pid, soak.runDirectory, at(soak));
    if (sample !== undefined) soak.samples.push(sample);
    if (at(soak) < nextProgress) return;
    nextProgress += 30;
    soak.progress(`${Math.round(at(soak))} s: ${figures(soak)}`);
  }, 1000);
  try {
    await Promise.all([direct(soak), ...soak.workers.map((worker) => work(soak, worker))]);
    if (soak.problems.length === 0) await rest(soak);
    soak.flatness = judge(soak);
    await end(soak);
  } finally {
    clearInterval(sampler);
  }
}

function createSoak({ seconds, seed, share, only, program = builtFile, progress }: SoakOptions): Soak {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-soak-"));
  const runDirectory = join(directory, "run");
  const restFile = join(directory, "rest.json");
  const site = createSite(directory, program, join(runDirectory, "rpc.sock"), restFile);
  const [director, ...workers] = Array.from({ length: 1 + workerCount }, (_, index): Worker => {
    const ids = Array.from({ length: idsPerWorker }, (_, id) => `w${index}-${id}`);
    return { site, name: `w${index}`, random: createFractions(seed * 31 + index), ids, turn: 0 };
  }) as [Worker, ...Worker[]];
  mkdirSync(runDirectory, { mode: 0o700 });
  mkdirSync(join(directory, "files"));
  writeFileSync(join(directory, "probe.cjs"), probe);
  for (const { token, file } of site.tokens) writeFileSync(file, `${token}\n`, { mode: 0o600 });
  const soak: Soak = {
    ...{ seconds, seed, share, progress, site, runDirectory, restFile, director, workers },
    random: createFractions(seed),
    chosen: operations.filter(({ name }) => only === undefined || only.includes(name)),
    ...{ problems: [], samples: [], lives: [], flatness: [], done: new Map(), interrupted: new Map() },
    startedAt: performance.now(),
    ...{ count: 0, killed: 0, healed: 0, disturbances: 0, isDisturbing: false, turn: Promise.resolve() },
    ...{ resting: undefined, isOver: false, busy: new Set(), usedByEnded: new Map(), usedBefore: ownSeconds() },
  };
  site.disturb = (action) => disturb(soak, action);
  site.isDisturbed = () => soak.isDisturbing;
  return soak;
}

function createSite(directory: string, program: string, socket: string, restFile: string): Site {
  const flags = ["--expose-gc", "--require", join(directory, "probe.cjs")];
  return {
    directory,
    socket,
    tokens: ["one", "two"].map((name) => ({ token: `token ${name}`, file: join(directory, `${name}.token`) })),
    // Ours, bridges and daemons have both, the daemon's children only the first: it gives them none of its own
    env: {
      ...process.env,
      SOAK_DIRECTORY: directory,
      HOLDFAST_SOAK: restFile,
      SHELL: "/bin/sh",
      XDG_STATE_HOME: join(directory, "state"),
    },
    life: { pid: 0, instance: "" },
    counts: { bridgesKilled: 0, linesCut: 0, revivals: 0, publications: 0, gaps: 0 },
    command: (args) => [process.execPath, ...flags, program, ...args, "--socket", socket],
    disturb: (action) => action(),
    isDisturbed: () => false,
  };
}

/** In turn. A line that is lost meanwhile is lost by it. */
function disturb<T>(soak: Soak, action: () => Promise<T>): Promise<T> {
  const mine = soak.turn.then(async () => {
    soak.disturbances++;
    soak.isDisturbing = true;
    try {
      return await action();
    } catch (error) {
      throw error instanceof Lost ? new Wrong(error.message) : error; // by nobody else
    } finally {
      soak.isDisturbing = false;
    }
  });
  soak.turn = mine.catch(() => {});
  return mine;
}

/** Seconds since it began. */
function at({ startedAt }: Soak): number {
  return (performance.now() - startedAt) / 1000;
}

// What is done

/** When to rest, and when to end the daemon: as the seed says. */
async function direct(soak: Soak): Promise<void> {
  const restEvery = Math.min(Math.max(soak.seconds / 18, 5), 60);
  const endCount = Math.min(Math.max(Math.round(soak.seconds / 90), 1), 8);
  const endsAt = Array.from({ length: endCount }, () => soak.seconds * (0.05 + 0.35 * soak.random())).sort(
    (a, b) => a - b,
  );
  await warmUp(soak);
  let nextRest = at(soak) + restEvery;
  // on a busy machine the first rest alone may take so long
  for (let isFirst = true; (at(soak) < soak.seconds || endsAt.length > 0) && !soak.isOver; await sleep(100)) {
    if (endsAt.length > 0 && at(soak) > endsAt[0]!) {
      endsAt.shift();
      const how = isFirst ? "kill -9" : ends[Math.floor(soak.random() * ends.length)]!;
      isFirst = false;
      await attempt(soak, how, () => soak.site.disturb(() => endDaemon(soak, how)));
      await warmUp(soak);
    } else if (at(soak) > nextRest) {
      await rest(soak);
      nextRest = at(soak) + restEvery;
    }
  }
  soak.isOver = true;
}

/**
 * Each operation once: for what a daemon does for the first time it may keep something. And the most that can be at once: malloc keeps for itself
 * what it once had, so that memory climbs to where it then stays (to 240 MiB, with all of 4 workers' work such). Then its first rest.
 */
async function warmUp(soak: Soak): Promise<void> {
  for (const operation of soak.chosen) {
    if (soak.isOver) return;
    await attempt(soak, operation.name, () => carryOut(operation, soak.director));
  }
  await atRest(soak, () =>
    Promise.all([...soak.workers, soak.director].map((worker) => attempt(soak, "tide", () => tide(worker)))),
  );
  await rest(soak);
}

async function work(soak: Soak, worker: Worker): Promise<void> {
  while (!soak.isOver) {
    await (soak.resting ?? pace(soak));
    if (soak.resting !== undefined || soak.isOver) continue;
    const operation = drawOperation(soak, worker);
    const ended = attempt(soak, operation.name, () => carryOut(operation, worker));
    soak.busy.add(ended);
    await ended;
    soak.busy.delete(ended);
  }
}

/** By weight. */
function drawOperation({ chosen }: Soak, worker: Worker): Operation {
  const total = chosen.reduce((sum, { weight }) => sum + weight, 0);
  let left = worker.random() * total;
  for (const operation of chosen) {
    left -= operation.weight;
    if (left < 0) return operation;
  }
  return chosen[0]!;
}

async function carryOut(operation: Operation, worker: Worker): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>(
    (_, fail) =>
      (timer = setTimeout(() => fail(new Wrong(`it is not done within ${operationMs / 1000} s`)), operationMs)),
  );
  try {
    await Promise.race([operation.run(worker), late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Counts what comes of it. A line that was lost while the daemon was being disturbed is nobody's mistake. */
async function attempt(soak: Soak, name: string, action: () => Promise<void>): Promise<void> {
  const before = soak.disturbances;
  const wasDisturbing = soak.isDisturbing;
  const number = ++soak.count;
  try {
    await action();
    increase(soak.done, name);
  } catch (error) {
    if (error instanceof Lost && (wasDisturbing || soak.disturbances > before)) increase(soak.interrupted, name);
    else blame(soak, `operation ${number} "${name}"`, error as Error);
  }
  for (let round = 0; soak.isDisturbing && round < 10; round++) await sleep(50); // what is begun meanwhile may be soak.interrupted, too
}

function blame(soak: Soak, what: string, error: Error | string): void {
  const log = soak.problems.length > 0 ? "" : `\nThe log ends so:\n${logEnd(soak)}`; // of the first: the others follow from it
  soak.problems.push(
    `seed ${soak.seed}, ${what}, at ${at(soak).toFixed(1)} s: ${typeof error === "string" ? error : error.stack}${log}`,
  );
  soak.progress(soak.problems.at(-1)!);
  if (soak.problems.length >= maxProblems) soak.isOver = true;
}

/** What all daemons have noted last; but for the refusals, of which there are many on purpose. */
function logEnd({ runDirectory }: Soak): string {
  const lines = textOf(join(runDirectory, "remote-server.log")).trimEnd().split("\n");
  return lines
    .filter((line) => !line.includes("[Server] Unauthorized request"))
    .slice(-logLines)
    .join("\n");
}

/** Waits until daemon and clients have used no more of the processor than they may. */
async function pace(soak: Soak): Promise<void> {
  while (usedSeconds(soak) > soak.share * at(soak) && !soak.isOver && soak.resting === undefined) await sleep(100);
}

function usedSeconds(soak: Soak): number {
  const daemons = soak.lives.flatMap(({ pid }) => soak.usedByEnded.get(pid) ?? cpuOf(pid));
  return ownSeconds() - soak.usedBefore + daemons.reduce((sum, part) => sum + part, 0);
}

// The daemon's lives

async function startAnew(soak: Soak, args: string[] = []): Promise<void> {
  const started = JSON.parse(
    (
      await run(soak.director, ["--serve", "--json", "--token-file", soak.site.tokens[0]!.file, ...args])
    ).stdout.toString(),
  );
  if (started.how !== "started") throw new Wrong(`--serve has ${started.how}, not started`);
  await run(soak.director, ["--serve", "--token-file", soak.site.tokens[1]!.file]);
  await adopt(soak, started.instance);
}

/** From now on this is the daemon; it is the only one. */
async function adopt(soak: Soak, instance: string): Promise<void> {
  const record = JSON.parse(readFileSync(`${soak.site.socket}.record`, "utf8"));
  if (record.instance !== instance)
    throw new Wrong(`instance ${instance} answers, the record is that of ${record.instance}`);
  await until("exactly one daemon", () => daemons(soak).length === 1, 20_000);
  if (daemons(soak)[0] !== record.pid)
    throw new Wrong(`process ${daemons(soak)[0]} is the daemon, the record says ${record.pid}`);
  soak.site.life = { pid: record.pid, instance };
  soak.lives.push({ ...soak.site.life, from: at(soak), rests: [], end: undefined });
}

/** What it had started goes on, and is the next one's; but for `--stop`, of which nothing may be left. */
async function endDaemon(soak: Soak, how: (typeof ends)[number]): Promise<void> {
  const old = soak.lives.at(-1)!;
  soak.usedByEnded.set(old.pid, cpuOf(old.pid));
  old.end = how;
  const isEnded = () => until(`the end of ${old.pid} by ${how}`, () => !isAlive(old.pid), 20_000);
  if (how === "--serve --replace") {
    await startAnew(soak, ["--replace"]);
    return isEnded();
  }
  if (how === "kill -9") {
    process.kill(old.pid, "SIGKILL");
    soak.killed++;
    await isEnded();
    return heal(soak, old);
  }
  await run(soak.director, ["--stop", "--now"]);
  await isEnded();
  const left = () => orphans(soak).map(describeProcess).join("; ");
  await until(`after ${how} there are processes of the old daemon`, () => left() === "", 10_000).catch((error) => {
    throw new Wrong(`${error.message}: ${left()}`);
  });
  await startAnew(soak);
}

/** Bridges at once find it dead; one of them is killed in the middle. */
async function heal(soak: Soak, old: Life): Promise<void> {
  const lines = Array.from({ length: 3 }, () =>
    openBridgeLine(soak.site.command(["--bridge"]), soak.site.env, "native"),
  );
  setTimeout(() => lines[0]!.cut(), soak.random() * 250);
  soak.site.counts.bridgesKilled++;
  const answers = await Promise.all(
    lines.map(async (line, index) => {
      line.auth = soak.site.tokens[index % 2]!.token;
      const answer = await line.request("server.capabilities").catch((error) => {
        if (index > 0) throw error;
      });
      await line.close();
      return answer?.instanceId as string | undefined;
    }),
  );
  const [instance, ...others] = answers.filter((one) => one !== undefined);
  if (instance === undefined || instance === old.instance || others.some((one) => one !== instance))
    throw new Wrong(`healed by ${answers.join(", ")}, ${old.instance} was killed`);
  await adopt(soak, instance);
  soak.healed++;
}

function daemons(soak: Soak): number[] {
  return ours(soak, true).filter((pid) => commandOf(pid).endsWith(`--launched\0--socket\0${soak.site.socket}\0`));
}

/** What daemons have started. */
function orphans(soak: Soak): number[] {
  return ours(soak, false);
}

/** Living processes of this soak by their environment: those that we started, daemons too; or those that daemons started. */
function ours(soak: Soak, areStartedByUs: boolean): number[] {
  return allPids().filter((pid) => {
    const variables = textOf(`/proc/${pid}/environ`).split("\0");
    return (
      variables.includes(`SOAK_DIRECTORY=${soak.site.directory}`) &&
      variables.includes(`HOLDFAST_SOAK=${soak.restFile}`) === areStartedByUs &&
      isAlive(pid)
    );
  });
}

// Rests

/** Lets all work end, and all that is kept of it be forgotten; then nothing may be there that was not at the first rest. */
function rest(soak: Soak): Promise<void> {
  return atRest(soak, async () => {
    for (const worker of [soak.director, ...soak.workers]) await tidy(worker);
    await takeCheckpoint(soak);
  });
}

async function atRest(soak: Soak, action: () => Promise<unknown>): Promise<void> {
  let goOn!: () => void;
  soak.resting = new Promise((resolve) => (goOn = resolve));
  try {
    await Promise.all(soak.busy);
    await soak.turn;
    await action();
  } catch (error) {
    blame(soak, "a rest", error as Error);
    soak.isOver = true; // it would be so at each one that follows
  } finally {
    soak.resting = undefined;
    goOn();
  }
}

/** Once it stands still, or is as it was at its first rest. */
async function takeCheckpoint(soak: Soak): Promise<void> {
  const { pid, rests } = soak.lives.at(-1)!;
  const first = rests[0];
  let before = "";
  let stillRounds = 0;
  for (const deadline = Date.now() + restMs; ; await sleep(200)) {
    const checkpoint = await lookAtDaemon(soak, pid);
    const key = keyOf(checkpoint);
    stillRounds = key === before ? stillRounds + 1 : 0;
    before = key;
    const isSettled = first === undefined ? stillRounds >= 5 && checkpoint.children === 0 : key === keyOf(first);
    if (isSettled) return void rests.push(checkpoint);
    if (Date.now() > deadline) throw unsettled(soak, pid, key, first);
  }
}

async function lookAtDaemon(soak: Soak, pid: number): Promise<Checkpoint> {
  const inside = await askDaemon(soak, pid);
  const outside = sampleOf(pid, soak.runDirectory, at(soak));
  if (outside === undefined) throw new Wrong(`the daemon, process ${pid}, is gone`);
  return { ...outside, ...inside, operations: soak.count };
}

/** What is to be the same at each rest. */
function keyOf({ descriptors, threads, children, resources }: Checkpoint): string {
  return `${descriptors} descriptors, ${threads} threads, ${children} children, handles: ${resources}`;
}

function unsettled(soak: Soak, pid: number, key: string, first: Checkpoint | undefined): Wrong {
  const expected = first === undefined ? "no children, and to stand still" : keyOf(first);
  const since = soak.count - (first?.operations ?? 0);
  return new Wrong(`${key} (${descriptorKinds(pid)}), expected ${expected}, after ${since} operations`);
}

async function askDaemon(soak: Soak, pid: number): Promise<Rest> {
  rmSync(soak.restFile, { force: true });
  signal(pid, "SIGUSR2");
  await until("an answer to SIGUSR2", () => existsSync(soak.restFile), restMs);
  return JSON.parse(readFileSync(soak.restFile, "utf8"));
}

// What is left

function judge(soak: Soak): Flatness[] {
  let last: Flatness[] = [];
  for (const { rests, instance } of soak.lives) {
    const rows = judgeFlatness(rests);
    if (rows.length > 0) last = rows;
    for (const { what, middle, last: after, bound, perOperation } of rows) {
      if (after - middle <= bound) continue;
      blame(
        soak,
        `instance ${instance.slice(0, 8)}`,
        `its memory is not flat: ${what} ${size(middle)} in the middle third of ${rests.length} rests, ${size(after)} in the last, may grow by ${size(bound)}: ${Math.round(perOperation)} bytes an operation`,
      );
    }
  }
  return last;
}

async function end(soak: Soak): Promise<void> {
  await run(soak.director, ["--stop", "--now", "--forget"]);
  soak.lives.at(-1)!.end = "--stop --now";
  const left = (): string[] => [
    ...[...ours(soak, true), ...ours(soak, false)].map(describeProcess),
    ...readdirSync(soak.runDirectory).filter(
      (name) => !["rpc.sock.record", "remote-server.log", "remote-server.log.1"].includes(name),
    ),
    ...["files", "state"].flatMap((name) => namesBelow(join(soak.site.directory, name))),
  ];
  await until("nothing is left", () => left().length === 0, 20_000).catch(() => {});
  if (left().length > 0) blame(soak, "the end", `there is left: ${left().join("; ")}`);
  const { ended } = JSON.parse(readFileSync(`${soak.site.socket}.record`, "utf8"));
  if (ended?.reason !== "stopped") blame(soak, "the end", `the record says ${JSON.stringify(ended)}`);
}

function killAll(soak: Soak): void {
  for (const pid of [...ours(soak, true), ...ours(soak, false)]) signal(pid, "SIGKILL");
}

async function clearUp(soak: Soak): Promise<void> {
  killAll(soak);
  await until("the end of all processes", () => ours(soak, true).length + ours(soak, false).length === 0, 20_000);
  rmSync(soak.site.directory, { recursive: true, force: true });
}

function figures(soak: Soak): string {
  const peakKiB = Math.max(...soak.samples.map(({ rssKiB }) => rssKiB), 0);
  const atRest = soak.lives.at(-1)?.rests.at(-1);
  const { bridgesKilled, linesCut, revivals, publications, gaps } = soak.site.counts;
  return [
    `${soak.count} operations (${[...soak.interrupted.values()].reduce((sum, times) => sum + times, 0)} interrupted)`,
    `${soak.lives.length - 1} daemons ended, ${soak.killed} of them by kill -9, ${soak.healed} healed`,
    `${bridgesKilled} bridges killed, ${linesCut} sockets cut, ${revivals} revivals, ${publications} publications after a deletion, ${gaps} gaps named`,
    `memory ${(peakKiB / 1024).toFixed(0)} MiB at most`,
    ...(atRest === undefined
      ? []
      : [
          `at rest ${(atRest.rssKiB / 1024).toFixed(0)} MiB (heap ${size(atRest.heapBytes)}, buffers ${size(atRest.bufferBytes)})`,
          `${atRest.descriptors} descriptors, ${atRest.threads} threads, ${atRest.children} children`,
        ]),
    `${((100 * usedSeconds(soak)) / at(soak)).toFixed(0)} % of a core`,
  ].join("; ");
}

function tableOf(soak: Soak): string {
  const names = [...new Set([...soak.done.keys(), ...soak.interrupted.keys()])].sort(
    (a, b) => (soak.done.get(b) ?? 0) - (soak.done.get(a) ?? 0),
  );
  const rows = [
    ["operation", "done, interrupted"],
    ...names.map((name) => [name, `${soak.done.get(name) ?? 0}, ${soak.interrupted.get(name) ?? 0}`]),
  ];
  rows.push(["", ""], ["daemon", "lived, rests, end"]);
  for (const [index, life] of soak.lives.entries()) {
    const lived = (soak.lives[index + 1]?.from ?? at(soak)) - life.from;
    rows.push([
      `${life.pid} ${life.instance.slice(0, 8)}`,
      `${Math.round(lived)} s, ${life.rests.length}, ${life.end ?? ""}`,
    ]);
  }
  rows.push(["", ""], ["at rest", "middle third, last third, may grow by, grew per operation"]);
  for (const one of soak.flatness)
    rows.push([
      one.what,
      `${size(one.middle)}, ${size(one.last)}, ${size(one.bound)}, ${one.perOperation.toFixed(1)} bytes`,
    ]);
  if (soak.flatness.length === 0) rows.push(["memory", `not judged: no daemon had ${leastCheckpoints} rests`]);
  return rows.map(([name, text]) => `${name!.padEnd(20)}${text}`.trimEnd()).join("\n");
}

/** This process, and those of its children that have ended. */
function ownSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6 + cpuOf("self")[1];
}

function increase(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}

function size(bytes: number): string {
  return Math.abs(bytes) < 10 << 20 ? `${(bytes / 1024).toFixed(0)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // it has ended
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

const commandOf = (pid: number): string => textOf(`/proc/${pid}/cmdline`);
const describeProcess = (pid: number): string => `${pid} ${commandOf(pid).replaceAll("\0", " ").slice(0, 200)}`;
