/**
 * A child of the daemon: what it says goes to its spool and its readers, what it is told goes to its stdin, signals go to its group.
 *
 *     running ──its own end──▶ exit known ──its pipes' ends, or the grace──▶ over ──its pipes' ends──▶ done
 *
 * After its end there may be grandchildren that hold its pipes: what they say is held, behind the exit message.
 *
 * The signals. Until a child has been reaped, its pid, and so its group's, cannot be anyone else's. After that the group may live on
 * with grandchildren: it is provably the same one, and is signalled, as long as a member is alive that was seen in it before.
 */

import { Buffer } from "node:buffer";
import { readFileSync, writeFileSync } from "node:fs";
import { constants as osConstants } from "node:os";
import { cannot, cleanText, errnoOf, osFailure, safely } from "./failure.ts";
import type { Source } from "./readers.ts";
import { deliver, mayFlow } from "./readers.ts";
import { livingProcesses, now, soon } from "./record.ts";
import type { Ended, Running } from "./running.ts";
import type { Spool } from "./spool.ts";
import { appendOutput, restSpool } from "./spool.ts";

export const defaultLimits = {
  /** Accepted for one child's stdin, and not yet taken by it; and for all of them together. */
  stdinBytes: 16 << 20,
  allStdinBytes: 256 << 20,
  /** See readers.ts. */
  unsentBytes: 16 << 20,
  stallMs: 10_000,
  /** From a child's end to its exit message, when a grandchild holds its pipes. */
  exitGraceMs: 5_000,
  /** Ended children are known for so long, and so many of them. */
  keepMs: 7 * 86_400_000,
  keepExits: 1000,
  /** How often that is looked at, and how old the daemon is when it is first. */
  sweepMs: 3_600_000,
  /** A child that nobody has read for so long is read at most at so many bytes a second: it is not to wear out a disk. */
  unwatchedMs: 60_000,
  unwatchedBytes: 8 << 20,
  /** For the login shell to say its PATH. */
  loginPathMs: 4_000,
};

/** What a child leaves in its pipes is read as it ends, whatever the reader's pace: some 200 KiB each. A grandchild may write on. */
const lastReadBytes = 4 << 20;
/** A signal counts as the cause of an exit for so long: the longest killAndWait. */
const killedByMs = 30_000;
/** Bytes of a stdin's queue are kept in blocks: of a write of its own, or of many small ones. */
const blockBytes = 64 << 10;
const smallBytes = 4096;
/** The kernel's OOM killer takes a child before the daemon: oom_score_adj, 1000 at most (proc(5)). */
const oomScore = 200;
/** All of a group's living members are looked for so soon, and then less and less often. */
const firstScanMs = 20;
const lastScanMs = 500;
const throttleMs = 100;

/** What all children have in common. */
export interface Shared {
  readonly limits: typeof defaultLimits;
  /** Of all children: what waits for a stdin. */
  queuedBytes: number;
  log(line: string): void;
  /** Its exit message is in the spool. */
  onOver(child: Child): void;
}

/** A child that a signal ended has the exit code that a shell would give it: 128 + the signal's number. */
export interface Exit {
  /** -1 where it is not known. */
  exitCode: number;
  signal?: NodeJS.Signals;
  killedBy?: "client" | "shutdown";
  /** Why it is not known. */
  unknown?: string;
}

/** What a child was started as. */
export interface About {
  readonly id: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly cwd: string;
  /** What it was given of that which rots. */
  readonly env: { path: string | null; home: string | null; sshAuthSock: string | null };
  readonly pid: number;
  /** By the clock on the wall, which may jump. */
  readonly startedAt: number;
}

export interface Stdin {
  state: "open" | "ended" | "broken";
  /** Bytes accepted, ever. */
  applied: number;
  /** Accepted, and not yet given to the child: what is in its blocks from `start` to `end`. */
  queue: { bytes: Buffer; start: number; end: number }[];
  queuedBytes: number;
  /** Its end was told to the child. */
  isClosed: boolean;
}

export interface Child extends Source {
  readonly about: About;
  readonly bornAt: number;
  readonly stdin: Stdin;
  /** Until its pipes are at their ends, which may be long after its own. */
  running: Running | undefined;
  /** Of output, ever. */
  outputBytes: number;
  /** How the child itself ended. Its pipes may still be open. */
  exit?: Exit;
  exitTimer?: NodeJS.Timeout;
  /** Unix time. */
  endedAt?: number;
  /** Bytes read since then. */
  lastRead: number;
  /** Its pipes are at their ends. */
  isClosed: boolean;
  /** The exit message is in the spool. */
  isOver: boolean;
  /** Nobody can name it any more: what it says is read, and not held. */
  isForgotten: boolean;
  killed?: { by: "client" | "shutdown"; at: number };
  /** Members of its group alive after it: "pid start-time"; and when all of them were looked for last, how long to wait until the next time. */
  survivors: Set<string>;
  scannedAt: number;
  scanMs: number;
  /** Since when nobody reads it: now(); and what it has said in the present tenth of a second. */
  unwatchedSince: number;
  burst: { since: number; bytes: number; timer: NodeJS.Timeout | undefined };
}

/** Makes the child that runs, and listens to it. */
export function createChild(shared: Shared, about: About, spool: Spool, running: Running): Child {
  const child: Child = {
    id: about.id,
    about,
    bornAt: now(),
    spool,
    readers: new Set(),
    get isDone() {
      return child.isOver && !child.running;
    },
    onFlow: () => setFlow(shared, child),
    running,
    stdin: { state: "open", applied: 0, queue: [], queuedBytes: 0, isClosed: false },
    outputBytes: 0,
    lastRead: 0,
    isClosed: false,
    isOver: false,
    isForgotten: false,
    survivors: new Set(),
    scannedAt: 0,
    scanMs: firstScanMs,
    unwatchedSince: now(),
    burst: { since: 0, bytes: 0, timer: undefined },
  };
  running.listen({
    output: (stream, chunk) => hold(shared, child, stream, chunk),
    writable: () => pumpStdin(shared, child),
    stdinBroken: () => breakStdin(shared, child),
    ended: (how) => noteEnd(shared, child, how),
    closed: () => noteClosed(shared, child),
  });
  return child;
}

/** Raising it is always allowed. Where it is too late, or there is no such file, nothing is lost. */
export function raiseOomScore(pid: number): void {
  safely(() => {
    const own = Number(readFileSync("/proc/self/oom_score_adj", "utf8"));
    writeFileSync(`/proc/${pid}/oom_score_adj`, String(Math.min(1000, own + oomScore)));
  });
}

// Output

function hold(shared: Shared, child: Child, stream: "stdout" | "stderr", chunk: Buffer): void {
  if (child.isForgotten) return;
  child.outputBytes += chunk.length;
  if (child.exit) child.lastRead += chunk.length;
  noteBurst(shared, child, chunk.length);
  deliver(child, appendOutput(child.spool, stream, chunk));
  setFlow(shared, child); // each time: node itself resumes the pipes of a child that has ended
}

function setFlow({ limits }: Shared, child: Child): void {
  const { exit, lastRead, burst, isOver } = child;
  const isLast = exit && !isOver && lastRead < lastReadBytes;
  if (child.readers.size > 0) child.unwatchedSince = now();
  const isBurst = burst.bytes > (limits.unwatchedBytes * throttleMs) / 1000;
  child.running?.setFlow(isLast || (mayFlow(child) && !isBurst));
}

/** Counts what a child says that nobody has read for long, and lets it stand still for the rest of a tenth of a second. */
function noteBurst(shared: Shared, child: Child, bytes: number): void {
  const { burst, spool, readers } = child;
  const isUnwatched = readers.size === 0 && now() - child.unwatchedSince > shared.limits.unwatchedMs;
  if (!isUnwatched || spool.isInMemory) {
    burst.bytes = 0;
    return;
  }
  burst.bytes += bytes;
  burst.timer ??= setTimeout(() => {
    Object.assign(burst, { bytes: 0, timer: undefined });
    setFlow(shared, child);
  }, throttleMs).unref();
}

// stdin

export function refuseClosedStdin({ about: { id }, exit, stdin }: Child): void {
  if (!exit && stdin.state === "open") return;
  const closed = stdin.state === "ended" ? "it was ended by an earlier write" : "the process has closed it";
  const why = exit ? "the process has ended" : closed;
  const data = { errno: "EPIPE", applied: stdin.applied };
  throw cannot(`write to stdin of process "${shorten(id)}": ${why}`, { data });
}

export function hasRoom({ limits, queuedBytes }: Shared, { stdin, running }: Child, bytes: number): boolean {
  const pending = stdin.queuedBytes + (running?.pendingBytes ?? 0);
  return pending + bytes <= limits.stdinBytes && queuedBytes + bytes <= limits.allStdinBytes;
}

/** Many small writes share a block: the memory that a queue takes is what is in it, and a block. */
export function acceptStdin(shared: Shared, { stdin }: Child, bytes: Buffer): void {
  stdin.applied += bytes.length;
  stdin.queuedBytes += bytes.length;
  shared.queuedBytes += bytes.length;
  if (bytes.length >= smallBytes) {
    stdin.queue.push({ bytes, start: 0, end: bytes.length });
    return;
  }
  let last = stdin.queue.at(-1);
  if (!last || last.bytes.length !== blockBytes || last.end + bytes.length > blockBytes) {
    last = { bytes: Buffer.allocUnsafeSlow(blockBytes), start: 0, end: 0 };
    stdin.queue.push(last);
  }
  last.end += bytes.copy(last.bytes, last.end);
}

export function pumpStdin(shared: Shared, child: Child): void {
  const { stdin, running } = child;
  try {
    for (let first = stdin.queue[0]; first && running; first = stdin.queue[0]) {
      const taken = running.write(first.bytes.subarray(first.start, first.end));
      if (taken === 0) return;
      first.start += taken;
      stdin.queuedBytes -= taken;
      shared.queuedBytes -= taken;
      if (first.start === first.end) stdin.queue.shift();
    }
  } catch {
    breakStdin(shared, child);
    return;
  }
  if (stdin.state !== "ended" || stdin.isClosed) return;
  stdin.isClosed = true;
  running?.endStdin();
}

function breakStdin(shared: Shared, { stdin }: Child): void {
  if (stdin.state === "open") stdin.state = "broken";
  shared.queuedBytes -= stdin.queuedBytes;
  Object.assign(stdin, { queue: [], queuedBytes: 0 });
}

// Signals

/** @returns false if there is nobody left to signal. */
export function signalGroup(child: Child, signal: NodeJS.Signals, by: "client" | "shutdown"): boolean {
  if (!isGroupAlive(child)) return false;
  try {
    process.kill(-child.about.pid, signal);
  } catch (error) {
    if (errnoOf(error) === "ESRCH") return false;
    throw osFailure(`send ${signal} to process "${shorten(child.id)}"`, error);
  }
  if (/^SIG(TERM|INT|HUP|QUIT|KILL)$/.test(signal)) child.killed = { by, at: now() };
  return true;
}

/** Waits for the whole group of each: grandchildren are to end, too. To look for them is to read all of /proc: less and less often. */
export function haveEnded(children: Child[], withinMs: number): Promise<boolean> {
  for (const child of children) Object.assign(child, { scannedAt: now(), scanMs: firstScanMs });
  return soon(() => !children.some(seemsAlive), withinMs);
}

function seemsAlive(child: Child): boolean {
  if (!child.exit) return true;
  if (!hasGroup(child.about.pid)) return false;
  if (now() - child.scannedAt < child.scanMs) return child.survivors.size > 0;
  const isAlive = isGroupAlive(child);
  Object.assign(child, { scannedAt: now(), scanMs: Math.min(2 * child.scanMs, lastScanMs) });
  return isAlive;
}

/** Says whether there is someone to signal, and that it is the child's group, not another that has its number by now. */
export function isGroupAlive(child: Child): boolean {
  if (!child.exit) return true;
  if (child.survivors.size === 0) return false;
  const members = groupMembers(child.about.pid);
  child.survivors = new Set(members.some((member) => child.survivors.has(member)) ? members : []);
  return child.survivors.size > 0;
}

/** Finds the living members of a process group: "pid start-time". Nobody where there is no /proc. */
function groupMembers(group: number): string[] {
  if (!hasGroup(group)) return [];
  return livingProcesses()
    .filter((process) => process.group === group)
    .map(({ pid, startTime }) => `${pid} ${startTime}`);
}

/** One system call, where /proc is one for each process of the host. Zombies count. */
function hasGroup(group: number): boolean {
  try {
    return process.kill(-group, 0);
  } catch (error) {
    return errnoOf(error) !== "ESRCH";
  }
}

// Ending

function noteEnd(shared: Shared, child: Child, { code, signal, unknown }: Ended): void {
  const exitCode = signal === null ? (code ?? -1) : 128 + osConstants.signals[signal];
  child.exit = { exitCode, ...(signal === null ? {} : { signal }), ...(unknown === undefined ? {} : { unknown }) };
  child.endedAt = Date.now();
  child.survivors = new Set(groupMembers(child.about.pid));
  if (child.isClosed) {
    noteClosed(shared, child);
    return;
  }
  child.exitTimer = setTimeout(finish, shared.limits.exitGraceMs, shared, child);
  setFlow(shared, child);
}

/** The exit message goes where all that the child itself has said is before it. */
export function finish(shared: Shared, child: Child): void {
  const { exit, killed, about, spool } = child;
  if (child.isOver || !exit) return;
  clearTimeout(child.exitTimer);
  child.isOver = true;
  breakStdin(shared, child);
  if (killed && now() - killed.at < killedByMs) exit.killedBy = killed.by;
  spool.endedAt = now();
  const messages = child.isForgotten ? [] : appendOutput(spool, "exit", Buffer.from(JSON.stringify(exit)));
  deliver(child, messages);
  child.running?.reap();
  const how = exit.unknown ?? exit.signal ?? `exit code ${exit.exitCode}`;
  shared.log(`[Process] Ended "${shorten(child.id)}": pid ${about.pid}, ${how}`);
  shared.onOver(child);
}

function noteClosed(shared: Shared, child: Child): void {
  child.isClosed = true;
  finish(shared, child);
  if (!child.isOver) return; // it has closed its output, and goes on
  release(child);
  deliver(child, []); // nothing more comes for those who waited for it
}

export function release(child: Child): void {
  clearTimeout(child.burst.timer);
  clearTimeout(child.exitTimer);
  child.running?.release();
  child.running = undefined;
  restSpool(child.spool);
}

/** A part of a client's own text, for the log and for errors. */
export function shorten(text: string): string {
  return cleanText(text, 100);
}
