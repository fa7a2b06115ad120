/**
 * The socket's path, its publication and retirement, the claim to start a daemon there, and the record of who did.
 *
 *     rpc.sock            the public name: what clients connect to
 *     .k3j2h9x            the name it was bound under: a second link to the same socket, kept to publish it again
 *     rpc.sock.record     the record: who the daemon is, where it lives, and in the end why it ended
 *     rpc.sock.claim      there while a start is under way
 *     rpc.sock.token      a token of our own making, when none was given
 *     remote-server.log   the log (for a socket of another name: that name and ".log")
 *
 * Where others may write to the socket's directory, all but the two names of the socket are kept in the default state directory.
 */

import { createHash, randomBytes } from "node:crypto";
import {
  chmodSync,
  closeSync,
  constants,
  fstatSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  renameSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import type { Stats } from "node:fs";
import { hostname, userInfo } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import type { Server } from "node:net";
import { cannot, elsewhere, errnoOf, exitCodes, Failure, osFailure } from "./failure.ts";

/** sun_path holds 108 bytes with its closing zero (unix(7)); 104 on macOS. Node listens on a truncated name without an error. */
export const maxPathBytes = process.platform === "darwin" ? 103 : 107;
/** A record is about 2 KiB, and 64 token hashes more. Anything larger is not ours. */
const maxRecordBytes = 1 << 20;

/** Which process this is, so that it cannot be mistaken for another with the same pid. */
export interface Identity {
  pid: number;
  /** Field 22 of /proc/<pid>/stat, in clock ticks since boot (proc(5)). "" where there is no /proc. */
  startTime: string;
  /** /proc/sys/kernel/random/boot_id. */
  bootId: string;
  /** The target of /proc/self/ns/pid: "pid:[4026531836]". */
  pidNamespace: string;
  host: string;
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
  /** Unix time in ms. */
  startedAt: number;
  /** What starts such a daemon again: runtime, its flags, and the script. */
  command: string[];
  /** Where it lives and whether that survives logout: see lifetime.ts. */
  lifetime: unknown;
  /** Set while it is stopping with processes alive: the time, in unix ms, at which they will be ended. */
  stoppingAt?: number;
  /** Set as it ends. */
  ended?: { at: number; reason: EndReason; detail: string };
}

export type EndReason = "stopped" | "replaced" | "killed-at-logout" | "user-manager-stopped" | "terminated" | "crashed";

/** The files of one socket. */
export interface Places {
  socket: string;
  record: string;
  claim: string;
  token: string;
  log: string;
  /** The directory of the four above. */
  directory: string;
}

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

/**
 * Finds the default run directory: by host, for home directories that several hosts share, and not in /run/user/<uid>, which is
 * unmounted at the last logout.
 */
export function defaultDirectory(env: NodeJS.ProcessEnv = process.env): string {
  const state = env.XDG_STATE_HOME;
  const base = state && isAbsolute(state) ? state : join(homeDirectory(env), ".local/state");
  return join(base, "holdfast", hostname());
}

/** HOME, or what the passwd database says where HOME is unset. */
export function homeDirectory(env: NodeJS.ProcessEnv = process.env): string {
  if (env.HOME && isAbsolute(env.HOME)) return env.HOME;
  try {
    return userInfo().homedir;
  } catch (error) {
    throw cannot(
      `find the home directory: HOME is not set, and user ${process.getuid!()} is not in the passwd database`,
      {
        exit: exitCodes.cannotCreate,
        hint: "set HOME, or give the paths with --socket and --log",
        cause: error,
      },
    );
  }
}

/**
 * Names the files that belong to a socket.
 *
 * @throws {Failure} The path is too long for a socket (exit code 73).
 */
export function placesOf(options: { socket?: string | undefined; log?: string | undefined }): Places {
  const socket = options.socket === undefined ? join(defaultDirectory(), "rpc.sock") : resolve(options.socket);
  const length = Buffer.byteLength(socket);
  if (length > maxPathBytes) {
    throw cannot(
      `listen on "${socket}": the path has ${length} bytes, a Unix socket path has at most ${maxPathBytes}`,
      {
        exit: exitCodes.cannotCreate,
        hint: "choose a shorter one with --socket",
      },
    );
  }
  const name = basename(socket);
  const shared = isShared(dirname(socket));
  const directory = shared ? defaultDirectory() : dirname(socket);
  const base = join(
    directory,
    shared ? `${name}-${createHash("sha256").update(socket).digest("hex").slice(0, 12)}` : name,
  );
  return {
    socket,
    directory,
    record: `${base}.record`,
    claim: `${base}.claim`,
    token: `${base}.token`,
    log:
      options.log !== undefined
        ? resolve(options.log)
        : !shared && name === "rpc.sock"
          ? join(directory, "remote-server.log")
          : `${base}.log`,
  };
}

/** Tells whether somebody else may write to a directory: /tmp, or one of a group. */
function isShared(directory: string): boolean {
  const stats = safely(() => statSync(directory)); // where there is none, one will be made, 0700
  return stats !== undefined && ((stats.mode & 0o022) !== 0 || (stats.uid !== process.getuid!() && stats.uid !== 0));
}

/**
 * Makes the run directory, 0700, and those above it that are missing. One that is there is left as it is, but for our own default one.
 *
 * @throws {Failure} It cannot be made, or is no directory (exit code 73).
 */
export function makeRunDirectory(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const stats = statSync(directory);
    if (!stats.isDirectory()) throw new Error(`there is ${kindOf(stats)}, a directory is needed`);
    if (directory === safely(() => defaultDirectory())) chmodSync(directory, 0o700);
  } catch (error) {
    throw osFailure(`make the run directory "${directory}"`, error, {
      exit: exitCodes.cannotCreate,
      hint: `${elsewhere}, in a directory that you may write to`,
    });
  }
}

/** Describes a process so that it can be recognised later. */
export function identify(pid: number = process.pid, proc: Proc = realProc): Identity {
  const isOwn = pid === process.pid && proc === realProc;
  const identity = (isOwn && own) || {
    pid,
    startTime: safely(() => startTimeOf(proc, pid)) || "",
    bootId: safely(() => proc.read("/proc/sys/kernel/random/boot_id").trim()) || "",
    pidNamespace: safely(() => proc.link("/proc/self/ns/pid")) || "",
  };
  if (isOwn && identity.startTime && identity.bootId) own = identity; // not what could not be read for once
  return { ...identity, host: proc.host };
}

/** Of this process: asked for a dozen times on the way to a start. */
let own: Omit<Identity, "host"> | undefined;

/** What is known of a process: alive and the same, provably gone, or not to be told from here; and by what. */
export interface Liveness {
  state: "alive" | "dead" | "unknown";
  why: string;
}

/**
 * Tells whether a process described earlier still lives. Only "alive" allows a signal, only "dead" allows to clear up after it.
 *
 * Of a daemon's record more is asked: that the process runs --serve. So a record that came to name somebody else, start time and all, harms nobody.
 */
export function livenessOf(identity: Identity | DaemonRecord, proc: Proc = realProc): Liveness {
  const here = identify(process.pid, proc);
  if (identity.host !== here.host)
    return { state: "unknown", why: `it runs on host "${identity.host}", this is "${here.host}"` };
  if (identity.bootId === "" || here.bootId === "") {
    // where there is no /proc (macOS), that nobody has the pid is all that can be known
    return process.platform !== "linux" && !hasProcess(identity.pid)
      ? dead(`process ${identity.pid} is gone`)
      : { state: "unknown", why: "this system has no boot id to compare" };
  }
  if (identity.bootId !== here.bootId) return dead("the host has been booted again since");
  if (identity.pidNamespace !== here.pidNamespace)
    return { state: "unknown", why: "it runs in another pid namespace (a container)" };
  let startTime: string | undefined;
  let isOther = false;
  try {
    startTime = startTimeOf(proc, identity.pid);
    const words = "command" in identity ? argumentsOf(identity.pid, proc) : []; // one that is just ending has none, and may still listen
    isOther = startTime !== identity.startTime || (words.length > 0 && !words.some((word) => /^--?serve$/.test(word)));
  } catch (error) {
    if (errnoOf(error) !== "ENOENT" && errnoOf(error) !== "ESRCH")
      return { state: "unknown", why: `/proc/${identity.pid} cannot be read` };
  }
  if (startTime === undefined) return dead(`process ${identity.pid} is gone`);
  if (isOther) return dead(`pid ${identity.pid} belongs to another process now`);
  return { state: "alive", why: `process ${identity.pid} runs` };
}

function dead(why: string): Liveness {
  return { state: "dead", why };
}

function hasProcess(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return errnoOf(error) !== "ESRCH"; // EPERM: another user's
  }
}

/** What a process was started with; nothing for a zombie. */
export function argumentsOf(pid: number, proc: Proc = realProc): string[] {
  return proc.read(`/proc/${pid}/cmdline`).split("\0").slice(0, -1);
}

/** Field 22 of /proc/<pid>/stat; undefined for a zombie. */
function startTimeOf(proc: Proc, pid: number): string | undefined {
  return fieldsOf(proc.read(`/proc/${pid}/stat`))?.[19];
}

/** What /proc/<pid>/stat says from field 3 on; undefined for a zombie. The command in field 2 may hold spaces and parentheses: proc(5). */
function fieldsOf(stat: string): string[] | undefined {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return /[ZX]/.test(fields[0]!) ? undefined : fields;
}

export interface LivingProcess {
  pid: number;
  parent: number;
  group: number;
  session: number;
  startTime: string;
}

/** All processes that can be seen; zombies have ended, also those that nobody reaps. None where there is no /proc. */
export function livingProcesses(): LivingProcess[] {
  return namesIn("/proc").flatMap((name) => {
    const fields = /^\d/.test(name) && safely(() => fieldsOf(readFileSync(`/proc/${name}/stat`, "latin1")));
    if (!fields) return [];
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
  const {
    startTime,
    bootId,
    pidNamespace,
    host,
    version,
    instance,
    key,
    log,
    tokenHashes,
    command,
    stoppingAt = 0,
  } = record;
  const { at, detail } = record.ended === undefined ? { at: 0, detail: "" } : Object(record.ended);
  return (
    Array.isArray(tokenHashes) &&
    tokenHashes.every((hash) => /^[0-9a-f]{64}$/.test(hash)) &&
    Array.isArray(command) &&
    [
      startTime,
      bootId,
      pidNamespace,
      host,
      version,
      instance,
      key,
      log,
      detail,
      socket.path,
      socket.bound,
      ...command,
    ].every((item) => typeof item === "string") &&
    [record.startedAt, stoppingAt, at].every((time) => Math.abs(time) <= 8.64e15 && typeof time === "number") && // what Date can take, and say
    typeof socket.ino === "number" &&
    Number.isSafeInteger(record.pid) &&
    record.pid > 0
  );
}

/** Writes the record, whole or not at all: to a file of its own, then renamed. */
export function writeRecord(path: string, record: DaemonRecord): void {
  writeOwnFile(path, JSON.stringify(record, undefined, 1) + "\n");
}

/** Writes a file of ours, 0600, by rename; nothing planted under its name is followed or kept. */
export function writeOwnFile(path: string, data: string | Uint8Array): void {
  const temporary = `${path}.${randomName(8)}`;
  try {
    createFile(temporary, data);
    renameSync(temporary, path);
  } catch (error) {
    safely(() => unlinkSync(temporary));
    throw osFailure(`write "${path}"`, error, { exit: exitCodes.cannotCreate });
  }
}

function createFile(path: string, data: string | Uint8Array): void {
  const descriptor = openSync(
    path,
    constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
    0o600,
  );
  try {
    writeFileSync(descriptor, data); // all of it: one write(2) on a full disk may take a part, without an error
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
function readOwnFile(path: string, maxBytes: number): string {
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
    if (!holder || livenessOf(holder).state !== "dead") return { heldBy: holder };
    const removal = tryClaim(`${path}-${holder.id}`);
    if (!("release" in removal)) return removal;
    removeClaim(path, holder.id);
    removal.release();
  }
  return { heldBy: undefined };
}

/** @returns Undefined when another was quicker. */
function linkClaim(path: string): Claim | undefined {
  const id = randomName(12);
  const temporary = `${path}.${id}`;
  try {
    createFile(temporary, JSON.stringify({ id, ...identify() })); // whole before it has its name
    linkSync(temporary, path);
    return { release: () => removeClaim(path, id) };
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return undefined;
    throw osFailure(`claim "${path}"`, error, { exit: exitCodes.cannotCreate, hint: elsewhere });
  } finally {
    safely(() => unlinkSync(temporary));
  }
}

/** Claims, waiting at most `waitMs` for another holder; undefined when that was not enough. For the short claims of publication. */
export async function claimSoon(path: string, waitMs: number): Promise<Claim | undefined> {
  let claim: Claim | Held;
  return (await soon(() => "release" in (claim = tryClaim(path)), waitMs, 5)) ? (claim! as Claim) : undefined;
}

function readClaim(path: string): (Identity & { id: string }) | "absent" | undefined {
  try {
    const value = JSON.parse(readOwnFile(path, 4096));
    return value && typeof value.id === "string" && typeof value.pid === "number" && typeof value.host === "string"
      ? value
      : undefined;
  } catch (error) {
    return errnoOf(error) === "ENOENT" ? "absent" : undefined;
  }
}

function removeClaim(path: string, id: string): void {
  const holder = readClaim(path);
  if (typeof holder === "object" && holder.id === id) safely(() => unlinkSync(path));
}

/** What stands under a socket's public name. */
export type SocketName =
  | { kind: "absent" }
  | { kind: "socket"; dev: number; ino: number; uid: number }
  | { kind: "other"; what: string };

/**
 * Looks at the public name, without connecting.
 *
 * @throws {Failure} It cannot be looked at (exit code 77 where permission is missing, else 73).
 */
export function lookAt(path: string): SocketName {
  try {
    const stats = lstatSync(path);
    return stats.isSocket()
      ? { kind: "socket", dev: stats.dev, ino: stats.ino, uid: stats.uid }
      : { kind: "other", what: kindOf(stats) };
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return { kind: "absent" };
    throw osFailure(`look at the socket "${path}"`, error, {
      exit: errnoOf(error) === "EACCES" ? exitCodes.noPermission : exitCodes.cannotCreate,
    });
  }
}

export function notASocket(path: string, what: string): Failure {
  return cannot(`publish the socket "${path}": there is ${what}, the path must be free or have an old socket of ours`, {
    exit: exitCodes.cannotCreate,
    hint: `remove it if it is not needed, or ${elsewhere}`,
  });
}

export function kindOf(stats: Stats): string {
  return stats.isFile()
    ? "a regular file"
    : stats.isDirectory()
      ? "a directory"
      : stats.isSymbolicLink()
        ? "a symbolic link"
        : stats.isFIFO()
          ? "a FIFO"
          : stats.isSocket()
            ? "a socket"
            : "a device";
}

/** A socket that listens, under the name it was bound to. */
export interface BoundSocket {
  bound: string;
  dev: number;
  ino: number;
}

/**
 * Listens under a name of its own beside the public one. The socket is 0600 from the moment it exists: the umask is set before bind(2).
 *
 * @throws {Failure} The directory does not take a socket (exit code 73).
 */
export async function listenBeside(server: Server, path: string): Promise<BoundSocket> {
  for (let attempt = 1; ; attempt++) {
    const bound = join(dirname(path), boundName(path));
    const umask = process.umask(0o177);
    try {
      await new Promise<void>((done, fail) => {
        server.once("error", fail);
        server.once("listening", () => {
          server.removeListener("error", fail);
          done();
        });
        listenAt(server, bound);
      });
      const { dev, ino } = lstatSync(bound);
      return { bound, dev, ino };
    } catch (error) {
      if (errnoOf(error) === "EADDRINUSE" && attempt < 10) continue; // somebody drew the same name
      throw osFailure(`listen on "${path}"`, error, { exit: exitCodes.cannotCreate, hint: elsewhere });
    } finally {
      process.umask(umask);
    }
  }
}

/** What listen() comes to; but that has node load node:cluster, and with it all of node:child_process: 3 ms, and 300 kB. Bun has no such step. */
function listenAt(server: Server & { _listen2?(path: string, port: -1, type: -1): void }, path: string): void {
  if (server._listen2) server._listen2(path, -1, -1);
  else server.listen(path);
}

/** No longer than fits: as the public name does, or at least 4 bytes where there is room for them. */
function boundName(path: string): string {
  const length = Math.min(
    Math.max(Buffer.byteLength(basename(path)), 4),
    13,
    maxPathBytes - Buffer.byteLength(dirname(path)) - 1,
  );
  // a name of one byte cannot begin with a dot; "a" to "z" are tried in any order
  return length < 2 ? String.fromCharCode(97 + Math.floor(Math.random() * 26)) : `.${randomName(length - 1)}`;
}

/** At most so many letters and digits that nobody else will draw; that somebody may is no secret: O_EXCL, link(2) and bind(2) tell. Not by node:crypto, which takes 1.4 ms to load. */
function randomName(length: number): string {
  return Math.random()
    .toString(36)
    .slice(2, 2 + length);
}

/**
 * Gives the bound socket its public name.
 *
 * @param over Puts it in the place of whatever socket is there, in one step, so that no connect fails in between (--replace).
 * @throws {Failure} The name is taken (exit code 75), or cannot be made (73).
 */
export function publishSocket(socket: BoundSocket, path: string, over: boolean): void {
  try {
    if (!over) return linkSync(socket.bound, path);
    const between = join(dirname(path), boundName(path));
    linkSync(socket.bound, between);
    renameSync(between, path);
  } catch (error) {
    if (errnoOf(error) === "EEXIST" && isSame(path, socket)) return;
    throw osFailure(`publish the socket "${path}"`, error, {
      exit: errnoOf(error) === "EEXIST" ? exitCodes.busy : exitCodes.cannotCreate,
    });
  }
}

/** Removes a name of the socket, if it still leads to that very socket. Returns whether it did. */
export function retireName(path: string, socket: { dev: number; ino: number }): boolean {
  return isSame(path, socket) && safely(() => (unlinkSync(path), true)) === true;
}

export function isSame(path: string, socket: { dev: number; ino: number }): boolean {
  const stats = safely(() => lstatSync(path));
  return stats !== undefined && stats.ino === socket.ino && stats.dev === socket.dev && stats.isSocket();
}

/**
 * Tells whether a socket that nothing listens at is the one of this record's daemon: by its inode; or, since a boot may give devices other
 * numbers, by its path and our user when the host has been booted since.
 */
export function isLeftBy(record: DaemonRecord, path: string): boolean {
  if (isSame(path, record.socket)) return true;
  const here = identify();
  const there = safely(() => lookAt(path));
  return (
    there !== undefined &&
    there.kind === "socket" &&
    there.uid === process.getuid!() &&
    [record.socket.path, record.socket.bound].includes(path) &&
    record.host === here.host &&
    record.bootId !== here.bootId
  );
}

/** SHA-256 of a token, in hex: what is kept and compared, never the token. */
export function hashToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

/**
 * Reads a token from a file that may itself be a pipe, such as bash's <(echo t): once, and never hanging.
 *
 * A FIFO that no one writes to is given `waitMs` to say something. The token is the first line, without the spaces around it.
 *
 * @throws {Failure} Unreadable, empty, too long, or a file that others may write to (exit code 77; 1 where there is none).
 */
export async function readToken(path: string, waitMs = 1000): Promise<string> {
  const hint = "write a token of your own to a file (0600) and name it with --token-file, or leave the option out";
  const doing = `read the token file "${path}"`;
  const bytes = Buffer.alloc(4097);
  let length = 0;
  let descriptor: number | undefined;
  try {
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stats = fstatSync(descriptor);
    if (stats.isFile() && (stats.mode & 0o002) !== 0) {
      throw cannot(
        `${doing}: its mode is ${(stats.mode & 0o777).toString(8)}, others must not be able to write to it`,
        {
          exit: exitCodes.noPermission,
          hint: `chmod 600 ${path}`,
        },
      );
    }
    const deadline = now() + waitMs;
    while (length < bytes.length) {
      const read = readSome(descriptor, bytes.subarray(length));
      if (read > 0) length += read;
      else if (!stats.isFile() && now() < deadline && (read < 0 || length === 0)) await sleep(10);
      else break;
    }
  } catch (error) {
    throw osFailure(doing, error, {
      exit: errnoOf(error) === "EACCES" ? exitCodes.noPermission : exitCodes.failed,
      hint,
    });
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
  const token = bytes.toString("utf8", 0, length).split("\n")[0]!.trim();
  const found =
    token === ""
      ? "it is empty, a token is needed"
      : Buffer.byteLength(token) > 4095
        ? "its first line has over 4095 bytes"
        : undefined;
  if (found) throw cannot(`${doing}: ${found}`, { exit: exitCodes.noPermission, hint });
  return token;
}

/** Bytes read; 0 at the end; -1 where the writer of a pipe has written nothing yet. */
function readSome(descriptor: number, buffer: Buffer): number {
  try {
    return readSync(descriptor, buffer);
  } catch (error) {
    if (errnoOf(error) === "EAGAIN") return -1;
    throw error;
  }
}

/** Reads the token of our own making beside the socket, or makes it. */
export function ownToken(path: string): string {
  try {
    const token = readOwnFile(path, 4096).split("\n")[0]!.trim(); // as readToken() does for those who are to use it
    if (token !== "") return token;
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw osFailure(`read the token file "${path}"`, error);
  }
  const token = randomBytes(32).toString("hex");
  writeOwnFile(path, token + "\n");
  return token;
}

/** A file's text; undefined when it cannot be read. */
export function readText(path: string): string | undefined {
  return safely(() => readFileSync(path, "utf8"));
}

/** The names in a directory; none when it cannot be read. */
export function namesIn(directory: string): string[] {
  return safely(() => readdirSync(directory)) || [];
}

/** Milliseconds of a clock that nobody sets. Not `performance`, which takes node 1 ms to load. */
export function now(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e3 + nanoseconds / 1e6;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}

/** Looks, once at least, until it is so. Returns whether it came to be, within `ms`. */
export async function soon(isSo: () => unknown, ms: number, stepMs = 20): Promise<boolean> {
  for (const deadline = now() + ms; !(await isSo()); await sleep(stepMs)) if (now() > deadline) return false;
  return true;
}

/** Does something that may fail where failing means that there is nothing: the error is the answer "undefined". */
export function safely<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}
