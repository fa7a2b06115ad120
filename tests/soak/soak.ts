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
import { builtFile, isAlive, sleep, until } from "../daemon.ts";
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

export async function soak({
  seconds,
  seed,
  share,
  only,
  program = builtFile,
  progress,
  stop,
}: SoakOptions): Promise<SoakResult> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-soak-"));
  /** Of the daemon alone: what is found in it in the end is its own. */
  const runDirectory = join(directory, "run");
  const socket = join(runDirectory, "rpc.sock");
  const restFile = join(directory, "rest.json");
  const probeFile = join(directory, "probe.cjs");
  // Ours, bridges and daemons have both, the daemon's children only the first: it gives them none of its own
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    SOAK_DIRECTORY: directory,
    HOLDFAST_SOAK: restFile,
    SHELL: "/bin/sh",
    XDG_STATE_HOME: join(directory, "state"),
  };
  const tokens = ["one", "two"].map((name) => ({ token: `token ${name}`, file: join(directory, `${name}.token`) }));
  const problems: string[] = [];
  const samples: Sample[] = [];
  const lives: LifeStory[] = [];
  /** By name of the operation: done, and interrupted. */
  const done = new Map<string, number>();
  const interrupted = new Map<string, number>();
  const startedAt = performance.now();
  const at = (): number => (performance.now() - startedAt) / 1000;
  const random = createFractions(seed);

  let count = 0;
  let killed = 0;
  let healed = 0;
  let disturbances = 0;
  let isDisturbing = false;
  let turn: Promise<unknown> = Promise.resolve();
  /** Set while all are to rest. */
  let resting: Promise<void> | undefined;
  let isOver = false;
  /** Seconds of processor time: by daemons that have ended, and by this process and its children before it all began. */
  const usedByEnded = new Map<number, [number, number]>();
  const usedBefore = ownSeconds();
  const busy = new Set<Promise<void>>();

  const site: Site = {
    directory,
    socket,
    tokens,
    env,
    life: { pid: 0, instance: "" },
    counts: { bridgesKilled: 0, linesCut: 0, revivals: 0, publications: 0, gaps: 0 },
    command: (args) => [process.execPath, "--expose-gc", "--require", probeFile, program, ...args, "--socket", socket],
    disturb: (action) => {
      const mine = turn.then(async () => {
        disturbances++;
        isDisturbing = true;
        try {
          return await action();
        } catch (error) {
          throw error instanceof Lost ? new Wrong(error.message) : error; // by nobody else
        } finally {
          isDisturbing = false;
        }
      });
      turn = mine.catch(() => {});
      return mine;
    },
    isDisturbed: () => isDisturbing,
  };
  const [director, ...workers] = Array.from(
    { length: 1 + workerCount },
    (_, index): Worker => ({
      site,
      name: `w${index}`,
      random: createFractions(seed * 31 + index),
      ids: Array.from({ length: idsPerWorker }, (_, id) => `w${index}-${id}`),
      turn: 0,
    }),
  ) as [Worker, ...Worker[]];
  const chosen = operations.filter(({ name }) => only === undefined || only.includes(name));

  mkdirSync(runDirectory, { mode: 0o700 });
  mkdirSync(join(directory, "files"));
  writeFileSync(probeFile, probe);
  for (const { token, file } of tokens) writeFileSync(file, `${token}\n`, { mode: 0o600 });
  stop?.addEventListener("abort", () => (isOver = true));
  const onUncaught = (error: Error): void => {
    blame("a message that cannot be read, or a mistake of the soak itself", error);
    isOver = true;
  };
  process.on("uncaughtException", onUncaught);
  let sampler: NodeJS.Timeout | undefined;
  let flatness: Flatness[] = [];
  let [summary, table] = ["", ""];
  try {
    await startAnew();
    let nextProgress = 30;
    sampler = setInterval(() => {
      const sample = sampleOf(site.life.pid, runDirectory, at());
      if (sample !== undefined) samples.push(sample);
      if (at() < nextProgress) return;
      nextProgress += 30;
      progress(`${Math.round(at())} s: ${figures()}`);
    }, 1000);
    await Promise.all([direct(), ...workers.map(work)]);
    if (problems.length === 0) await rest();
    flatness = judge();
    await end();
  } catch (error) {
    problems.push(`seed ${seed}: ${(error as Error).stack}`);
  } finally {
    clearInterval(sampler);
    [summary, table] = [figures(), tableOf()];
    await clearUp();
    process.removeListener("uncaughtException", onUncaught);
  }
  return {
    problems,
    summary,
    table,
    rests: lives.flatMap((life) => life.rests).length,
    kills: killed,
    svg: plotSoak({ seed, samples, lives, problems, flatness }),
  };

  // What is done

  /** When to rest, and when to end the daemon: as the seed says. */
  async function direct(): Promise<void> {
    const restEvery = Math.min(Math.max(seconds / 18, 5), 60);
    const endCount = Math.min(Math.max(Math.round(seconds / 90), 1), 8);
    const endsAt = Array.from({ length: endCount }, () => seconds * (0.05 + 0.35 * random())).sort((a, b) => a - b);
    await warmUp();
    let nextRest = at() + restEvery;
    for (let isFirst = true; at() < seconds && !isOver; await sleep(100)) {
      if (endsAt.length > 0 && at() > endsAt[0]!) {
        endsAt.shift();
        const how = isFirst ? "kill -9" : ends[Math.floor(random() * ends.length)]!;
        isFirst = false;
        await attempt(how, () => site.disturb(() => endDaemon(how)));
        await warmUp();
      } else if (at() > nextRest) {
        await rest();
        nextRest = at() + restEvery;
      }
    }
    isOver = true;
  }

  /**
   * Each operation once: for what a daemon does for the first time it may keep something. And the most that can be at once: malloc keeps for itself
   * what it once had, so that memory climbs to where it then stays (to 240 MiB, with all of 4 workers' work such). Then its first rest.
   */
  async function warmUp(): Promise<void> {
    for (const operation of chosen) {
      if (isOver) return;
      await attempt(operation.name, () => carryOut(operation, director));
    }
    await atRest(() => Promise.all([...workers, director].map((worker) => attempt("tide", () => tide(worker)))));
    await rest();
  }

  async function work(worker: Worker): Promise<void> {
    const total = chosen.reduce((sum, { weight }) => sum + weight, 0);
    while (!isOver) {
      await (resting ?? pace());
      if (resting !== undefined || isOver) continue;
      let left = worker.random() * total;
      const operation = chosen.find(({ weight }) => (left -= weight) < 0) ?? chosen[0]!;
      const ended = attempt(operation.name, () => carryOut(operation, worker));
      busy.add(ended);
      await ended;
      busy.delete(ended);
    }
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
  async function attempt(name: string, action: () => Promise<void>): Promise<void> {
    const before = disturbances;
    const wasDisturbing = isDisturbing;
    const number = ++count;
    try {
      await action();
      increase(done, name);
    } catch (error) {
      if (error instanceof Lost && (wasDisturbing || disturbances > before)) increase(interrupted, name);
      else blame(`operation ${number} "${name}"`, error as Error);
    }
    for (let round = 0; isDisturbing && round < 10; round++) await sleep(50); // what is begun meanwhile may be interrupted, too
  }

  function blame(what: string, error: Error | string): void {
    problems.push(`seed ${seed}, ${what}, at ${at().toFixed(1)} s: ${typeof error === "string" ? error : error.stack}`);
    progress(problems.at(-1)!);
    if (problems.length >= maxProblems) isOver = true;
  }

  /** Waits until daemon and clients have used no more of the processor than they may. */
  async function pace(): Promise<void> {
    while (usedSeconds() > share * at() && !isOver && resting === undefined) await sleep(100);
  }

  function usedSeconds(): number {
    const daemons = lives.flatMap(({ pid }) => usedByEnded.get(pid) ?? cpuOf(pid));
    return ownSeconds() - usedBefore + daemons.reduce((sum, part) => sum + part, 0);
  }

  // The daemon's lives

  async function startAnew(args: string[] = []): Promise<void> {
    const started = JSON.parse(
      (await run(director, ["--serve", "--json", "--token-file", tokens[0]!.file, ...args])).stdout.toString(),
    );
    if (started.how !== "started") throw new Wrong(`--serve has ${started.how}, not started`);
    await run(director, ["--serve", "--token-file", tokens[1]!.file]);
    await adopt(started.instance);
  }

  /** From now on this is the daemon; it is the only one. */
  async function adopt(instance: string): Promise<void> {
    const record = JSON.parse(readFileSync(`${socket}.record`, "utf8"));
    if (record.instance !== instance)
      throw new Wrong(`instance ${instance} answers, the record is that of ${record.instance}`);
    await until("exactly one daemon", () => daemons().length === 1, 20_000);
    if (daemons()[0] !== record.pid)
      throw new Wrong(`process ${daemons()[0]} is the daemon, the record says ${record.pid}`);
    site.life = { pid: record.pid, instance };
    lives.push({ ...site.life, from: at(), rests: [], end: undefined });
  }

  async function endDaemon(how: (typeof ends)[number]): Promise<void> {
    const old = lives.at(-1)!;
    usedByEnded.set(old.pid, cpuOf(old.pid));
    old.end = how;
    if (how === "kill -9") {
      process.kill(old.pid, "SIGKILL");
      killed++;
      await until(`the end of ${old.pid}`, () => !isAlive(old.pid), 20_000);
      await endOrphans(); // nobody else does
      return heal(old);
    }
    if (how === "--stop --now") await run(director, ["--stop", "--now"]);
    else await startAnew(["--replace"]);
    await until(`the end of ${old.pid} by ${how}`, () => !isAlive(old.pid), 20_000);
    const left = orphans();
    if (left.length > 0)
      throw new Wrong(`after ${how} there are processes of the old daemon: ${left.map(describeProcess).join("; ")}`);
    if (how === "--stop --now") await startAnew();
  }

  /** Bridges at once find it dead; one of them is killed in the middle. */
  async function heal(old: Life): Promise<void> {
    const lines = Array.from({ length: 3 }, () => openBridgeLine(site.command(["--bridge"]), env, "native"));
    setTimeout(() => lines[0]!.cut(), random() * 250);
    site.counts.bridgesKilled++;
    const answers = await Promise.all(
      lines.map(async (line, index) => {
        line.auth = tokens[index % 2]!.token;
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
    await adopt(instance);
    healed++;
  }

  function daemons(): number[] {
    return ours(true).filter((pid) => commandOf(pid).endsWith(`--launched\0--socket\0${socket}\0`));
  }

  /** What daemons have started. */
  function orphans(): number[] {
    return ours(false);
  }

  async function endOrphans(): Promise<void> {
    for (let round = 0; round < 100; round++) {
      const left = orphans();
      if (left.length === 0) return;
      for (const pid of left) signal(pid, "SIGKILL");
      await sleep(20);
    }
    throw new Error(`${orphans().length} processes do not end`);
  }

  /** Living processes of this soak by their environment: those that we started, daemons too; or those that daemons started. */
  function ours(areStartedByUs: boolean): number[] {
    return allPids().filter((pid) => {
      const variables = textOf(`/proc/${pid}/environ`).split("\0");
      return (
        variables.includes(`SOAK_DIRECTORY=${directory}`) &&
        variables.includes(`HOLDFAST_SOAK=${restFile}`) === areStartedByUs &&
        isAlive(pid)
      );
    });
  }

  // Rests

  /** Lets all work end, and all that is kept of it be forgotten; then nothing may be there that was not at the first rest. */
  function rest(): Promise<void> {
    return atRest(async () => {
      for (const worker of [director, ...workers]) await tidy(worker);
      await takeCheckpoint();
    });
  }

  async function atRest(action: () => Promise<unknown>): Promise<void> {
    let goOn!: () => void;
    resting = new Promise((resolve) => (goOn = resolve));
    try {
      await Promise.all(busy);
      await turn;
      await action();
    } catch (error) {
      blame("a rest", error as Error);
      isOver = true; // it would be so at each one that follows
    } finally {
      resting = undefined;
      goOn();
    }
  }

  async function takeCheckpoint(): Promise<void> {
    const { pid, rests } = lives.at(-1)!;
    const first = rests[0];
    const keyOf = (one: Checkpoint): string =>
      `${one.descriptors} descriptors, ${one.threads} threads, ${one.children} children, handles: ${one.resources}`;
    let before = "";
    let stillRounds = 0;
    for (const deadline = Date.now() + restMs; ; await sleep(200)) {
      const inside = await askDaemon(pid);
      const outside = sampleOf(pid, runDirectory, at());
      if (outside === undefined) throw new Wrong(`the daemon, process ${pid}, is gone`);
      const checkpoint = { ...outside, ...inside, operations: count };
      const key = keyOf(checkpoint);
      stillRounds = key === before ? stillRounds + 1 : 0;
      before = key;
      const isSettled = first === undefined ? stillRounds >= 5 && checkpoint.children === 0 : key === keyOf(first);
      if (isSettled) return void rests.push(checkpoint);
      if (Date.now() > deadline) {
        const expected = first === undefined ? "no children, and to stand still" : keyOf(first);
        throw new Wrong(
          `${key} (${descriptorKinds(pid)}), expected ${expected}, after ${count - (first?.operations ?? 0)} operations`,
        );
      }
    }
  }

  async function askDaemon(pid: number): Promise<Rest> {
    rmSync(restFile, { force: true });
    signal(pid, "SIGUSR2");
    await until("an answer to SIGUSR2", () => existsSync(restFile), restMs);
    return JSON.parse(readFileSync(restFile, "utf8"));
  }

  // What is left

  function judge(): Flatness[] {
    let last: Flatness[] = [];
    for (const { rests, instance } of lives) {
      const rows = judgeFlatness(rests);
      if (rows.length > 0) last = rows;
      for (const { what, middle, last: after, bound, perOperation } of rows) {
        if (after - middle <= bound) continue;
        blame(
          `instance ${instance.slice(0, 8)}`,
          `its memory is not flat: ${what} ${size(middle)} in the middle third of ${rests.length} rests, ${size(after)} in the last, may grow by ${size(bound)}: ${Math.round(perOperation)} bytes an operation`,
        );
      }
    }
    return last;
  }

  async function end(): Promise<void> {
    await run(director, ["--stop", "--now"]);
    lives.at(-1)!.end = "--stop --now";
    const left = (): string[] => [
      ...[...ours(true), ...ours(false)].map(describeProcess),
      ...readdirSync(runDirectory).filter(
        (name) => !["rpc.sock.record", "remote-server.log", "remote-server.log.1"].includes(name),
      ),
      ...["files", "state"].flatMap((name) =>
        existsSync(join(directory, name))
          ? readdirSync(join(directory, name), { recursive: true, encoding: "utf8" })
          : [],
      ),
    ];
    await until("nothing is left", () => left().length === 0, 20_000).catch(() => {});
    if (left().length > 0) blame("the end", `there is left: ${left().join("; ")}`);
    const { ended } = JSON.parse(readFileSync(`${socket}.record`, "utf8"));
    if (ended?.reason !== "stopped") blame("the end", `the record says ${JSON.stringify(ended)}`);
  }

  async function clearUp(): Promise<void> {
    for (const pid of [...ours(true), ...ours(false)]) signal(pid, "SIGKILL");
    await until("the end of all processes", () => ours(true).length + ours(false).length === 0, 20_000);
    rmSync(directory, { recursive: true, force: true });
  }

  function figures(): string {
    const peakKiB = Math.max(...samples.map(({ rssKiB }) => rssKiB), 0);
    const atRest = lives.at(-1)?.rests.at(-1);
    const { bridgesKilled, linesCut, revivals, publications, gaps } = site.counts;
    return [
      `${count} operations (${[...interrupted.values()].reduce((sum, times) => sum + times, 0)} interrupted)`,
      `${lives.length - 1} daemons ended, ${killed} of them by kill -9, ${healed} healed`,
      `${bridgesKilled} bridges killed, ${linesCut} sockets cut, ${revivals} revivals, ${publications} publications after a deletion, ${gaps} gaps named`,
      `memory ${(peakKiB / 1024).toFixed(0)} MiB at most`,
      ...(atRest === undefined
        ? []
        : [
            `at rest ${(atRest.rssKiB / 1024).toFixed(0)} MiB (heap ${size(atRest.heapBytes)}, buffers ${size(atRest.bufferBytes)})`,
            `${atRest.descriptors} descriptors, ${atRest.threads} threads, ${atRest.children} children`,
          ]),
      `${((100 * usedSeconds()) / at()).toFixed(0)} % of a core`,
    ].join("; ");
  }

  function tableOf(): string {
    const names = [...new Set([...done.keys(), ...interrupted.keys()])].sort(
      (a, b) => (done.get(b) ?? 0) - (done.get(a) ?? 0),
    );
    const rows = [
      ["operation", "done, interrupted"],
      ...names.map((name) => [name, `${done.get(name) ?? 0}, ${interrupted.get(name) ?? 0}`]),
    ];
    rows.push(["", ""], ["daemon", "lived, rests, end"]);
    for (const [index, life] of lives.entries()) {
      const lived = (lives[index + 1]?.from ?? at()) - life.from;
      rows.push([
        `${life.pid} ${life.instance.slice(0, 8)}`,
        `${Math.round(lived)} s, ${life.rests.length}, ${life.end ?? ""}`,
      ]);
    }
    rows.push(["", ""], ["at rest", "middle third, last third, may grow by, grew per operation"]);
    for (const one of flatness)
      rows.push([
        one.what,
        `${size(one.middle)}, ${size(one.last)}, ${size(one.bound)}, ${one.perOperation.toFixed(1)} bytes`,
      ]);
    if (flatness.length === 0) rows.push(["memory", `not judged: no daemon had ${leastCheckpoints} rests`]);
    return rows.map(([name, text]) => `${name!.padEnd(20)}${text}`.trimEnd()).join("\n");
  }
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
