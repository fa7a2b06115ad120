/**
 * The soak of the library: an application that is busy at random, over lines that are cut at random, for minutes. Nothing is lost, nothing comes twice,
 * nothing waits for ever, no rejection is nobody's, and memory is flat.
 *
 *     workers   4, each with a connection of its own that reconnects; an operation after another
 *     cuts      a bridge is killed, or stopped until the heartbeat has given it up
 *     stalls    now and then the whole application is in synchronous work for up to 0.7 s
 *
 * In a process of its own, with --expose-gc: `node library.mjs SECONDS SEED` prints one line of figures, and what was wrong. Exit code 1 then.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { connect } from "../../api.ts";
import type { Connection, HoldfastError, Output } from "../../library.ts";
import type { TestDaemon } from "../daemon.ts";
import { builtFile, sleep, withDaemon } from "../daemon.ts";
import type { Random } from "../fuzz/random.ts";
import { createRandom } from "../fuzz/random.ts";

const workerCount = 4;
/** Longer than all that an operation may wait for: a line that is given up by its heartbeat, several times. */
const operationMs = 120_000;
const heartbeatMs = 700;
/** Of the heap, from the first quarter to the end: 4 workers with up to 2 MB each in their hands. */
const maxGrowthBytes = 24 << 20;

const figures = { operations: 0, bytes: 0, interrupted: 0, cuts: 0, reconnected: 0 };
const problems: string[] = [];

interface Worker {
  there: Connection;
  random: Random;
  directory: string;
  name: string;
}

/** Lines with numbers: what is lost, doubled or out of order shows. */
const lines = (count: number): string => Array.from({ length: count }, (_, at) => `${at + 1}\n`).join("");

function expect(found: string, wanted: string, what: string): void {
  figures.bytes += found.length;
  if (found !== wanted) throw new Error(`${what}: ${found.length} bytes, not ${wanted.length}, or others`);
}

async function textOf(random: Random, output: AsyncIterable<Output | Uint8Array>): Promise<string> {
  const pieces: Uint8Array[] = [];
  const isSlow = random(3) === 0;
  for await (const piece of output) {
    pieces.push("seq" in piece ? (piece as Output).data : (piece as Uint8Array));
    if (isSlow && random(8) === 0) await sleep(random(20));
  }
  return Buffer.concat(pieces).toString();
}

const operations: Record<string, (worker: Worker) => Promise<void>> = {
  /** What is written comes back. */
  async echo({ there, random }) {
    const child = await there.spawn({ command: "cat" });
    const back = textOf(random, random(2) === 0 ? child.output : child.stdout);
    back.catch(() => {}); // where a write fails, that tells
    const pieces = Array.from({ length: 1 + random(20) }, () => lines(random(8000)));
    for (const piece of pieces) {
      const written = child.write(piece);
      if (random(2) === 0) await written;
      else written.catch(() => {}); // end() tells, too
      if (random(4) === 0) await sleep(random(100));
    }
    await child.end();
    expect(await back, pieces.join(""), "echo");
    await child.exit;
    await there.forget(child.id).catch(ignoreLoss);
  },

  /** Output that is slower, faster, and left in the middle. */
  async flood({ there, random }) {
    const count = 1000 + random(150_000);
    const pause = random(3) === 0 ? "sleep 0.4;" : "";
    const child = await there.spawn({ command: "sh", args: ["-c", `${pause} seq 1 ${count}; ${pause} exit 3`] });
    let text = "";
    const leaveAt = random(2) === 0 ? random(count * 4) : Number.POSITIVE_INFINITY;
    for await (const { data } of child.output) {
      text += Buffer.from(data).toString();
      if (text.length > leaveAt) break;
    }
    if (text.length > leaveAt) {
      const again = await retried(() => there.reattach(child.id, { fromSeq: child.lastSeq }));
      text += await textOf(random, again.output);
    }
    expect(text, lines(count), "flood");
    await there.forget(child.id).catch(ignoreLoss);
  },

  async run({ there, random }) {
    const input = lines(random(20_000));
    const { stdout, exitCode } = await there.run({ command: "sh", args: ["-c", "cat; exit 5"], input });
    expect(stdout, input, "run");
    if (exitCode !== 5) throw new Error(`run: exit code ${exitCode}`);
  },

  /** The process has ended then, whatever becomes of the line. */
  async abort({ there, random }) {
    const signal = AbortSignal.timeout(random(300));
    const error = await there.run({ command: "sleep", args: ["1000"], signal }).catch((reason: Error) => reason);
    if ((error as Error).name !== "TimeoutError") throw new Error(`abort: ${JSON.stringify(error)}`);
  },

  async files({ there, random, directory, name }) {
    const path = join(directory, `file-${name}`);
    const content = lines(random(100_000));
    await retried(() => there.files.write(path, content));
    expect(await retried(() => there.files.readText(path)), content, "files");
  },

  async ask({ there }) {
    await Promise.all(
      [there.list(), there.status(), there.request("server.ping")].map((call) => call.catch(ignoreLoss)),
    );
  },
};

/** What was under way when the line was lost may have been carried out, and says so. */
function ignoreLoss(error: HoldfastError): void {
  if (error.code !== -32010 && error.code !== -32602) throw error;
  figures.interrupted++;
}

async function retried<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if ((error as HoldfastError).code !== -32010) throw error;
      figures.interrupted++;
    }
  }
}

async function work(worker: Worker, until: number): Promise<void> {
  const names = Object.keys(operations);
  while (performance.now() < until && problems.length === 0) {
    const name = names[worker.random(names.length)]!;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${name}: it waits for ever`)), operationMs);
    });
    await Promise.race([operations[name]!(worker), late])
      .catch((error: Error) => void problems.push(`worker ${worker.name}, ${name}: ${error.stack ?? error}`))
      .finally(() => clearTimeout(timer));
    figures.operations++;
  }
}

/** Kills a worker's bridge, or stops it: then only the heartbeat tells. */
async function cutLines({ directory }: TestDaemon, random: Random, until: number): Promise<void> {
  while (performance.now() < until) {
    await sleep(100 + random(1200));
    const pid = bridgePid(directory, random(workerCount));
    if (pid === undefined) continue;
    figures.cuts++;
    signal(pid, random(4) === 0 ? "SIGSTOP" : "SIGKILL");
    if (random(8) === 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, random(700)); // the application is busy
  }
}

function bridgePid(directory: string, name: number): number | undefined {
  try {
    return Number(readFileSync(join(directory, `bridge-${name}`), "utf8")) || undefined;
  } catch {
    return undefined; // it has not begun
  }
}

function signal(pid: number | undefined, name: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(pid, name);
  } catch {
    // it has just ended
  }
}

async function soak(daemon: TestDaemon, seconds: number, seed: number): Promise<void> {
  const random = createRandom(seed);
  const until = performance.now() + seconds * 1000;
  const { directory, socket, token } = daemon;
  process.once("exit", () => {
    for (let at = 0; at < workerCount; at++) signal(bridgePid(directory, at), "SIGKILL"); // it may be stopped
  });
  const workers = await Promise.all(
    Array.from({ length: workerCount }, async (_, at): Promise<Worker> => {
      const pidFile = join(directory, `bridge-${at}`);
      const script = `echo $$ > ${pidFile}; exec ${process.execPath} ${builtFile} --bridge --socket ${socket}`;
      const reconnect = { minDelayMs: 20, maxDelayMs: 300 };
      const there = await connect({ command: ["sh", "-c", script], token, reconnect, heartbeatMs });
      there.on("reconnected", () => figures.reconnected++);
      return { there, random: createRandom(seed + at), directory, name: String(at) };
    }),
  );
  const heap = (): number => {
    (globalThis as { gc?: () => void }).gc?.();
    return process.memoryUsage().heapUsed + process.memoryUsage().external;
  };
  let before = 0;
  setTimeout(() => (before = heap()), seconds * 250).unref();
  await Promise.all([...workers.map((worker) => work(worker, until)), cutLines(daemon, random, until)]);
  for (let at = 0; at < workerCount; at++) signal(bridgePid(directory, at), "SIGCONT");
  const after = heap();
  if (after - before > maxGrowthBytes) problems.push(`memory grew from ${before} to ${after} bytes`);
  for (const { there } of workers) await there.close();
  const memory = `${Math.round(before / 1e6)} MB of memory, then ${Math.round(after / 1e6)} MB`;
  const { operations: count, bytes, interrupted, cuts, reconnected } = figures;
  const seen = `${count} operations, ${bytes} bytes compared, ${cuts} cuts, ${reconnected} times connected again`;
  console.log(`library: ${seen}, ${interrupted} calls interrupted, ${memory}`);
}

process.on("unhandledRejection", (reason) =>
  problems.push(`an unhandled rejection: ${(reason as Error)?.stack ?? reason}`),
);
process.on("uncaughtException", (error) => problems.push(`an uncaught exception: ${error.stack}`));
process.once("SIGINT", () => process.exit(130)); // not at once: first it ends its daemon
const [seconds = 60, seed = 1] = process.argv.slice(2).map(Number);
withDaemon((daemon) => soak(daemon, seconds, seed))
  .catch((error: Error) => problems.push(String(error.stack)))
  .finally(() => {
    for (const problem of problems) console.error(`error: library, seed ${seed}: ${problem}`);
    process.exit(problems.length === 0 ? 0 : 1);
  });
