/** What tests of the built file have in common: its path, and the wire spoken by hand, so that frame.ts is not its own judge. */

import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import type { Socket } from "node:net";
import { connect } from "node:net";
import { cpus, loadavg, tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { Readable, Writable } from "node:stream";
import * as assert from "uvu/assert";
import { errnoOf, Failure } from "../failure.ts";
import { findProgram } from "../holders.ts";

export const builtFile = resolve("dist/holdfast.js");

/** For many files: on a disk to make one may take longer than all that is done with it. */
export const inMemory = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();

/** What a test kills is to stay dead until somebody starts it again; tests of the watchdog turn it on. */
process.env.HOLDFAST_WATCHDOG = "off";

/** One native frame: the length in four bytes, then the JSON. */
export function frameOf(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, body]);
}

/** All native frames in some bytes. Throws where they end inside one. */
export function messagesIn(bytes: Buffer): any[] {
  const messages: any[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + 4 + bytes.readUInt32BE(at);
    if (end > bytes.length) throw new Error(`The bytes end ${end - bytes.length} bytes before the end of a frame`);
    messages.push(JSON.parse(bytes.toString("utf8", at + 4, end)));
    at = end;
  }
  return messages;
}

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: Buffer;
  stderr: string;
  ms: number;
  /** From its first byte on stdout to its end; the whole time when it said nothing. */
  lastMs: number;
}

/** Gives a child its stdin, and waits for its end. */
export function outcomeOf(
  child: ChildProcessWithoutNullStreams,
  stdin: string | Buffer = "",
  timeoutMs = busyMs(20_000),
): Promise<Outcome> {
  const start = Date.now();
  const stdout: Buffer[] = [];
  let stderr = "";
  let first = start;
  child.stdout.once("data", () => (first = Date.now()));
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk));
  child.stdin.on("error", () => {}); // it ended first
  child.stdin.end(stdin);
  const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
  return new Promise((done) =>
    child.once("close", (code, signal) => {
      clearTimeout(timer);
      done({ code, signal, stdout: Buffer.concat(stdout), stderr, ms: Date.now() - start, lastMs: Date.now() - first });
    }),
  );
}

/** Runs the built file to its end. */
export function holdfast(
  args: string[],
  { stdin = "" as string | Buffer, env = {} as NodeJS.ProcessEnv, cwd = "/", timeoutMs = busyMs(20_000) } = {},
): Promise<Outcome> {
  return outcomeOf(
    spawn(process.execPath, [builtFile, ...args], { env: { ...process.env, ...env }, cwd }),
    stdin,
    timeoutMs,
  );
}

export const request = (
  method: string,
  params: unknown = {},
  auth?: string,
  id: unknown = 1,
): Record<string, unknown> => ({ jsonrpc: "2.0", id, method, params, ...(auth === undefined ? {} : { auth }) });

/**
 * Registers tests that run side by side, most of whose time is waiting: at most `limit` at once, in order, reported one after the other.
 *
 * @param test A uvu suite.
 * @param limit How many; or lanes that several suites share: all suites of a file begin at once.
 */
export function sideBySide(
  test: (name: string, body: () => Promise<void>) => void,
  limit: number | Promise<void>[],
): (name: string, body: () => Promise<void>) => void {
  const free = typeof limit === "number" ? lanesOf(limit) : limit;
  return (name, body) => {
    const turn = free.shift()!; // a lane: each test of it begins when the one before has ended
    const run = turn.then(body);
    free.push(run.catch(() => {}));
    test(name, () => run);
  };
}

/** A daemon of a test's own, started as anybody would. */
export interface TestDaemon {
  /** 0700, under the system's temporary directory; everything of this daemon is in it. */
  directory: string;
  socket: string;
  token: string;
  tokenFile: string;
  pid: number;
  log(): string;
}

/** Daemons that are not stopped yet: their sockets, and their pids, where they are known. */
const daemons = new Map<string, number>();
process.on("exit", endDaemons);
process.once("SIGTERM", () => process.exit(143)); // what runs the tests has waited for long enough

/** When a test file crashes, or a test fails: also those that it has started in the place of the first, and what they hold. */
function endDaemons(): void {
  for (const [socket, pid] of daemons) {
    spawnSync(process.execPath, [builtFile, "--stop", "--now", "--socket", socket], { cwd: "/", timeout: 20_000 });
    if (isAlive(pid)) process.kill(pid, "SIGKILL");
    endHeld(`${socket}.held`);
  }
}

/** Ends the children that nobody else ends, and their holders: found by their command lines, which say their directories. */
export function endHeld(held: string): void {
  const pids = readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 0 && isAlive(pid));
  const holders = pids.filter((pid) => commandLineOf(pid).includes(`${held}/`));
  const isHeld = (pid: number): boolean => holders.includes(Number(statOf(pid)?.[1]));
  for (const pid of [...pids.filter(isHeld), ...holders]) killGroupOf(pid);
}

export function commandLineOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return ""; // it has just ended
  }
}

/** Who runs a command line, of the children of a process, or of its group. */
export function findRunning(line: string, of: "children" | "group", pid: number): number[] {
  const words = `${line.replaceAll(" ", "\0")}\0`;
  const isOf = (found: number): boolean => statOf(found)?.[of === "children" ? 1 : 2] === String(pid);
  const pids = readdirSync("/proc").map(Number).filter(Boolean);
  return pids.filter((found) => isOf(found) && commandLineOf(found) === words);
}

/** A child leads a group of its own; holder and keeper are in that of the holder. */
function killGroupOf(pid: number): void {
  for (const target of statOf(pid)?.[2] === String(pid) ? [-pid, pid] : [pid]) signal(target, "SIGKILL");
}

function signal(target: number, name: NodeJS.Signals): void {
  try {
    process.kill(target, name);
  } catch {
    // it has just ended
  }
}

/** Starts the built file, and stops it when the test is over. Its processes, its socket and its record's claim are gone then. */
export async function withDaemon(
  run: (daemon: TestDaemon) => Promise<void>,
  env: NodeJS.ProcessEnv = {},
  args: string[] = [],
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-daemon-"));
  const socket = join(directory, "s");
  const tokenFile = join(directory, "token");
  const token = randomBytes(8).toString("hex");
  writeFileSync(tokenFile, `${token}\n`, { mode: 0o600 });
  daemons.set(socket, 0); // it may be there before it has said its pid
  let isStopped = false;
  try {
    const { code, stdout, stderr } = await holdfast(
      ["--serve", "--json", "--socket", socket, "--token-file", tokenFile, ...args],
      { env: { SHELL: "/bin/sh", ...env } },
    );
    if (code !== 0) throw new Error(`--serve exited with ${code}: ${stderr}`);
    const { pid, log } = JSON.parse(stdout.toString());
    daemons.set(socket, pid);
    await run({ directory, socket, token, tokenFile, pid, log: () => readFileSync(log, "utf8") });
    await stopDaemon(socket);
    await eventually(() => !isAlive(pid), `the daemon, pid ${pid}, has ended`);
    daemons.delete(socket);
    isStopped = true;
    const left = readdirSync(directory).filter(
      (name) => lstatSync(join(directory, name)).isSocket() || name.endsWith(".lock"),
    );
    if (left.length > 0) throw new Error(`It left ${left.join(", ")}`);
  } finally {
    if (!isStopped) await holdfast(["--stop", "--now", "--socket", socket]);
    endHeld(`${socket}.held`); // of holders that a test has killed, and what a daemon was made to leave alone
    await removeAll(directory);
  }
}

/** As `--stop --now` does it, but without a process of its own, where the daemon answers. @throws {Error} It could not be stopped. */
async function stopDaemon(socket: string): Promise<void> {
  if (await shutDown(socket)) return;
  const { code, stderr } = await holdfast(["--stop", "--now", "--socket", socket]);
  if (code !== 0) throw new Error(`--stop exited with ${code}: ${stderr}`);
}

/** Returns whether it has ended since we asked it to. */
async function shutDown(socket: string): Promise<boolean> {
  const connection = connect(socket);
  const timer = setTimeout(() => connection.destroy(), 5000);
  try {
    const { key, pid } = JSON.parse(readFileSync(`${socket}.record`, "utf8"));
    const wire = createWire(connection, connection, key);
    await wire.request("server.shutdown", { graceMs: 0 });
    await eventually(() => !isAlive(pid), "its end");
    return true;
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
    connection.destroy();
  }
}

/** A client spoken by hand, over any two streams. Native framing. */
export interface Wire {
  /** Whatever is not an answer, in order of arrival. */
  messages: any[];
  /** Sees each of them first; returns true for what is not to be kept. */
  onMessage: (message: any) => unknown;
  /**
   * Resolves to the result; rejects with an Error that has the code and data of the answer's.
   *
   * @param now Called with the result before any message after it is looked at.
   */
  request(method: string, params?: unknown, now?: (result: any) => void): Promise<any>;
  /** Resolves to the first of `messages` that fits, which may be there already. */
  message(fits: (message: any) => boolean, timeoutMs?: number): Promise<any>;
  /** Resolves when the other side has ended. */
  closed: Promise<void>;
}

export function createWire(input: Readable, output: Writable, token?: string): Wire {
  const waiting = new Map<number, (answer: any) => void>();
  const watchers = new Set<() => void>();
  let lastId = 0;
  let held: Buffer[] = [];
  let heldBytes = 0;
  let wanted = 4;
  input.on("data", (chunk: Buffer) => {
    held.push(chunk);
    heldBytes += chunk.length;
    if (heldBytes < wanted) return;
    const bytes = Buffer.concat(held);
    let at = 0;
    for (wanted = 4; at + 4 <= bytes.length; at += wanted, wanted = 4) {
      wanted = 4 + bytes.readUInt32BE(at);
      if (at + wanted > bytes.length) break;
      take(JSON.parse(bytes.toString("utf8", at + 4, at + wanted)));
    }
    held = [bytes.subarray(at)];
    heldBytes = bytes.length - at;
  });
  const closed = new Promise<void>((done) => input.on("close", done));
  input.on("error", () => {});
  output.on("error", () => {}); // "close" of the input follows
  void closed.then(() => {
    for (const answer of waiting.values())
      answer({ error: { code: 0, message: "The connection ended before the answer" } });
  });

  function take(message: any): void {
    const answer = "id" in message && !("type" in message) ? waiting.get(message.id) : undefined;
    if (answer !== undefined) {
      waiting.delete(message.id);
      answer(message);
      return;
    }
    if (wire.onMessage(message) !== true) wire.messages.push(message);
    for (const watcher of [...watchers]) watcher();
  }

  const wire: Wire = {
    messages: [],
    onMessage: () => {},
    closed,
    request: (method, params = {}, now) =>
      new Promise((done, fail) => {
        const id = ++lastId;
        waiting.set(id, ({ result, error }) => {
          if (error !== undefined) return fail(Object.assign(new Error(error.message), error));
          now?.(result);
          done(result);
        });
        output.write(frameOf(request(method, params, token, id)));
      }),
    message: (fits, timeoutMs = 20_000) =>
      new Promise((done, fail) => {
        const timer = setTimeout(
          () => finish(() => fail(new Error(`No such message came within ${timeoutMs} ms: ${fits}`))),
          timeoutMs,
        );
        const finish = (settle: () => void) => {
          clearTimeout(timer);
          watchers.delete(look);
          settle();
        };
        const look = () => {
          const found = wire.messages.find(fits);
          if (found !== undefined) finish(() => done(found));
        };
        watchers.add(look);
        look();
      }),
  };
  return wire;
}

/** Joins a daemon through `--bridge`, as over SSH. */
export function openBridge({ socket, token }: TestDaemon): { bridge: ChildProcessWithoutNullStreams; wire: Wire } {
  const bridge = spawn(process.execPath, [builtFile, "--bridge", "--socket", socket], { cwd: "/" });
  bridge.stderr.resume();
  return { bridge, wire: createWire(bridge.stdout, bridge.stdin, token) };
}

/** Joins a daemon at its socket. */
export function openSocket({ socket, token }: TestDaemon): { connection: Socket; wire: Wire } {
  const connection = connect(socket);
  return { connection, wire: createWire(connection, connection, token) };
}

/** Says whether a process runs. A zombie does not. */
export function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(")") + 2));
  } catch {
    return false;
  }
}

/** Waits until something is so. */
export function eventually(isSo: () => unknown, what: string, timeoutMs = 20_000): Promise<void> {
  return until(what, isSo, timeoutMs);
}

/** Stops a process in a moment when something is so: it can change nothing of it any more. */
export async function stopWhen(pid: number, isSo: () => boolean, what: string): Promise<void> {
  const isStopped = async (): Promise<boolean> => {
    process.kill(pid, "SIGSTOP");
    await eventually(() => statOf(pid)?.[0] === "T", "it stands still");
    const isNow = isSo();
    if (!isNow) process.kill(pid, "SIGCONT");
    return isNow;
  };
  await eventually(isStopped, what);
}

/** Removes a directory in which others may be writing yet. */
export function removeAll(path: string): Promise<void> {
  const isRemoved = (): boolean => {
    try {
      rmSync(path, { recursive: true, force: true });
      return true;
    } catch (error) {
      if (errnoOf(error) === "ENOTEMPTY") return false;
      throw error;
    }
  };
  return eventually(isRemoved, `the end of ${path}`);
}

/** So many tests at once. */
export function lanesOf(count: number): Promise<void>[] {
  return Array.from({ length: count }, () => Promise.resolve());
}

export const isRoot = process.getuid?.() === 0;
/** Words before a command that is to run without root's rights; none where we have none ourselves. */
export const asNobody = isRoot ? ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] : [];

/** A test without it is skipped: not every machine has all that .ci/run installs. */
export const hasProgram = (name: string): boolean => findProgram(process.env, name) !== undefined;

/** Who may mount in a mount namespace: in a container root mostly may not. */
export const canMount = (): boolean => isRoot && spawnSync("unshare", ["--mount", "true"]).status === 0;

const opened = new Map<string, string>();

/** A file that each user may run: where it is, or, below a home that is closed to others, a copy, which goes with us. */
export function openToAll(path: string): string {
  const known = opened.get(path);
  if (known !== undefined) return known;
  const real = realpathSync(path);
  const isOpen = (at: string, bits = 0o001): boolean =>
    (statSync(at).mode & bits) === bits && (at === "/" || isOpen(dirname(at)));
  let found = path;
  if (isRoot && !isOpen(real, 0o005)) {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-test-open-"));
    process.once("exit", () => rmSync(directory, { recursive: true }));
    found = join(directory, basename(real));
    copyFileSync(real, found);
    for (const made of [directory, found]) chmodSync(made, 0o755);
  }
  opened.set(path, found);
  return found;
}

/** Words that run the built file, also as another user. */
export const forAnyone = (): [node: string, file: string] => [openToAll(process.execPath), openToAll(builtFile)];

export const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/**
 * A bound that only a hang reaches: so many milliseconds on a machine that has nothing else to do, and as many times as long as others keep its
 * processors busy.
 */
export const busyMs = (ms: number): number => ms * (1 + loadavg()[0]! / cpus().length);

/** The permissions of a file, in octal. */
export const modeOf = (path: string): string => (lstatSync(path).mode & 0o7777).toString(8);

/** Calls something that must fail, and soon. */
export async function failureOf(action: () => unknown, withinMs = 500): Promise<Failure> {
  const start = Date.now();
  try {
    await action();
  } catch (error) {
    assert.instance(error, Failure, String(error));
    assert.ok(Date.now() - start < busyMs(withinMs), `it took ${Date.now() - start} ms`);
    return error as Failure;
  }
  throw new Error("It did not fail");
}

/** Waits for something to become true. What takes longer, or is dear to look at, is looked at less often: a look may be a session of its own. */
export async function until(what: string, check: () => unknown, timeoutMs = 20_000): Promise<void> {
  const start = performance.now();
  for (let at = start; !(await check()); at = performance.now()) {
    const [waitedMs, lookMs] = [performance.now() - start, performance.now() - at];
    if (waitedMs > timeoutMs) throw new Error(`Not within ${timeoutMs} ms: ${what}`);
    await sleep(Math.max(Math.min(10 + waitedMs / 20, 100), Math.min(2 * lookMs, 500)));
  }
}

/** Fields of /proc/<pid>/stat from the third on: state, parent, process group, session, … */
export function statOf(pid: number | string): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

/** A directory of a test's own (0700), a socket in it, and whatever it takes to start, use and end daemons there. */
export interface Site {
  directory: string;
  socket: string;
  token: string;
  tokenFile: string;
  /** In it, the default state directory lies in `directory`; and processes that have it are found again. */
  env: NodeJS.ProcessEnv;
  /** Runs the built file to its end, with --socket. */
  run(args: string[], options?: RunOptions): Promise<Outcome>;
  /** Runs any command to its end. */
  command(command: string[], options?: RunOptions): Promise<Outcome>;
  /** Starts or joins a daemon with `token`; throws unless that exits with 0. Returns what --json prints. */
  serve(args?: string[], options?: RunOptions): Promise<any>;
  record(): any;
  log(): string;
  /** Connects to the socket. */
  dial(framing?: "native" | "lines"): Promise<Peer>;
  bridge(args?: string[], framing?: "native" | "lines"): Bridge;
  /** Pids of the processes that were started here and live; not of what daemons have started. */
  processes(): number[];
  /** Of those, and of what daemons have started. */
  allProcesses(): number[];
}

export interface RunOptions {
  stdin?: string | Buffer;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  timeoutMs?: number;
  /** Another program than the built one. */
  file?: string;
}

/**
 * Runs a test with a directory of its own. In the end each daemon there is stopped, and checked by pid to be gone; nothing of it stays, and
 * a process that is left over is a failure.
 */
export async function withDirectory(
  run: (site: Site) => Promise<void>,
  { owner = undefined as number | undefined } = {},
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-test-"));
  if (owner !== undefined && isRoot) chownSync(directory, owner, owner);
  const site = siteIn(directory);
  let problem: string | undefined;
  daemons.set(site.socket, 0);
  try {
    await run(site);
  } finally {
    problem = await endAll(site);
    daemons.delete(site.socket);
    await removeAll(directory);
  }
  if (problem !== undefined) throw new Error(problem);
}

function siteIn(directory: string): Site {
  const socket = join(directory, "rpc.sock");
  const tokenFile = join(directory, "given.token");
  const token = "a good token";
  const env: NodeJS.ProcessEnv = { ...process.env, XDG_STATE_HOME: join(directory, "state"), HOLDFAST_TEST: directory };
  writeFileSync(tokenFile, `${token}\n`, { mode: 0o600 });
  const site: Site = {
    directory,
    socket,
    token,
    tokenFile,
    env,
    command: ([program, ...args], { stdin = "", env: more = {}, cwd = "/", timeoutMs = busyMs(20_000) } = {}) =>
      outcomeOf(spawn(program!, args, { env: { ...env, ...more }, cwd }), stdin, timeoutMs),
    run: (args, options = {}) =>
      site.command([process.execPath, options.file ?? builtFile, ...args, "--socket", socket], options),
    serve: async (args = [], options) => {
      const { code, stdout, stderr } = await site.run(
        ["--serve", "--json", "--token-file", tokenFile, ...args],
        options,
      );
      if (code !== 0) throw new Error(`--serve ended with exit code ${code}: ${stderr}`);
      return JSON.parse(stdout.toString());
    },
    record: () => JSON.parse(readFileSync(`${socket}.record`, "utf8")),
    log: () => readFileSync(join(directory, "remote-server.log"), "utf8"),
    dial: async (framing = "native") => {
      const connection = connect({ path: socket, allowHalfOpen: true });
      await new Promise((done, fail) => connection.once("connect", done).once("error", fail));
      return peerOf(connection, connection, framing, socket);
    },
    bridge: (args = [], framing = "native") => bridgeOf(["--bridge", "--socket", socket, ...args], env, framing),
    processes: () => withoutForked(processesWith(`HOLDFAST_TEST=${directory}`)),
    allProcesses: () => processesWith(`XDG_STATE_HOME=${env.XDG_STATE_HOME}`, `HOLDFAST_TEST=${directory}`),
  };
  return site;
}

function recordsIn(directory: string): string[] {
  return namesBelow(directory)
    .filter((name) => name.endsWith(".record"))
    .map((name) => join(directory, name));
}

/** Ends what runs at a site: its daemons by --stop, the rest by SIGKILL. Returns what should not have been there. */
async function endAll(site: Site): Promise<string | undefined> {
  const living = site.processes();
  for (const pid of living) signal(pid, "SIGCONT");
  for (const path of recordsIn(site.directory)) {
    const [, pid, socket] = /"pid": (\d+)[\s\S]*"path": "([^"]+)"/.exec(readFileSync(path, "utf8")) ?? []; // not JSON.parse: a test may have broken it
    if (!living.includes(Number(pid))) {
      // what a killed daemon held is the next one's, and there is none
      if (filesIn(`${socket}.held`).length > 0) endHeld(`${socket}.held`);
      continue;
    }
    await stopDaemon(socket!).catch((error) => process.stderr.write(`${error.message}\n`));
  }
  let left = site.allProcesses();
  for (const end = Date.now() + busyMs(1100); left.length > 0 && Date.now() < end; left = site.allProcesses())
    await sleep(50);
  const words = left.map((pid) => commandLineOf(pid).replaceAll("\0", " "));
  left.forEach(killGroupOf);
  for (const pid of left) await until(`the end of ${pid}`, () => !isAlive(pid));
  return left.length === 0 ? undefined : `Processes were left: ${words.join("; ")}`;
}

/** Without what a daemon among them has forked: until that is another program, in a moment, it has its arguments and environment. Its watchdog stays. */
export function withoutForked(pids: number[]): number[] {
  const isForked = (pid: number): boolean => {
    const parent = Number(statOf(pid)?.[1]);
    return (
      pids.includes(parent) && /\0--launched\0/.test(commandLineOf(parent)) && !/\0--revive\0/.test(commandLineOf(pid))
    );
  };
  return pids.filter((pid) => !isForked(pid));
}

/** In the middle of execve(2), a moment that may last where there is no processor for it, a process has neither arguments nor environment. */
function environmentOf(pid: number): string[] {
  const read = (): string => readFileSync(`/proc/${pid}/environ`, "latin1");
  const isProgram = (): boolean => isAlive(pid) && pid !== 2 && !["0", "2"].includes(statOf(pid)![1]!); // no thread of the kernel
  let text = read();
  for (let i = 0; i < 50 && text === "" && commandLineOf(pid) === "" && isProgram(); i++) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    text = read();
  }
  return text.split("\0");
}

/** Finds processes by one of some environment variables: children have them too, whatever their session, parent and name; but HOLDFAST_* not of a daemon. */
export function processesWith(...variables: string[]): number[] {
  const isOne = (pid: number): boolean => {
    const found = environmentOf(pid);
    return variables.some((variable) => found.includes(variable));
  };
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => {
      try {
        return pid > 0 && isOne(pid) && isAlive(pid);
      } catch {
        return false;
      }
    });
}

/** The wire spoken by hand, over a socket or a bridge. */
export interface Peer {
  socket: Socket;
  write(bytes: Buffer | string): void;
  send(message: unknown): void;
  /** The next message; rejects when none comes in time, or the stream has ended. */
  next(timeoutMs?: number): Promise<any>;
  /** Sends a request, and takes the next message for its answer. */
  ask(method: string, params?: unknown, auth?: string, id?: unknown): Promise<any>;
  /** Resolves at the stream's end, to the bytes that came since the last message. */
  ended: Promise<Buffer>;
  close(): void;
}

export function peerOf(input: Readable, output: Writable, framing: "native" | "lines", name: string): Peer {
  let bytes: Buffer = Buffer.alloc(0);
  let over = false;
  let wake = (): void => {};
  const ended = new Promise<Buffer>((done) => {
    const end = (): void => {
      over = true;
      wake();
      done(bytes);
    };
    input.on("end", end).on("close", end);
  });
  input.on("error", () => {}); // "close" follows
  output.on("error", () => {});
  input.on("data", (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
    wake();
  });
  const cut = (bodyAt: number, end: number, next: number): any => {
    const body = bytes.toString("utf8", bodyAt, end);
    bytes = bytes.subarray(next);
    return JSON.parse(body);
  };
  const take = (): any => {
    if (framing === "lines") {
      const end = bytes.indexOf(10);
      return end < 0 ? undefined : cut(0, end, end + 1);
    }
    if (bytes.length < 4) return undefined;
    const end = 4 + bytes.readUInt32BE(0);
    return bytes.length < end ? undefined : cut(4, end, end);
  };
  const peer: Peer = {
    socket: input as Socket,
    ended,
    write: (data) => void output.write(data),
    send: (message) => void output.write(framing === "lines" ? `${JSON.stringify(message)}\n` : frameOf(message)),
    async next(timeoutMs = 20_000) {
      for (const deadline = Date.now() + timeoutMs; ; ) {
        const message = take();
        if (message !== undefined) return message;
        if (over) throw new Error(`${name} ended, with ${bytes.length} bytes left over`);
        const left = deadline - Date.now();
        if (left <= 0) throw new Error(`No message from ${name} within ${timeoutMs} ms`);
        let timer: NodeJS.Timeout | undefined;
        await new Promise<void>((done) => {
          wake = done;
          timer = setTimeout(done, left);
        });
        clearTimeout(timer);
      }
    },
    ask(method, params, auth, id) {
      peer.send(request(method, params, auth, id));
      return peer.next();
    },
    close: () => void input.destroy(),
  };
  return peer;
}

/** A --bridge that runs, seen from its peer's side. */
export interface Bridge extends Peer {
  child: ChildProcessWithoutNullStreams;
  /** Its end, and what it wrote to stderr. */
  exit: Promise<{ code: number | null; signal: NodeJS.Signals | null; stderr: string }>;
}

export function bridgeOf(
  args: string[],
  env: NodeJS.ProcessEnv,
  framing: "native" | "lines",
  file = builtFile,
): Bridge {
  const child = spawn(process.execPath, [file, ...args], { env, cwd: "/" });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk));
  const exit = new Promise<Awaited<Bridge["exit"]>>((done) =>
    child.once("exit", (code, signal) => setImmediate(() => done({ code, signal, stderr }))),
  );
  return { ...peerOf(child.stdout, child.stdin, framing, "the bridge"), child, exit };
}

/**
 * A copy of the built file with some of its times changed, for what would take a minute: `{ strangerMs: 500 }`.
 *
 * @returns Its path, in the directory.
 */
export function builtWith(directory: string, times: Record<string, number>): string {
  let text = readFileSync(builtFile, "utf8");
  for (const [name, value] of Object.entries(times)) {
    const pattern = new RegExp(`\\b${name} ?= ?[0-9e]+\\b`);
    if (!pattern.test(text)) throw new Error(`The built file has no ${name}`);
    text = text.replace(pattern, `${name} = ${value}`);
  }
  const path = join(directory, "quick.cjs");
  writeFileSync(path, text);
  return path;
}

/** What a directory holds, sorted; nothing where there is none. */
export function filesIn(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory).sort() : [];
}

/** All below a directory, relative to it. What goes meanwhile is left out, and no link is followed; `recursive` of Node 18 fails at a socket. */
export function namesBelow(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => [
      entry.name,
      ...(entry.isDirectory() ? namesBelow(join(directory, entry.name)).map((name) => join(entry.name, name)) : []),
    ]);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return [];
    throw error;
  }
}

/** Every test is to do all its rounds (node tests/run.mjs --all). */
export const runsAll = process.env.HOLDFAST_TEST_ALL === "1";
/** How much of something a test does: all of it, or as much as shows whether it is right. */
export const rounds = (all: number, few: number): number => (runsAll ? all : few);

const rows: string[] = [];

/** Keeps a row of the fault table for a test, in the order of the tests. They are printed when the file ends, and shown by --all. */
export function faultRow(done: string, promised: string): (happened: string) => void {
  if (rows.length === 0) process.once("exit", () => console.log(`\n${rows.join("")}`));
  const at = rows.push("") - 1;
  return (happened) => {
    rows[at] = `| ${done} | ${promised} | ${happened} |\n`;
  };
}
