/**
 * A running child, whatever carries its bytes: plain pipes, which end with the daemon, or what a holder keeps (holders.ts), which outlives it.
 *
 * What a child says and is told is left to children.ts, where it is kept to spool.ts.
 */

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import {
  closeSync,
  constants,
  fstatSync,
  futimesSync,
  openSync,
  readFileSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import type { ConnectOpts, OnReadOpts, SocketConstructorOpts } from "node:net";
import { Socket } from "node:net";
import { constants as osConstants } from "node:os";
import { join } from "node:path";
import { capture, errnoError, errnoOf, safely } from "./failure.ts";
import type { StdioItem } from "./program.ts";
import { maskInherited, runtime } from "./program.ts";
import type { LivingProcess } from "./record.ts";
import { hasLeft, livingProcesses, namesIn, now, readText, statOf } from "./record.ts";

/** At most so much is in node's hands for a stdin that is a pipe. */
const pipeWriteBytes = 64 << 10;
/** What the pipes' ends do not tell (a grandchild holds them, or the child has closed them) is seen by looking: so many children, so often. */
const lookMs = 250;
const looksAtOnce = 64;
/** A stdin that is full is tried again after at most so long: of a FIFO node can tell that there is room only by writing to it. */
const maxWriteWaitMs = 32;
/** Read at once: what a pipe holds. */
const intakeBytes = 64 << 10;
/** The engine of a terminal takes what its command does not read, without an end: after each 64 KiB its memory is looked at, as long as it has more it is given no more. */
const typedBytes = 64 << 10;
const engineBytes = 32 << 20;
/** The kernel's OOM killer takes a child before the daemon: oom_score_adj, 1000 at most (proc(5)). */
const oomScore = 200;
/** Of all processes so many are looked at between two turns of others, some 5 ms. */
const lookStep = 256;
/** What was seen so short a time ago is so: no pid is another's by then. */
const freshMs = 20;
/** What a holder's directory has beside files. */
export const fifoNames = ["out", "err", "start"];
/** In seconds, the times of a pipe that is armed: of reading; and of writing, as far ahead as every file system can have it. */
export const unread = 0;
const neverWritten = 2 ** 31 - 1;

/** What is to be started. It leads a session and group of its own. */
export interface Start {
  command: string;
  args: string[];
  cwd: string;
  /** All of its environment. */
  env: NodeJS.ProcessEnv;
  /** Its stdin is at its end from the beginning. */
  hasNoStdin: boolean;
  umask?: number | undefined;
  /** `command` is an engine that makes a terminal, whose leader says so (pty.ts). */
  hasTerminal?: boolean;
  /** It may take so long to say that it has started: a trial. */
  startMs?: number;
}

/** How a process ended: one of the two is null. */
export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Why neither is known: "the host was booted again". */
  unknown?: string;
}

/** What is told of a running child, never before `listen` returns. */
export interface RunningEvents {
  /** Comes only while it flows, or what was read before. The chunk is good until it returns. */
  output(stream: "stdout" | "stderr", chunk: Buffer): void;
  /** write() took less than it was given: now it may take more. */
  writable(): void;
  /** Nobody reads stdin any more. */
  stdinBroken(): void;
  /** The process itself has ended, once. Its pipes may be open: there may be output yet, of a grandchild too. */
  ended(how: Ended): void;
  /** stdout and stderr are at their ends, once; after `ended` or before it. */
  closed(): void;
}

export interface Running {
  /** The command's own; also the number of its group, to which signals go. */
  readonly pid: number;
  /** What a later daemon needs to take it up, as JSON: kept in `about`. Undefined for one that ends with this daemon's pipes. */
  readonly holder?: object | undefined;
  /** Begins to read and to tell. Called once, before all that follows. */
  listen(events: RunningEvents): void;
  /** Reads on, or leaves what comes in the pipes: then whoever writes stands still. It flows at first. Cheap to call with what is so already. */
  setFlow(flows: boolean): void;
  /**
   * Gives stdin what it takes at once.
   *
   * @returns How many bytes; with fewer than there were, `writable` follows. Of a FIFO they are the reader's, whatever happens to the daemon.
   * @throws EPIPE Nobody reads it.
   */
  write(bytes: Uint8Array): number;
  /** Of what write() took, what the kernel does not have yet. 0 for a FIFO. */
  readonly pendingBytes: number;
  /** Ends stdin after what was written. */
  endStdin(): void;
  /** How it ended is kept: the zombie may go. After `ended`. */
  reap(): void;
  /** All that was read so far is safe: the next daemon is to see whether more was. */
  arm?(): void;
  /** Lets go of all that is left: pipes, FIFOs, holder. Nothing is told after it. */
  release(): void;
  /** Stops reading, tells what was read before, and leaves all to the next daemon; undefined where that is not possible. */
  leave?(): void;
}

/** A process that cannot be mistaken for another with its pid. */
export interface Known {
  pid: number;
  /** Field 22 of /proc/<pid>/stat. */
  startTime: string;
}

/** What stands in `about` of a child, so that a later daemon can take it up. */
export interface HolderRecord {
  bootId: string;
  pidNamespace: string;
  child: Known;
  holder: Known;
  keeper: Known;
  /** Of the FIFO `out`: what the holder has as descriptor 3. */
  out: { dev: number; ino: number };
  /** Whether the time of reading (atime) of its FIFOs moves when they are read. */
  notesReads?: boolean;
  /** Where `child` is the engine of a terminal. */
  terminal?: HeldTerminal;
}

export interface HeldTerminal {
  /** The command itself, which leads the session of the terminal. */
  leader: Known;
  /** "/dev/pts/3". */
  tty: string;
}

/** Held children whose ends are looked for, by one timer for all, and those whose holders are on their way out. */
export interface Watch {
  readonly watched: Set<Held>;
  readonly leaving: Set<Held>;
  timer: NodeJS.Timeout | undefined;
  /** What all of them are read into: whoever is told of a chunk has done with it before the next read. */
  readonly intake: Buffer;
}

/** One held child. */
interface Held {
  readonly watch: Watch;
  readonly directory: string;
  readonly record: HolderRecord;
  /** Our ends of stdout and stderr, until they are read; undefined where they could not be opened when it was taken up. */
  readonly pipes: (number | undefined)[];
  /** What reads them, from listen() on: node reads as soon as there is a socket. */
  sockets: (Socket | undefined)[];
  /** Our end of its stdin; undefined when it was ended, or nobody reads it. */
  stdin: number | undefined;
  events: RunningEvents | undefined;
  /** Of stdout and stderr. */
  openPipes: number;
  hasEnded: boolean;
  /** The holder was continued, to say what we may not read. */
  isTold: boolean;
  /** Given to the engine of a terminal since its memory was looked at. */
  typed: number;
  /** Until the next attempt to write, or the next look, after a fruitless one. */
  writeWaitMs: number;
  lookWaitMs: number;
  /** One for all writes that took less than they were given. */
  writeTimer: NodeJS.Timeout | undefined;
}

/**
 * Starts a child with plain pipes. Descriptors other than 0 to 2 are not inherited: node opens its own with O_CLOEXEC.
 *
 * @throws The operating system's error: there is no such command, or no such working directory.
 */
export function startWithPipes({ command, args, cwd, env, hasNoStdin, umask }: Start): Promise<Running> {
  return new Promise((resolve, reject) => {
    const own = umask === undefined ? undefined : process.umask(umask); // of this process: for as long as node forks
    const stdio: StdioItem[] = [hasNoStdin ? "ignore" : "pipe", "pipe", "pipe"];
    const nothing = runtime === "deno" ? maskInherited(stdio, 2) : [];
    let handle: ChildProcess;
    try {
      handle = spawn(command, args, { cwd, env, detached: true, stdio });
    } finally {
      for (const descriptor of nothing) closeSync(descriptor);
      if (own !== undefined) process.umask(own);
    }
    handle.on("error", reject); // at once or thrown, as it pleases node; later ones say nothing that "exit" does not
    if (handle.pid) resolve(runningOf(handle));
  });
}

function runningOf(handle: ChildProcess): Running {
  const { stdin, stdout, stderr } = handle;
  const pipes = [stdout!, stderr!];
  let whenTaken = (): void => {};
  return {
    pid: handle.pid!,
    listen(events) {
      pipes.forEach((pipe, at) => {
        const stream = at === 0 ? "stdout" : "stderr";
        pipe.on("data", (chunk: Buffer) => events.output(stream, chunk)).on("error", () => {}); // "close" follows
      });
      stdin?.on("error", events.stdinBroken).on("close", events.stdinBroken);
      whenTaken = events.writable;
      handle.on("exit", (code, signal) => events.ended({ code, signal })).on("close", events.closed);
    },
    setFlow: (flows) => {
      for (const pipe of pipes) flows ? pipe.resume() : pipe.pause();
    },
    get pendingBytes() {
      return stdin?.writableLength ?? 0;
    },
    write(bytes) {
      if (!stdin || stdin.writableLength > 0) return 0;
      const chunk = bytes.subarray(0, pipeWriteBytes);
      stdin.write(chunk, () => process.nextTick(whenTaken)); // Bun calls back within the write
      return chunk.length;
    },
    endStdin: () => void stdin?.end(),
    reap() {}, // node has
    release() {
      for (const pipe of [stdin, ...pipes]) pipe?.destroy();
      handle.removeAllListeners();
    },
  };
}

/** What is seen of a child that is a trial. */
export interface Seen {
  /** On both, a character a byte. */
  said: string;
  how: Ended | undefined;
  isClosed: boolean;
}

export function watchTrial(running: Running, hear: () => void = () => {}, writable: () => void = () => {}): Seen {
  const seen: Seen = { said: "", how: undefined, isClosed: false };
  running.listen({
    output(_, chunk) {
      seen.said += chunk.toString("latin1");
      hear();
    },
    writable,
    stdinBroken() {},
    ended(how) {
      seen.how = how;
    },
    closed() {
      seen.isClosed = true;
    },
  });
  return seen;
}

// Held children

export function createWatch(): Watch {
  return { watched: new Set(), leaving: new Set(), timer: undefined, intake: Buffer.allocUnsafeSlow(intakeBytes) };
}

/** @param onread Takes what comes in the place of "data" events: nothing is read while the socket is paused. */
export function socketOf(descriptor: number, onread?: OnReadOpts): Socket {
  const options: SocketConstructorOpts & ConnectOpts = { fd: descriptor, readable: true, writable: false };
  return new Socket(onread ? { ...options, onread } : options);
}

/** Opens a FIFO, or a pipe through /proc: never waits for who is at its other end. */
export function openFifo(path: string, flags: number): number {
  const descriptor = openSync(path, flags | constants.O_NONBLOCK);
  if (fstatSync(descriptor).isFIFO()) return descriptor;
  closeSync(descriptor);
  throw new Error(`"${path}" is not a FIFO`);
}

/**
 * Lets a holder end: it reaps its child, which has ended, and itself is reaped by whoever is its parent.
 *
 * One that has said how its child ended has reaped it, and may be just about to stop again: a SIGCONT would come too early, and it would stand for
 * ever. One that has not will look for the FIFOs before it stops, and they are gone by now.
 */
export function dismissHolder(directory: string, holder: Known, keeper: Known | undefined): void {
  for (const name of fifoNames) safely(() => unlinkSync(join(directory, name)));
  if (keeper && stateOf(keeper)) safely(() => process.kill(keeper.pid, "SIGKILL"));
  if (stateOf(holder)) safely(() => process.kill(holder.pid, saidEnd(directory) ? "SIGKILL" : "SIGCONT"));
}

/** @param stdin Our end of it. @param pipes Our ends of stdout and stderr, as far as there are any. */
export function runningHeld(
  watch: Watch,
  directory: string,
  record: HolderRecord,
  pipes: (number | undefined)[],
  stdin: number | undefined,
): Running {
  const isTold = saidEnd(directory) !== undefined;
  const openPipes = pipes.filter((pipe) => pipe !== undefined).length;
  const held: Held = {
    ...{ watch, directory, record, pipes, sockets: [], stdin, events: undefined, openPipes, hasEnded: false, isTold },
    ...{ typed: 0, writeWaitMs: 0, lookWaitMs: 0, writeTimer: undefined },
  };
  return {
    pid: (record.terminal?.leader ?? record.child).pid,
    holder: held.record,
    pendingBytes: 0,
    listen: (events) => listenTo(held, events),
    setFlow: (flows) => {
      for (const socket of held.sockets) flows ? socket?.resume() : socket?.pause();
    },
    write: (bytes) => writeStdin(held, bytes),
    endStdin: () => endStdin(held),
    reap() {}, // until release() its pid is to be nobody else's
    arm: () => arm(held),
    release: () => release(held),
    leave: () => letGo(held),
  };
}

function listenTo(held: Held, events: RunningEvents): void {
  held.events = events;
  const onClose = () => {
    if (--held.openPipes > 0) return;
    held.events?.closed();
    hurry(held);
  };
  held.sockets = held.pipes.map((descriptor, at) => {
    if (descriptor === undefined) return undefined;
    const stream = at === 0 ? "stdout" : "stderr";
    const callback = (length: number) => {
      held.events?.output(stream, held.watch.intake.subarray(0, length));
      return true;
    };
    const socket = socketOf(descriptor, { buffer: held.watch.intake, callback });
    return socket.on("error", () => {}).on("close", onClose); // which follows an error
  });
  if (held.openPipes === 0) setImmediate(onClose);
  held.watch.watched.add(held);
  startWatch(held.watch);
}

/**
 * The next read(2) of it is seen, by its time of reading.
 * `relatime`, as most mounts have it, moves that only where the time of writing, or of a change, is not before it. That of writing moves when a whole
 * write(2) is over, which may take minutes; by splice(2) and on an overlay never.
 */
export function armPipe(descriptor: number): void {
  safely(() => futimesSync(descriptor, unread, neverWritten));
}

/** A descriptor is the socket's to close. */
function arm({ pipes, sockets }: Held): void {
  for (const [at, pipe] of pipes.entries()) if (pipe !== undefined && sockets[at]?.destroyed === false) armPipe(pipe);
}

function release(held: Held): void {
  letGo(held);
  const { holder, keeper } = held.record;
  dismissHolder(held.directory, holder, keeper);
  held.watch.leaving.add(held);
  startWatch(held.watch);
}

function letGo(held: Held): void {
  held.watch.watched.delete(held);
  if (!held.events) for (const descriptor of held.pipes) if (descriptor !== undefined) closeSync(descriptor);
  held.events = undefined;
  for (const socket of held.sockets) socket?.destroy();
  if (held.stdin !== undefined) closeSync(held.stdin);
  held.stdin = undefined;
}

function writeStdin(held: Held, bytes: Uint8Array): number {
  let taken = 0;
  try {
    if (held.stdin === undefined) throw errnoError("EPIPE", "broken pipe, write");
    if (!isEngineFull(held)) taken = writeSync(held.stdin, bytes);
    held.typed += taken;
  } catch (error) {
    if (errnoOf(error) !== "EAGAIN") throw error;
  }
  if (taken === bytes.length) return taken;
  held.writeWaitMs = taken > 0 ? 1 : Math.min(held.writeWaitMs * 2 || 1, maxWriteWaitMs);
  held.writeTimer ??= setTimeout(() => {
    held.writeTimer = undefined;
    held.events?.writable();
  }, held.writeWaitMs);
  return taken;
}

function isEngineFull(held: Held): boolean {
  const { terminal, child } = held.record;
  if (!terminal || held.typed < typedBytes) return false;
  const kilobytes = capture(/^VmRSS:\s+(\d+) kB$/m, readText(`/proc/${child.pid}/status`));
  if (Number(kilobytes ?? 0) * 1024 > engineBytes) return true;
  held.typed = 0;
  return false;
}

function endStdin(held: Held): void {
  if (held.stdin !== undefined) closeSync(held.stdin);
  held.stdin = undefined;
  const { keeper } = held.record;
  if (stateOf(keeper)) safely(() => process.kill(keeper.pid, "SIGKILL"));
}

// How they end

/** Of those that were let go of. */
export function haveHoldersLeft({ leaving }: Watch): boolean {
  return [...leaving].every(({ record }) => !stateOf(record.holder));
}

/** One timer for all. */
function startWatch(watch: Watch): void {
  watch.timer ??= setInterval(() => {
    for (const held of [...watch.watched].slice(0, looksAtOnce)) {
      watch.watched.delete(held);
      watch.watched.add(held); // the others first, next time
      look(held);
    }
    for (const held of watch.leaving) {
      // continued before it had stopped itself, it stands still yet
      if (stateOf(held.record.holder)) dismissHolder(held.directory, held.record.holder, held.record.keeper);
      else watch.leaving.delete(held);
    }
    if (watch.watched.size + watch.leaving.size > 0) return;
    clearInterval(watch.timer);
    watch.timer = undefined;
  }, lookMs).unref();
}

/** Both pipes are at their ends: the child has ended, or is about to, if it did not close them itself. */
function hurry(held: Held): void {
  if (held.hasEnded || !held.events || held.lookWaitMs > lookMs) return;
  look(held);
  if (held.hasEnded) return;
  held.lookWaitMs = held.lookWaitMs * 2 || 1;
  setTimeout(hurry, held.lookWaitMs, held);
}

function look(held: Held): void {
  const how = held.hasEnded ? undefined : endOf(held);
  if (!how) return;
  held.hasEnded = true;
  held.watch.watched.delete(held);
  held.events?.ended(how);
}

/** How a child ended; undefined while it lives, or until its holder has said so. */
function endOf(held: Held): Ended | undefined {
  const { child, holder } = held.record;
  const stat = statOf(child.pid);
  const isThere = stat[19] === child.startTime;
  if (isThere && !hasLeft(stat)) return undefined;
  const status = isThere ? Number(stat[49]) : 0;
  if (isThere && (status !== 0 || isReadable(child.pid))) return endOfStatus(status);
  const said = saidEnd(held.directory);
  if (said) return said;
  if (stateOf(holder) === undefined)
    return unknownEnd(held.isTold ? "its directory was removed" : "its holder was killed");
  if (!held.isTold) askHolder(held);
  return undefined;
}

/** What we may not read, or somebody has made it reap, the holder says. */
function askHolder(held: Held): void {
  held.isTold = true;
  endStdin(held); // a shell waits for all of a pipeline
  safely(() => process.kill(held.record.holder.pid, "SIGCONT"));
  held.lookWaitMs = 0;
  setTimeout(hurry, 1, held);
}

/** A wait status, as wait(2) gives it. A signal that has no name is told as a shell does. */
function endOfStatus(status: number): Ended {
  const number = status & 0x7f;
  if (number === 0) return { code: status >> 8, signal: null };
  const found = Object.entries(osConstants.signals).find(([, value]) => value === number);
  return found ? { code: null, signal: found[0] as NodeJS.Signals } : { code: 128 + number, signal: null };
}

/** What the holder has said: for a child that a signal ended, 128 + its number. */
export function saidEnd(directory: string): Ended | undefined {
  const code = capture(/^(\d+)\n$/, readText(join(directory, "code")));
  return code === undefined ? undefined : { code: Number(code), signal: null };
}

export function unknownEnd(unknown: string): Ended {
  return { code: null, signal: null, unknown };
}

/** The kernel shows the status only of processes all of whose ids are ours: of a set-uid program it is 0. */
function isReadable(pid: number): boolean {
  const status = readText(`/proc/${pid}/status`);
  const ids = (name: string) =>
    capture(new RegExp(`^${name}:\\s+(.*)$`, "m"), status)
      ?.split(/\s+/)
      .slice(0, 3);
  const isOurs = (name: string, own: number) => ids(name)?.every((id) => Number(id) === own) === true;
  return isOurs("Uid", process.getuid!()) && isOurs("Gid", process.getgid!());
}

/** Raising it is always allowed. Where it is too late, or there is no such file, nothing is lost. */
export function raiseOomScore(pid: number): void {
  safely(() => {
    const own = Number(readFileSync("/proc/self/oom_score_adj", "utf8"));
    writeFileSync(`/proc/${pid}/oom_score_adj`, String(Math.min(1000, own + oomScore)));
  });
}

export function knownOf(pid: number): Known {
  return { pid, startTime: statOf(pid)[19] ?? "" };
}

/** The state of a process that lives: "T" when it has been stopped. */
export function stateOf({ pid, startTime }: Known): string | undefined {
  const stat = statOf(pid);
  return hasLeft(stat) || stat[19] !== startTime ? undefined : stat[0];
}

/** Finds the living members of a process group, or of a session: "pid start-time". Where there is no /proc (macOS), kill(2) alone tells that there are some. */
export function membersOf(leader: number, of: "group" | "session", living?: LivingProcess[]): string[] {
  if (of === "group" && !hasGroup(leader)) return [];
  living ??= livingProcesses();
  if (living.length === 0) return ["unknown"];
  return living.filter((process) => process[of] === leader).map(({ pid, startTime }) => `${pid} ${startTime}`);
}

/** One system call, where /proc is one for each process of the host. Zombies count. */
export function hasGroup(group: number): boolean {
  try {
    return process.kill(-group, 0);
  } catch (error) {
    return errnoOf(error) !== "ESRCH";
  }
}

/** What was seen of all processes: many that wait for ends share it. */
export interface Look {
  living: LivingProcess[];
  /** When it began, and ended: now(). */
  at: number;
  endedAt: number;
  isUnderWay: boolean;
}

export function createLook(): Look {
  return { living: [], at: 0, endedAt: 0, isUnderWay: false };
}

/** @returns Who lives, by a look that began after `since`; undefined when it is too early for another, or it is under way. */
export function lookSince(look: Look, since: number): LivingProcess[] | undefined {
  if (look.at <= since && !look.isUnderWay && now() >= nextLookAt(look)) void lookInSteps(look);
  return look.at > since ? look.living : undefined;
}

/** Who has come meanwhile, by a parent that has gone meanwhile, is looked at in the end. */
async function lookInSteps(look: Look): Promise<void> {
  const at = now();
  const names = namesIn("/proc");
  const living: LivingProcess[] = [];
  look.isUnderWay = true;
  for (let from = 0; from < names.length; from += lookStep) {
    if (from > 0) await new Promise(setImmediate);
    living.push(...livingProcesses(names.slice(from, from + lookStep)));
  }
  const known = new Set(names);
  living.push(...livingProcesses(namesIn("/proc").filter((name) => !known.has(name))));
  look.isUnderWay = false;
  if (at > look.at) Object.assign(look, { living, at, endedAt: now() });
}

/** For who cannot wait. @param since What must have been seen by it: now(). */
export function lookNow(look: Look, since: number): LivingProcess[] {
  if (look.at > since && now() < look.endedAt + freshMs) return look.living;
  const at = now();
  look.living = livingProcesses();
  Object.assign(look, { at, endedAt: now() });
  return look.living;
}

/** To look takes a fifth of the time at most, where it can wait. */
export function nextLookAt({ at, endedAt }: Look): number {
  return endedAt + 4 * (endedAt - at);
}
