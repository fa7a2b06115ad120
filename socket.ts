/**
 * The socket's path, its publication and retirement, its run directory, and the token beside it.
 *
 *     rpc.sock            the public name: what clients connect to
 *     .k3j2h9x            the name it was bound under: a second link to the same socket, kept to publish it again
 *     rpc.sock.record     see record.ts, as for rpc.sock.claim
 *     rpc.sock.token      a token of our own making, when none was given
 *     rpc.sock.held       what is kept of processes
 *     remote-server.log   the log (for a socket of another name: that name and ".log")
 *
 * Where others may write to the socket's directory, all but the two names of the socket are kept in the default state directory.
 */

import { createHash, randomBytes } from "node:crypto";
import type { Stats } from "node:fs";
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  statSync,
  unlinkSync,
} from "node:fs";
import type { Server } from "node:net";
import { hostname, userInfo } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { cannot, elsewhere, errnoOf, exitCodes, type Failure, osFailure, safely } from "./failure.ts";
import type { Claim, DaemonRecord } from "./record.ts";
import {
  claimSoon,
  identify,
  isOtherHost,
  kindOf,
  livenessOf,
  namesIn,
  now,
  randomName,
  readOwnFile,
  readRecord,
  rewriteRecord,
  sleep,
  writeOwnFile,
  writeRecord,
} from "./record.ts";

/** sun_path holds 108 bytes with its closing zero (unix(7)); 104 on macOS. Node listens on a truncated name without an error. */
export const maxPathBytes = process.platform === "darwin" ? 103 : 107;

/** How long another's publication is waited for: it takes a millisecond. */
const lockMs = 1000;

/** The files of one socket. */
export interface Places {
  socket: string;
  record: string;
  claim: string;
  token: string;
  log: string;
  /** A link to the SSH agent of whoever is connected, for processes that outlive connections: environment.ts. */
  agent: string;
  /** A directory of what is kept of processes: adoption.ts. */
  held: string;
  /** The directory of the five above. */
  directory: string;
}

/**
 * Finds the default run directory: by host, for home directories that several hosts share, and not in /run/user/<uid>, which is
 * unmounted at the last logout. A host may be given another name while a daemon runs: then it is the directory where that one's record is.
 */
export function defaultDirectory(env: NodeJS.ProcessEnv = process.env): string {
  const state = env.XDG_STATE_HOME;
  const base = join(state && isAbsolute(state) ? state : join(homeDirectory(env), ".local/state"), "holdfast");
  const named = join(base, hostname());
  const others = (): string[] => namesIn(base).map((name) => join(base, name));
  return hasLivingDaemon(named) ? named : others().find(hasLivingDaemon) || named;
}

function hasLivingDaemon(directory: string): boolean {
  const paths = namesIn(directory).filter((name) => name.endsWith(".record"));
  return paths.some((name) => {
    const { record } = readRecord(join(directory, name));
    return record !== undefined && !record.ended && livenessOf(record).state === "alive";
  });
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
    held: `${base}.held`,
    claim: `${base}.claim`,
    token: `${base}.token`,
    agent: `${base}.agent`,
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
    makeDirectories(directory);
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

/**
 * Makes a directory, 0700, and those above it that are missing. What is there already is left as it is, whatever it is.
 *
 * Not by the `recursive` of node's mkdir(): below /proc, where nothing can be made, that goes round for ever; and of a disk that is read-only or full it
 * says that there is no such file.
 */
export function makeDirectories(path: string): void {
  if (existsSync(path)) return;
  if (dirname(path) !== path) makeDirectories(dirname(path));
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if (!existsSync(path)) throw error; // else another was quicker
  }
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
        server.listen(bound);
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

/** No longer than fits: as the public name does, or at least 4 bytes where there is room for them. */
function boundName(path: string): string {
  const length = Math.min(
    Math.max(Buffer.byteLength(basename(path)), 4),
    13,
    maxPathBytes - Buffer.byteLength(dirname(path)) - 1,
  );
  return length < 2 ? randomName(1) : `.${randomName(length - 1)}`; // a name of one byte cannot begin with a dot
}

/**
 * Gives the bound socket its public name.
 *
 * @param over Puts it in the place of whatever socket is there, in one step, so that no connect fails in between (--replace).
 * @throws {Failure} The name is taken (exit code 75), or cannot be made (73).
 */
export function publishSocket(socket: BoundSocket, path: string, over: boolean): void {
  try {
    if (!over) {
      linkSync(socket.bound, path);
      return;
    }
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

/**
 * Publishes a daemon's record and its socket. Only one does so at a time, and only over a name that is free: what is there may be a daemon that was
 * quicker.
 *
 * @param replace Takes the name over from whoever has it.
 * @param isWanted Asked when it is our turn: the daemon may have been told to end meanwhile.
 * @param seen For whose place it was started: its caller may be dead, and others may have come, or been stopped, since.
 */
export async function publishRecord(
  places: Places,
  record: DaemonRecord,
  replace: boolean,
  isWanted: () => boolean,
  seen?: string,
): Promise<void> {
  const { socket } = places;
  const claim = await claimSoon(lockOf(places), lockMs);
  if (!claim)
    throw cannot(`publish the socket "${socket}": "${lockOf(places)}" is held by another`, { exit: exitCodes.busy });
  try {
    if (!isWanted()) throw cannot(`publish the socket "${socket}": the daemon was told to end`);
    const there = lookAt(socket);
    const last = seen === undefined ? undefined : readRecord(places.record).record;
    const isLate = last !== undefined && standingOf(last) !== seen;
    if (isLate || (there.kind === "socket" && !replace && !isSame(socket, record.socket)))
      throw cannot(`publish the socket "${socket}": another daemon has just done so`, { exit: exitCodes.busy });
    if (there.kind === "other") throw notASocket(socket, there.what);
    writeRecord(places.record, record); // first: so that a dead socket can always be told to be ours
    publishSocket(record.socket, socket, replace);
  } finally {
    claim.release();
  }
}

/** Whose the name is, and whether that one was told to stop. */
export function standingOf(record: DaemonRecord | undefined): string {
  if (!record) return "";
  const isStopped = record.stoppingAt !== undefined || record.ended?.reason === "stopped";
  return `${record.instance}${isStopped ? " stopped" : ""}`;
}

/** Writes the record again, unless a successor has written its own; also where there is no room for a lock, or for another file. */
export async function saveRecord(places: Places, record: DaemonRecord): Promise<void> {
  const claim = await claimPublication(places);
  if (!claim) throw cannot(`write "${places.record}": "${lockOf(places)}" is held by another`);
  try {
    if (isSame(places.socket, record.socket) || !successorOf(places, record)) rewriteRecord(places.record, record);
  } finally {
    claim.release();
  }
}

/** Removes the public name, if it is the daemon's still. Returns false where another publishes for too long. */
export async function unpublish(places: Places, record: DaemonRecord, isWanted: () => boolean): Promise<boolean> {
  const claim = await claimPublication(places);
  if (!claim) return false;
  if (isWanted()) retireName(places.socket, record.socket);
  claim.release();
  return true;
}

/** Where no lock can be made (a full disk), nobody else can publish either. */
function claimPublication(places: Places): Promise<Claim | undefined> {
  return claimSoon(lockOf(places), lockMs).catch(() => ({ release: () => {} }));
}

function lockOf({ record }: Places): string {
  return `${record}.lock`;
}

/** The record of another daemon, where this one's was. */
export function successorOf(places: Places, record: DaemonRecord): DaemonRecord | undefined {
  const { record: found } = readRecord(places.record);
  return found?.instance === record.instance ? undefined : found;
}

export function hasRecord(places: Places, record: DaemonRecord): boolean {
  const { record: found } = readRecord(places.record);
  return found?.instance === record.instance && found.socket.ino === record.socket.ino;
}

/** Removes a name of the socket, if it still leads to that very socket. */
export function retireName(path: string, socket: { dev: number; ino: number }): void {
  if (isSame(path, socket)) safely(() => unlinkSync(path));
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
    !isOtherHost(record) &&
    record.bootId !== here.bootId
  );
}

/** SHA-256 of a token, in hex: what is kept and compared, never the token. */
export function hashToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

const maxTokenBytes = 4095;

/**
 * Reads a token from a file that may itself be a pipe, such as bash's <(echo t), or from a descriptor: once, and never hanging.
 *
 * A FIFO that no one writes to is given `waitMs` to say something. The token is the first line, as it is but for its line end.
 *
 * @param warn Told of a file that others may read.
 * @throws {Failure} Unreadable, empty, too long, or a file that others may write to (exit code 77; 1 where there is none).
 */
export async function readToken(
  source: string | number,
  warn?: (text: string, hint: string) => void,
  waitMs = typeof source === "number" ? 10_000 : 1000,
): Promise<string> {
  const hint = "write a token of your own to a file (0600) and name it with --token-file, or leave the option out";
  const doing = `read the token ${typeof source === "number" ? `from descriptor ${source}` : `file "${source}"`}`;
  let bytes: Buffer;
  let descriptor: number | undefined;
  try {
    descriptor = typeof source === "number" ? source : openSync(source, constants.O_RDONLY | constants.O_NONBLOCK);
    judgeTokenFile(fstatSync(descriptor), source, doing, warn);
    bytes = await readLine(descriptor, waitMs);
  } catch (error) {
    const exit = errnoOf(error) === "EACCES" ? exitCodes.noPermission : exitCodes.failed;
    throw osFailure(doing, error, { exit, hint });
  } finally {
    if (descriptor !== undefined && typeof source === "string") closeSync(descriptor);
  }
  const [token] = bytes.toString("utf8").split(/\r?\n/) as [string];
  if (token.trim() === "")
    throw cannot(`${doing}: it is empty, a token is needed`, { exit: exitCodes.noPermission, hint });
  if (Buffer.byteLength(token) > maxTokenBytes)
    throw cannot(`${doing}: its first line has over ${maxTokenBytes} bytes`, { exit: exitCodes.noPermission, hint });
  if (bytes.indexOf(token) !== 0) throw cannot(`${doing}: it is not UTF-8`, { exit: exitCodes.noPermission, hint });
  return token;
}

function judgeTokenFile(
  stats: Stats,
  source: string | number,
  doing: string,
  warn: ((text: string, hint: string) => void) | undefined,
): void {
  if (!stats.isFile() || typeof source === "number") return;
  const { uid, gid } = stats;
  const [ourUid, ourGid] = [process.geteuid!(), process.getegid!()];
  const mode = (stats.mode & 0o777).toString(8);
  const hint = `chmod 600 '${source}'`;
  const exit = exitCodes.noPermission;
  if ((stats.mode & 0o002) !== 0 || ((stats.mode & 0o020) !== 0 && gid !== ourGid))
    // a umask of 002 leaves it to our own
    throw cannot(`${doing}: its mode is ${mode}, others must not be able to write to it`, { exit, hint });
  if (uid !== ourUid && uid !== 0) {
    if (ourUid !== 0)
      throw cannot(`${doing}: it belongs to user ${uid}, it must be ours`, {
        exit,
        hint: "copy it to a file of your own, mode 600",
      });
    warn?.(`the token file "${source}" belongs to user ${uid}, who may read and write it`, `chown root '${source}'`);
  }
  if ((stats.mode & 0o044) !== 0) warn?.(`others may read the token file "${source}": its mode is ${mode}`, hint);
}

/** To the end of the first line, or of all. */
async function readLine(descriptor: number, waitMs: number): Promise<Buffer> {
  const bytes = Buffer.alloc(maxTokenBytes + 2);
  const isFile = fstatSync(descriptor).isFile();
  const deadline = now() + waitMs;
  let length = 0;
  while (length < bytes.length && !bytes.subarray(0, length).includes("\n")) {
    const read = readSome(descriptor, bytes.subarray(length));
    if (read > 0) length += read;
    else if (!isFile && now() < deadline && (read < 0 || length === 0)) await sleep(10);
    else break;
  }
  return bytes.subarray(0, length);
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
    const token = readOwnFile(path, 4096).split(/\r?\n/)[0]!; // as readToken() does for those who are to use it
    if (token.trim() !== "") return token;
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") throw osFailure(`read the token file "${path}"`, error);
  }
  const token = randomBytes(32).toString("hex");
  writeOwnFile(path, `${token}\n`);
  return token;
}
