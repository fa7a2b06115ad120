/**
 * Who a process is, what a daemon tells of itself, and who may do something now: identities, the record, the log, and claims; all of them files that
 * only their owner can have written.
 *
 *     rpc.sock.record     the record: who the daemon is, where it lives, and in the end why it ended
 *     rpc.sock.claim      there while a start is under way
 *
 * Identity is pid, start time, boot and pid namespace: with it a process cannot be mistaken for another that has its pid. A host is its boot,
 * whatever its name: that may be given to it while a daemon runs. Across boots it is its machine and its name.
 */

import { randomBytes } from "node:crypto";
import type { Stats } from "node:fs";
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { hostname } from "node:os";
import { cannot, cleanText, elsewhere, errnoOf, exitCodes, type Failure, osFailure, safely } from "./failure.ts";

/** A claim is touched so often by who holds it, and abandoned when it has not been for so long. */
const beatMs = 200;
const abandonedMs = 1000;

/** A record is about 2 KiB, and 64 token hashes more. Anything larger is not ours. */
const maxRecordBytes = 1 << 20;

/** At this size the log is renamed to "<log>.1", in the place of the one before, and begun anew. */
const maxLogBytes = 4 << 20;
/** A line of it is cut here: a peer may choose what stands in it. */
const maxLineLength = 1000;

/** Which process this is, so that it cannot be mistaken for another with the same pid. */
export interface Identity {
  pid: number;
  /** Field 22 of /proc/<pid>/stat, in clock ticks since boot (proc(5)). "" where there is no /proc. */
  startTime: string;
  /** /proc/sys/kernel/random/boot_id. */
  bootId: string;
  /** The target of /proc/self/ns/pid: "pid:[4026531836]". */
  pidNamespace: string;
  /** The name that the host had. */
  host: string;
  /** /etc/machine-id; absent where there is none, as in most containers. */
  machineId?: string;
}

/** What a daemon tells of itself to those who come later. Its file is 0600; whoever can read it is trusted as its owner. */
export interface DaemonRecord extends Identity {
  version: string;
  /** 32 hex digits, new for each daemon. */
  instance: string;
  /** Proves that its bearer could read this record: admits tokens, asks for status, stops the daemon. */
  key: string;
  /** SHA-256 of each token accepted, oldest first, in hex. */
  tokenHashes: string[];
  /** The socket: its public path, the name it was bound under, and the inode of both. */
  socket: { path: string; bound: string; dev: number; ino: number };
  log: string;
  /** As it was given by --spool; undefined for the default. */
  spoolBytes?: number | undefined;
  /** As --no-agent was given. */
  noAgent?: boolean | undefined;
  /** A supervisor runs it (--lifetime foreground); or is to, and it stands in until that comes. */
  supervisor?: "runs" | "awaited" | undefined;
  /** Unix time in ms. */
  startedAt: number;
  /** What starts such a daemon again: runtime, its flags, and the script. */
  command: string[];
  /** Where it lives and whether that survives logout: see lifetime.ts. */
  lifetime: unknown;
  /** How often the kernel had killed a process for want of memory, when the daemon looked last: see reach.ts. */
  oomKills?: number | undefined;
  /** When, in the minute before it was started, such a daemon had died and was brought back by itself: unix ms. See launch.ts. */
  returns?: number[] | undefined;
  /** Set while it is stopping with processes alive: the time, in unix ms, at which they will be ended. */
  stoppingAt?: number;
  /** Set as it ends. */
  ended?: { at: number; reason: EndReason; detail: string };
}

export type EndReason =
  | "stopped"
  | "replaced"
  | "terminated"
  | "crashed"
  | "killed-at-logout"
  | "idle-stop"
  | "unit-stopped"
  | "user-manager-stopped"
  | "user-manager-ended"
  | "host-shutdown";

/** Reads what the kernel tells of a process. Handed in, so that tests can be other hosts. */
export interface Proc {
  read(path: string): string;
  link(path: string): string;
  host: string;
}

const realProc: Proc = {
  read: (path) => readFileSync(path, "latin1"),
  link: (path) => readlinkSync(path),
  get host() {
    return hostname();
  },
};

/** Describes a process so that it can be recognised later. */
export function identify(pid: number = process.pid, proc: Proc = realProc): Identity {
  const isOwn = pid === process.pid && proc === realProc;
  const identity = (isOwn && own) || {
    pid,
    startTime: safely(() => startTimeOf(proc, pid)) || "",
    bootId: safely(() => proc.read("/proc/sys/kernel/random/boot_id").trim()) || "",
    pidNamespace: safely(() => proc.link("/proc/self/ns/pid")) || "",
    ...machineOf(proc),
  };
  if (isOwn && identity.startTime && identity.bootId) own = identity; // not what could not be read for once
  return { ...identity, host: proc.host };
}

/** An empty one, or "uninitialized", is of a machine that is just being installed. */
function machineOf(proc: Proc): { machineId?: string } {
  const id = safely(() => proc.read("/etc/machine-id").trim()) || "";
  return /^[0-9a-f]{32}$/.test(id) ? { machineId: id } : {};
}

/** Tells whether a process described earlier was on another host than this. */
export function isOtherHost(identity: Identity, proc: Proc = realProc): boolean {
  const here = identify(process.pid, proc);
  if (identity.bootId !== "" && identity.bootId === here.bootId) return false;
  // copies of one image may have one number: of two names, that is no proof
  const isOtherMachine = Boolean(identity.machineId && here.machineId) && identity.machineId !== here.machineId;
  return isOtherMachine || identity.host !== here.host;
}

/** Of this process: asked for a dozen times on the way to a start. */
let own: Omit<Identity, "host"> | undefined;

/** What is known of a process: alive and the same, provably gone, or not to be told from here; and by what. */
export interface Liveness {
  state: "alive" | "dead" | "unknown";
  why: string;
  /** It is on its way out of the kernel: nothing of it runs any more, but what it has open may be so for some ms. */
  isEnding?: boolean;
  /** Somebody has its pid, and there is no /proc that tells who. */
  isPidTaken?: boolean;
}

/** PF_EXITING and PF_DUMPCORE, in field 9 of /proc/<pid>/stat: from there no process comes back (include/linux/sched.h). */
const endingFlags = 0x4 | 0x200;

/**
 * Tells whether a process described earlier still lives. Only "alive" allows a signal, only "dead" allows to clear up after it.
 *
 * Of a daemon's record more is asked: that the process runs --serve. So a record that came to name somebody else, start time and all, harms nobody.
 */
export function livenessOf(identity: Identity | DaemonRecord, proc: Proc = realProc): Liveness {
  const here = identify(process.pid, proc);
  if (isOtherHost(identity, proc))
    return { state: "unknown", why: `it runs on host "${identity.host}", this is "${here.host}"` };
  const isBootKnown = identity.bootId !== "" && here.bootId !== "";
  if (isBootKnown && identity.bootId !== here.bootId) return dead("the host has been booted again since");
  if (identity.pidNamespace !== here.pidNamespace) {
    const isOther = identity.pidNamespace !== "" && here.pidNamespace !== "";
    const why = isOther
      ? "it runs in another pid namespace (a container)"
      : "without /proc nothing tells which pid namespace it is of";
    return { state: "unknown", why };
  }
  if (!isBootKnown) return livenessByPid(identity.pid);
  try {
    return livenessByStat(identity, proc);
  } catch (error) {
    return errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH"
      ? dead(`process ${identity.pid} is gone`)
      : { state: "unknown", why: `/proc/${identity.pid} cannot be read` };
  }
}

/** Where there is no /proc (macOS, FreeBSD): that nobody has the pid is all that can be known. */
function livenessByPid(pid: number): Liveness {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (errnoOf(error) === "ESRCH") return dead(`process ${pid} is gone`); // EPERM: another user's
  }
  const why = `there is a process ${pid}, and without /proc nothing tells whether it is the same`;
  return { state: "unknown", why, isPidTaken: true };
}

function livenessByStat(identity: Identity | DaemonRecord, proc: Proc): Liveness {
  const { pid, startTime } = identity;
  const fields = fieldsOf(proc.read(`/proc/${pid}/stat`));
  const isEnding = hasLeft(fields) ? Number(fields[17]) > 1 : (Number(fields[6]) & endingFlags) !== 0;
  if (hasLeft(fields) && !isEnding) return dead(`process ${pid} is gone`);
  const words = "command" in identity ? argumentsOf(pid, proc) : []; // one that is just ending has none, and may still listen
  const isOther = words.length > 0 && !words.some((word) => /^--?serve$/.test(word));
  if (isOther || fields[19] !== startTime) return dead(`pid ${pid} belongs to another process now`);
  if (isEnding) return { ...dead(`process ${pid} is just ending`), isEnding };
  return { state: "alive", why: `process ${pid} runs` };
}

const dead = (why: string): Liveness => ({ state: "dead", why });

/** What a process was started with; nothing for a zombie. */
export function argumentsOf(pid: number, proc: Proc = realProc): string[] {
  return proc.read(`/proc/${pid}/cmdline`).split("\0").slice(0, -1);
}

/** Field 22 of /proc/<pid>/stat; undefined for a zombie. */
function startTimeOf(proc: Proc, pid: number): string | undefined {
  const fields = fieldsOf(proc.read(`/proc/${pid}/stat`));
  return hasLeft(fields) ? undefined : fields[19];
}

/** What /proc/<pid>/stat says from field 3 on; nothing where there is no such process. */
export function statOf(pid: number): string[] {
  return fieldsOf(readText(`/proc/${pid}/stat`) || "");
}

/** The command in field 2 may hold spaces and parentheses: proc(5). */
function fieldsOf(stat: string): string[] {
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

/** A zombie, or there is none; field 20 says whether other threads of it have yet to end, which have its files open until then. */
export function hasLeft(fields: string[]): boolean {
  return /^[ZX]?$/.test(fields[0]!);
}

export interface LivingProcess {
  pid: number;
  parent: number;
  group: number;
  session: number;
  startTime: string;
}

/** All processes that can be seen; zombies have ended, also those that nobody reaps. None where there is no /proc. */
export function livingProcesses(names = namesIn("/proc")): LivingProcess[] {
  return names.flatMap((name) => {
    const fields = /^\d/.test(name) ? statOf(Number(name)) : [""];
    if (hasLeft(fields)) return [];
    const [parent, group, session] = fields.slice(1, 4).map(Number) as [number, number, number];
    return { pid: Number(name), parent, group, session, startTime: fields[19]! };
  });
}

/** A record as it was found; or what there is in its place, and why that is none; or nothing at all. */
export interface FoundRecord {
  record?: DaemonRecord;
  problem?: Failure;
}

/** Reads the record of a socket. Never throws; what is wrong with it is told in words. */
export function readRecord(path: string): FoundRecord {
  const doing = `read the record "${path}"`;
  try {
    const text = readOwnFile(path, maxRecordBytes);
    if (text === "") return {}; // the power was lost before it reached the disk
    const value = safely((): unknown => JSON.parse(text));
    if (isRecord(value)) return { record: value };
    return {
      problem: cannot(
        `${doing}: ${value === undefined ? `it holds ${text.length} bytes that are not JSON` : "its JSON is not a holdfast record"}`,
      ),
    };
  } catch (error) {
    return errnoOf(error) === "ENOENT" ? {} : { problem: osFailure(doing, error) };
  }
}

function isRecord(value: unknown): value is DaemonRecord {
  const record = Object(value) as DaemonRecord;
  const socket = Object(record.socket) as DaemonRecord["socket"];
  const { startTime, bootId, pidNamespace, host, version, instance, key, log, tokenHashes, command, pid } = record;
  const { startedAt, stoppingAt = 0, ended = { at: 0, detail: "" } } = record;
  if (!Array.isArray(tokenHashes) || !Array.isArray(command)) return false;
  const { at, detail } = Object(ended);
  const texts = [startTime, bootId, pidNamespace, host, version, instance, key, log, detail, socket.path, socket.bound];
  return (
    tokenHashes.every((hash) => /^[0-9a-f]{64}$/.test(hash)) &&
    [...texts, ...command].every((text) => typeof text === "string") &&
    [startedAt, stoppingAt, at].every((time) => typeof time === "number" && Math.abs(time) <= 8.64e15) && // what Date can take, and say
    typeof socket.ino === "number" &&
    Number.isSafeInteger(pid) &&
    pid > 0
  );
}

/** Writes the record, whole or not at all: to a file of its own, then renamed. */
export function writeRecord(path: string, record: DaemonRecord): void {
  writeOwnFile(path, `${JSON.stringify(record, undefined, 1)}\n`);
}

/**
 * Writes the record of a daemon that has one already, also on a full disk: then over itself. What has ended must be known to have: where even that
 * cannot be written, there is no record rather than one that says that it runs.
 */
export function rewriteRecord(path: string, record: DaemonRecord): void {
  try {
    writeRecord(path, record);
  } catch (error) {
    if (!/^(ENOSPC|EDQUOT)$/.test(String((error as Failure).data.errno))) throw error;
    try {
      overwrite(path, `${JSON.stringify(record)}\n`); // without the white space, for what is added to have its place
    } catch (problem) {
      if (record.ended) unlinkSync(path);
      throw osFailure(`write "${path}"`, problem);
    }
  }
}

/** In its own blocks, where it has some: spaces stand for what was longer. */
function overwrite(path: string, text: string): void {
  const descriptor = openOwnFile(path, constants.O_WRONLY);
  try {
    writeFileSync(descriptor, text.padEnd(fstatSync(descriptor).size));
  } finally {
    closeSync(descriptor);
  }
}

/** Writes a file of ours, 0600, by rename; nothing planted under its name is followed or kept. */
export function writeOwnFile(path: string, data: string | Uint8Array): void {
  const temporary = `${path}.${randomName(8)}`;
  try {
    createFile(temporary, data, true);
    renameSync(temporary, path);
  } catch (error) {
    safely(() => unlinkSync(temporary));
    throw osFailure(`write "${path}"`, error, { exit: exitCodes.cannotCreate });
  }
}

/** @param isSynced It is on the disk before it gets its name: else a loss of power may leave an empty file there. */
function createFile(path: string, data: string | Uint8Array, isSynced = false): void {
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
  const descriptor = openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  try {
    writeFileSync(descriptor, data); // all of it: one write(2) on a full disk may take a part, without an error
    if (isSynced) fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/**
 * Reads a file that must be ours, of at most `maxBytes`.
 *
 * @throws {Failure} It is another's or unsafe (exit code 77), or too large.
 * @throws {Error} The operating system's own, when it cannot be opened.
 */
export function readOwnFile(path: string, maxBytes: number): string {
  const descriptor = openOwnFile(path, constants.O_RDONLY);
  try {
    const { size } = fstatSync(descriptor);
    if (size > maxBytes) throw cannot(`read "${path}": it has ${size} bytes, at most ${maxBytes} are read`);
    return readFileSync(descriptor, "utf8");
  } finally {
    closeSync(descriptor);
  }
}

/** Opens a file that must be ours: regular, of our user, not writable by others; never through a symbolic link. A FIFO planted there hangs nobody. */
function openOwnFile(path: string, flags: number): number {
  const refuse = (found: string): never => {
    throw cannot(`use "${path}": ${found}`, {
      exit: exitCodes.noPermission,
      hint: `remove it, or ${elsewhere} or --log`,
    });
  };
  let descriptor: number;
  try {
    descriptor = openSync(path, flags | constants.O_NOFOLLOW | constants.O_NONBLOCK, 0o600);
  } catch (error) {
    if (errnoOf(error) !== "ELOOP" && errnoOf(error) !== "ENXIO") throw error;
    return refuse(
      `it is ${errnoOf(error) === "ELOOP" ? "a symbolic link" : "a FIFO or a socket"}, a regular file is needed`,
    );
  }
  try {
    const stats = fstatSync(descriptor);
    const uid = process.getuid!();
    if (!stats.isFile()) refuse(`it is ${kindOf(stats)}, a regular file is needed`);
    if (stats.uid !== uid) refuse(`it belongs to user ${stats.uid}, it must belong to user ${uid}`);
    if ((stats.mode & 0o022) !== 0)
      refuse(`its mode is ${(stats.mode & 0o777).toString(8)}, others must not be able to write to it`);
    return descriptor;
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}

/** Opens the log for appending, 0600. */
export function openLog(path: string): number {
  try {
    return openOwnFile(path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT);
  } catch (error) {
    throw osFailure(`open the log "${path}"`, error, {
      exit: exitCodes.cannotCreate,
      hint: "choose another file with --log",
    });
  }
}

/** Writes a line: never payloads, tokens or stdin. It never throws. */
export type Log = (line: string) => void;

/**
 * Opens the daemon's log, a line per event with its time. It is begun anew when its name was deleted, or came to lead elsewhere.
 *
 * @throws {Failure} It cannot be opened, or is not ours (exit codes 73, 77).
 */
export function createLog(path: string): Log {
  let descriptor = openLog(path);
  return (line) => {
    const text = `${new Date().toISOString()} ${cleanText(line, maxLineLength)}\n`;
    safely(() => {
      if (isOpenAt(path, descriptor)) {
        if (fstatSync(descriptor).size <= maxLogBytes) return;
        renameSync(path, `${path}.1`);
      }
      const next = openLog(path); // where none can be, the old one is written on
      closeSync(descriptor);
      descriptor = next;
    });
    safely(() => writeSync(descriptor, text));
  };
}

function isOpenAt(path: string, descriptor: number): boolean {
  const [named, open] = [safely(() => lstatSync(path)), fstatSync(descriptor)];
  return named !== undefined && named.ino === open.ino && named.dev === open.dev;
}

export function kindOf(stats: Stats): string {
  if (stats.isFile()) return "a regular file";
  if (stats.isDirectory()) return "a directory";
  if (stats.isSymbolicLink()) return "a symbolic link";
  if (stats.isFIFO()) return "a FIFO";
  return stats.isSocket() ? "a socket" : "a device";
}

/** The right to do one thing at a time, held by a file. */
export interface Claim {
  release(): void;
}

/** Whoever holds a claim at the moment; undefined when the file cannot be read as one. */
export interface Held {
  heldBy: Identity | undefined;
}

/**
 * Claims the right to start a daemon, or to publish: atomic by link(2), also on NFS; never blocks.
 *
 * The claim of a dead process is taken over. It may be removed only by the one who holds the claim to remove that very claim
 * (its file is named after the dead one's id): otherwise, of two who saw the same dead claim, the slower would remove the quicker's
 * new one.
 */
export function tryClaim(path: string): Claim | Held {
  for (let attempt = 0; attempt < 5; attempt++) {
    const holder = readClaim(path);
    if (holder === "absent") {
      const claim = linkClaim(path);
      if (claim) return claim;
      continue;
    }
    if (!holder) return { heldBy: undefined };
    if (holder !== "empty" && !isAbandoned(path, holder)) return { heldBy: holder };
    const id = holder === "empty" ? holder : holder.id;
    const removal = tryClaim(`${path}-${id}`);
    if (!("release" in removal)) return removal;
    removeClaim(path, id);
    removal.release();
  }
  return { heldBy: undefined };
}

/**
 * Tells whether a claim is nobody's any more: of a process that is dead; of one that cannot be seen from here, in a pid namespace of this boot (a
 * container, which may be gone), when it has not touched its claim for a while.
 */
function isAbandoned(path: string, holder: ClaimHolder): boolean {
  if (livenessOf(holder).state !== "unknown" || holder.bootId !== identify().bootId || holder.bootId === "")
    return livenessOf(holder).state === "dead";
  const touched = safely(() => lstatSync(path).mtimeMs);
  return touched !== undefined && Math.abs(Date.now() - touched) > abandonedMs;
}

/** @returns Undefined when another was quicker. */
function linkClaim(path: string): Claim | undefined {
  const id = randomName(12);
  const temporary = `${path}.${id}`;
  try {
    createFile(temporary, JSON.stringify({ id, ...identify() })); // whole before it has its name
    linkSync(temporary, path);
    const beat = setInterval(() => safely(() => utimesSync(path, new Date(), new Date())), beatMs).unref();
    return {
      release() {
        clearInterval(beat);
        removeClaim(path, id);
      },
    };
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return undefined;
    throw osFailure(`claim "${path}"`, error, { exit: exitCodes.cannotCreate, hint: elsewhere });
  } finally {
    safely(() => unlinkSync(temporary));
  }
}

/** Claims, waiting at most `waitMs` for another holder; undefined when that was not enough. For the short claims of publication. */
export async function claimSoon(path: string, waitMs: number): Promise<Claim | undefined> {
  for (const deadline = now() + waitMs; ; await sleep(5)) {
    const claim = tryClaim(path);
    if ("release" in claim) return claim;
    if (now() > deadline) return undefined;
  }
}

/** `id` names the claim itself. */
type ClaimHolder = Identity & { id: string };

/** @returns "empty" for a file whose bytes were lost with the power: no claim ever is. */
export function readClaim(path: string): ClaimHolder | "absent" | "empty" | undefined {
  try {
    const text = readOwnFile(path, 4096);
    if (text === "") return "empty";
    const value = JSON.parse(text);
    return value && typeof value.id === "string" && typeof value.pid === "number" && typeof value.host === "string"
      ? value
      : undefined;
  } catch (error) {
    return errnoOf(error) === "ENOENT" ? "absent" : undefined;
  }
}

function removeClaim(path: string, id: string): void {
  const holder = readClaim(path);
  if (holder === "empty" ? id === holder : typeof holder === "object" && holder.id === id)
    safely(() => unlinkSync(path));
}

/** So many letters and digits that nobody else will draw; that somebody might is no harm: O_EXCL, link(2) and bind(2) tell. */
export function randomName(length: number): string {
  return BigInt(`0x${randomBytes(length).toString("hex")}`)
    .toString(36)
    .slice(-length)
    .padStart(length, "0");
}

/** A file's text; undefined when it cannot be read. */
export function readText(path: string): string | undefined {
  return safely(() => readFileSync(path, "utf8"));
}

/** The names in a directory; none when it cannot be read. */
export function namesIn(directory: string): string[] {
  return safely(() => readdirSync(directory)) || [];
}

/** Milliseconds of a clock that nobody sets. Of the two that there are, the one that node needs not load a module for. */
export function now(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}

/** What a promise comes to; undefined when it has not within `ms`. */
export function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((done) => (timer = setTimeout(done, ms, undefined)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Looks, once at least, until it is so. Returns whether it came to be, within `ms`. */
export async function soon(isSo: () => unknown, ms: number, stepMs = 20): Promise<boolean> {
  for (const deadline = now() + ms; !(await isSo()); await sleep(stepMs)) if (now() > deadline) return false;
  return true;
}
