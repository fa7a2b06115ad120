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

import { constants as osConstants } from "node:os";
import { cannot, cutText, errnoOf, osFailure, safely, shorten } from "./failure.ts";
import type { About, Exit, Killer, Mark } from "./kept.ts";
import { appendJournal, clearJournal, exitFrom, writeExit, writeMark } from "./kept.ts";
import type { Terminal } from "./pty.ts";
import { noteOutput, signalSession } from "./pty.ts";
import type { Source } from "./readers.ts";
import { deliver, mayFlow } from "./readers.ts";
import type { Identity, LivingProcess } from "./record.ts";
import { livenessOf, now, soon } from "./record.ts";
import type { Params } from "./rpc.ts";
import { booleanParam, invalidParam, limitParam } from "./rpc.ts";
import type { Ended, Look, Running } from "./running.ts";
import { createLook, hasGroup, lookNow, lookSince, membersOf, nextLookAt } from "./running.ts";
import type { Spool } from "./spool.ts";
import { appendOutput, removeSpool, restSpool } from "./spool.ts";

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
/** From KILL to giving up on a process in uninterruptible sleep. */
export const killWaitMs = 1000;
/** A signal counts as the cause of an exit for so long: the longest killAndWait. */
const killedByMs = 30_000;
/** Bytes of a stdin's queue are kept in blocks: of a write of its own, or of many small ones. */
const blockBytes = 64 << 10;
const smallBytes = 4096;
/** All of a group's living members are looked for so soon, and then less and less often. */
const firstScanMs = 20;
const lastScanMs = 500;
const throttleMs = 100;
/** Of a child's arguments so much is repeated. */
export const maxListedText = 4096;
/** A child that has been quiet for so long has nothing that was read, and is not in its spool. */
const settleMs = 25;
/** Where output is in memory, seqs are set aside on disk by so many. */
const seqStep = 4096;

/** What all children have in common. */
export interface Shared {
  readonly limits: typeof defaultLimits;
  /** Of all children: what waits for a stdin. */
  queuedBytes: number;
  readonly ends: Ends;
  log(line: string): void;
  /** Its exit message is in the spool. */
  onOver(child: Child): void;
}

/** Children that have ended. */
export interface Ends {
  /** Their groups are yet to be looked at. */
  readonly waiting: Set<Child>;
  timer: NodeJS.Timeout | undefined;
  readonly look: Look;
  /** Their exit messages are yet to be written: that, and to let their holders go, takes 1 ms, and is done for one in a turn of the event loop. */
  readonly finishing: Set<Child>;
  isTurnTaken: boolean;
}

export function createEnds(): Ends {
  return { waiting: new Set(), timer: undefined, look: createLook(), finishing: new Set(), isTurnTaken: false };
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
  /** Of one that is held: up to where the journal has what the child has not; Infinity, when it could not be written. */
  journalEnd: number;
  /** Bytes of which nobody knows whether the child has them: an earlier daemon died as it wrote them. They count as applied. */
  unsure?: { from: number; to: number };
}

export interface Child extends Source {
  readonly about: About;
  /** What it was given of that which rots; of one that was taken up nobody knows. */
  readonly rots: { path: string | null; home: string | null; sshAuthSock: string | null };
  /** What is kept on disk of it while it runs: of one that is held. */
  mark: Mark | undefined;
  readonly terminal: Terminal | undefined;
  readonly bornAt: number;
  readonly stdin: Stdin;
  /** Until its pipes are at their ends, which may be long after its own. */
  running: Running | undefined;
  isFlowing: boolean;
  settleTimer: NodeJS.Timeout | undefined;
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
  /** Who it is, when it is not under a holder of ours, nor our child: looked at before each signal. */
  known?: Identity;
  killed?: { by: Killer; at: number };
  /** Members of its group alive after it: "pid start-time", or undefined until they were looked for; and when all of them were looked for last, how long to wait until the next time. */
  survivors: Set<string> | undefined;
  scannedAt: number;
  scanMs: number;
  /** Since when nobody reads it: now(); and what it has said in the present tenth of a second. */
  unwatchedSince: number;
  burst: { since: number; bytes: number; timer: NodeJS.Timeout | undefined };
}

/** What a child is made of: from its start, or from what an earlier daemon has left of it. */
export interface Origin {
  about: About;
  rots?: Child["rots"];
  spool: Spool;
  running: Running | undefined;
  mark: Mark | undefined;
  terminal?: Terminal | undefined;
  stdin?: Partial<Stdin>;
  outputBytes?: number;
}

/** Makes a child, and listens to it where it runs. */
export function createChild(shared: Shared, origin: Origin): Child {
  const { about, spool, running, mark, terminal, outputBytes = 0 } = origin;
  const child: Child = {
    id: about.id,
    about,
    rots: origin.rots ?? { path: null, home: null, sshAuthSock: null },
    mark,
    terminal,
    bornAt: now() - Math.max(0, Date.now() - about.startedAt),
    spool,
    readers: new Set(),
    get isDone() {
      return child.isOver && !child.running;
    },
    onFlow: () => setFlow(shared, child),
    running,
    stdin: { state: "open", applied: 0, queue: [], queuedBytes: 0, isClosed: false, journalEnd: 0, ...origin.stdin },
    isFlowing: true,
    settleTimer: undefined,
    outputBytes,
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
  running?.listen({
    output: (stream, chunk) => hold(shared, child, terminal ? "stdout" : stream, chunk),
    writable: () => pumpStdin(shared, child),
    stdinBroken: () => breakStdin(shared, child),
    ended: (how) => noteEnd(shared, child, how),
    closed: () => noteClosed(shared, child),
  });
  settleSoon(child);
  return child;
}

// Output

function hold(shared: Shared, child: Child, stream: "stdout" | "stderr", chunk: Buffer): void {
  if (child.isForgotten) return;
  child.outputBytes += chunk.length;
  if (child.exit) child.lastRead += chunk.length;
  noteBurst(shared, child, chunk.length);
  const messages = appendOutput(child.spool, stream, chunk);
  setSeqsAside(child);
  if (child.terminal && noteOutput(child.terminal, chunk, child.spool.lastSeq) && child.mark)
    writeMark(child.spool.directory!, child.mark);
  settleSoon(child);
  deliver(child, messages);
  setFlow(shared, child); // each time: node itself resumes the pipes of a child that has ended
}

function setFlow({ limits }: Shared, child: Child): void {
  const { exit, lastRead, burst, isOver } = child;
  const isLast = exit && !isOver && lastRead < lastReadBytes;
  if (child.readers.size > 0) child.unwatchedSince = now();
  const isBurst = burst.bytes > (limits.unwatchedBytes * throttleMs) / 1000;
  const flows = isLast || (mayFlow(child) && !isBurst);
  child.isFlowing = flows;
  child.running?.setFlow(flows);
}

/** The next daemon does not know what was in this one's memory, but that it has a seq. */
function setSeqsAside({ spool, mark }: Child): void {
  if (!mark || !spool.isInMemory || spool.lastSeq <= mark.seqLimit) return;
  mark.seqLimit = spool.lastSeq + seqStep;
  writeMark(spool.directory!, mark);
}

/** Notes that all that was read is in the spool, when the child has been quiet for a while: if nothing is read until the daemon dies, nothing is missing. */
function settleSoon(child: Child): void {
  if (!child.mark || !child.running) return;
  if (child.settleTimer) {
    child.settleTimer.refresh();
    return;
  }
  child.settleTimer = setTimeout(() => {
    child.settleTimer = undefined;
    if (child.running) settle(child);
  }, settleMs).unref();
}

function settle({ mark, spool, running, outputBytes }: Child): void {
  running?.arm?.();
  if (mark) writeMark(spool.directory!, Object.assign(mark, { outputBytes }));
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

/** Gives the child what its stdin takes. */
export function pumpStdin(shared: Shared, child: Child): void {
  const { stdin, running, mark, spool } = child;
  try {
    for (let first = stdin.queue[0]; first && running; first = stdin.queue[0]) {
      const taken = giveStdin(child, first.bytes.subarray(first.start, first.end));
      if (taken === 0) break;
      first.start += taken;
      stdin.queuedBytes -= taken;
      shared.queuedBytes -= taken;
      if (first.start === first.end) stdin.queue.shift();
    }
  } catch {
    breakStdin(shared, child);
    return;
  }
  if (mark) keepStdin(child);
  if (stdin.state !== "ended" || stdin.isClosed || stdin.queue.length > 0) return;
  stdin.isClosed = true;
  running?.endStdin();
  if (mark) writeMark(spool.directory!, mark);
}

/** A daemon that dies within the write leaves behind that it was about to. */
function giveStdin({ running, mark, spool }: Child, bytes: Buffer): number {
  if (!mark) return running!.write(bytes);
  const piece = bytes.subarray(0, blockBytes);
  mark.intent = piece.length;
  writeMark(spool.directory!, mark);
  const taken = running!.write(piece);
  mark.delivered += taken;
  mark.intent = 0;
  return taken;
}

/** What was accepted and is not delivered is on disk before the answer; what was delivered is not. */
function keepStdin(child: Child): void {
  const { stdin, mark, spool } = child;
  const directory = spool.directory!;
  if (stdin.queue.length === 0) {
    if (stdin.journalEnd > 0) clearJournal(directory);
    stdin.journalEnd = 0;
  } else if (stdin.journalEnd < stdin.applied) {
    const from = Math.max(mark!.delivered, stdin.journalEnd);
    try {
      appendJournal(directory, lastOf(stdin, stdin.applied - from), from);
      stdin.journalEnd = stdin.applied;
    } catch {
      stdin.journalEnd = Infinity; // the disk is full: it is in memory, as the rest will be
    }
  }
  writeMark(directory, Object.assign(mark!, { applied: stdin.applied, stdin: stdin.state }));
}

function lastOf({ queue }: Stdin, length: number): Buffer {
  const pieces: Buffer[] = [];
  for (let at = queue.length - 1, left = length; left > 0; at--) {
    const { bytes, start, end } = queue[at]!;
    const piece = bytes.subarray(Math.max(start, end - left), end);
    pieces.unshift(piece);
    left -= piece.length;
  }
  return Buffer.concat(pieces);
}

function breakStdin(shared: Shared, child: Child): void {
  const { stdin, mark } = child;
  if (mark) mark.intent = 0;
  if (stdin.state === "open") stdin.state = "broken";
  shared.queuedBytes -= stdin.queuedBytes;
  Object.assign(stdin, { queue: [], queuedBytes: 0 });
  if (child.mark) keepStdin(child);
}

// Signals

export function kill(shared: Shared, child: Child, params: Params): object {
  const isThere = signalGroup(shared, child, signalParam(params), "client");
  return isThere ? { success: true } : { success: true, alreadyExited: true };
}

export async function killAndWait(shared: Shared, child: Child, params: Params): Promise<object> {
  const signal = signalParam(params);
  const timeoutMs = Math.min(limitParam(params, "timeoutMs", { max: Number.MAX_SAFE_INTEGER, default: 3000 }), 30_000);
  const escalate = booleanParam(params, "escalate", true);
  if (!signalGroup(shared, child, signal, "client") && child.exit)
    return { found: true, died: true, alreadyExited: true };
  if (await haveEnded(shared, [child], timeoutMs)) return { found: true, died: true };
  if (!escalate) return { found: true, died: Boolean(child.exit) };
  signalGroup(shared, child, "SIGKILL", "client");
  await haveEnded(shared, [child], killWaitMs);
  return { found: true, died: Boolean(child.exit), escalated: true };
}

/** "SIGTERM" or "TERM" or 15; TERM when it is absent. */
function signalParam(params: Params): NodeJS.Signals {
  const value = params.signal ?? "TERM";
  const isThis = ([name, number]: [string, number]): boolean =>
    [name, name.slice("SIG".length), number].includes(value as string);
  const found = Object.entries(osConstants.signals).find(isThis);
  if (!found) throw invalidParam("signal", value, 'the name of a signal, such as "SIGTERM", or its number');
  return found[0] as NodeJS.Signals;
}

/** @returns false if there is nobody left to signal. */
export function signalGroup({ ends }: Shared, child: Child, signal: NodeJS.Signals, by: Killer): boolean {
  if (!isGroupAlive(ends, child) || (child.known && livenessOf(child.known).state !== "alive")) return false;
  try {
    if (!child.terminal) process.kill(-child.about.pid, signal);
    else if (!signalSession(child.terminal, signal, child.survivors)) return false;
  } catch (error) {
    if (errnoOf(error) === "ESRCH") return false;
    throw osFailure(`send ${signal} to process "${shorten(child.id)}"`, error);
  }
  if (/^SIG(TERM|INT|HUP|QUIT|KILL)$/.test(signal)) child.killed = { by, at: now() };
  return true;
}

/** Waits for the whole group of each: grandchildren are to end, too. To look for them is to read all of /proc: less and less often. */
export function haveEnded({ ends }: Shared, children: Child[], withinMs: number): Promise<boolean> {
  for (const child of children) Object.assign(child, { scannedAt: now(), scanMs: firstScanMs });
  return soon(() => !children.some((child) => seemsAlive(ends, child)), withinMs);
}

function seemsAlive(ends: Ends, child: Child): boolean {
  if (!child.exit) return true;
  if (!child.terminal && !hasGroup(child.about.pid)) return false;
  const isDue = now() - child.scannedAt >= child.scanMs;
  const living = isDue ? lookSince(ends.look, child.scannedAt) : undefined;
  if (!living) return child.survivors?.size !== 0;
  Object.assign(child, { scannedAt: now(), scanMs: Math.min(2 * child.scanMs, lastScanMs) });
  return isGroupAlive(ends, child, living);
}

/** Says whether there is someone to signal, and that it is the child's group, not another that has its number by now. */
export function isGroupAlive({ look }: Ends, child: Child, living?: LivingProcess[]): boolean {
  if (!child.exit) return true;
  const known = child.survivors;
  if (known?.size === 0) return false;
  const members = survivorsOf(child, living ?? lookNow(look, known ? 0 : now()));
  const isOurs = known === undefined || members.some((member) => known.has(member));
  child.survivors = new Set(isOurs ? members : []);
  return child.survivors.size > 0;
}

/** Members of its group, or of the session of its terminal. */
function survivorsOf({ about, terminal }: Child, living: LivingProcess[]): string[] {
  return membersOf(about.pid, terminal ? "session" : "group", living);
}

// Ending

function noteEnd(shared: Shared, child: Child, how: Ended): void {
  if (child.exit) return; // an earlier daemon knew
  child.exit = exitFrom(how);
  child.endedAt = Date.now();
  child.survivors = undefined;
  child.scannedAt = now();
  shared.ends.waiting.add(child);
  lookAtEnds(shared);
}

/** Until then the holder of an ended child is not told, so that its pid is nobody else's. Ends that come in a burst share one look. */
function lookAtEnds(shared: Shared): void {
  const { waiting, look, timer } = shared.ends;
  clearTimeout(timer);
  const ended = [...waiting];
  const isAnyAlive = ended.some(({ about, terminal }) => terminal || hasGroup(about.pid));
  const living = isAnyAlive ? lookSince(look, Math.max(...ended.map(({ scannedAt }) => scannedAt))) : [];
  shared.ends.timer = living ? undefined : setTimeout(lookAtEnds, Math.max(1, nextLookAt(look) - now()), shared);
  if (!living) return;
  waiting.clear();
  for (const child of ended) {
    child.survivors ??= new Set(isAnyAlive ? survivorsOf(child, living) : []);
    if (child.isClosed) {
      finishSoon(shared, child);
      continue;
    }
    child.exitTimer = setTimeout(finishSoon, shared.limits.exitGraceMs, shared, child);
    setFlow(shared, child);
  }
}

function finishSoon(shared: Shared, child: Child): void {
  shared.ends.finishing.add(child);
  if (!shared.ends.isTurnTaken) finishNext(shared);
}

function finishNext(shared: Shared): void {
  const { ends } = shared;
  const [child] = ends.finishing;
  ends.isTurnTaken = child !== undefined;
  if (!child) return;
  setImmediate(finishNext, shared);
  ends.finishing.delete(child);
  finish(shared, child);
  if (!child.isClosed || !child.isOver) return; // it has closed its output, and goes on; or a grandchild holds its pipes
  release(child);
  deliver(child, []); // nothing more comes for those who waited for it
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
  if (spool.directory !== undefined && !child.isForgotten)
    safely(() => writeExit(spool.directory!, { exit, endedAt: child.endedAt!, seq: spool.exit!.seq }));
  settle(child);
  child.running?.reap();
  const how = exit.unknown ?? exit.signal ?? `exit code ${exit.exitCode}`;
  shared.log(`[Process] Ended "${shorten(child.id)}": pid ${about.pid}, ${how}`);
  shared.onOver(child);
}

function noteClosed(shared: Shared, child: Child): void {
  child.isClosed = true;
  if (shared.ends.waiting.has(child)) return; // lookAtEnds() comes back to it
  finishSoon(shared, child);
}

export function release(child: Child): void {
  clearTimeout(child.burst.timer);
  clearTimeout(child.exitTimer);
  clearTimeout(child.settleTimer);
  if (child.isForgotten) removeSpool(child.spool); // before the holder goes on: it writes there
  child.running?.release();
  child.running = undefined;
  restSpool(child.spool);
}

// What is told of it

/** @returns An entry of process.list. */
export function describeChild(child: Child, take: (text: string) => string): object {
  const { id, about, rots, isOver, spool, readers, terminal } = child;
  const { command, pid, cwd, startedAt } = about;
  const attached = [...readers].find((reader) => !reader.share)?.link.peer.id ?? null;
  const { firstSeq, lastSeq } = spool;
  return {
    id,
    command: take(command),
    args: about.args.map(take),
    pid,
    cwd: take(cwd),
    running: !isOver,
    firstSeq,
    lastSeq,
    ...describeState(child),
    startedAt,
    attached,
    bytes: child.outputBytes,
    env: { ...rots, path: rots.path && take(rots.path) },
    ...(terminal ? { terminal: { rows: terminal.kept.rows, columns: terminal.kept.columns } } : {}),
  };
}

/** As many as have room, the last of them cut. */
export function listArguments(args: readonly string[]): string[] {
  let room = maxListedText;
  const listed: string[] = [];
  for (const text of args) {
    if (room < 0) break;
    listed.push(cutText(text, room));
    room -= text.length;
  }
  return listed;
}

export function describeState({ isOver, exit, stdin }: Child): object {
  const { applied, unsure } = stdin;
  return { stdinApplied: applied, ...(unsure ? { stdinUnsure: unsure } : {}), ...(isOver ? exit : {}) };
}

/** To the next daemon: what was read is in the spool, and known to be. One with plain pipes cannot be left. */
export function leaveChild({ ends }: Shared, child: Child): void {
  for (const children of [ends.waiting, ends.finishing]) children.delete(child); // the next one sees its end, too: its holder was not told
  for (const timer of [child.burst.timer, child.exitTimer, child.settleTimer]) clearTimeout(timer);
  child.running?.leave?.();
  const { mark, spool, running, outputBytes } = child;
  if (mark && running) writeMark(spool.directory!, Object.assign(mark, { leftAt: Date.now(), outputBytes }));
  restSpool(child.spool);
  child.stdin.state = "broken"; // what a request that is being read brings yet is not taken, nor noted
  child.mark = undefined;
}
