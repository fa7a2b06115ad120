/**
 * What is kept of a child beside its output, so that the next daemon can take it up: files in the child's own directory, 0600.
 *
 *     about    what it is, and its holder: once, by rename, before the answer to process.spawn
 *     mark     64 bytes, 96 with a terminal, that are written in place, so that a full disk does not matter: how far its stdin is, whether it
 *              was left in order, and what of its terminal is to be known
 *     stdin    what of its stdin was accepted and did not fit into the pipe: a header, the offset of what follows, and the bytes
 *     exit     how it ended: once, by rename
 *     forgotten   nobody can name it any more, but a grandchild has its pipes: the directory goes when these are at their ends
 *
 * What stdin takes at once is never written anywhere: it may be a password. `intent` is written before each write(2), `delivered` after it: of a
 * daemon that dies in between nobody can know whether the child has these bytes. They count as delivered, nothing is sent twice, and reattach says so.
 */

import type { Stats } from "node:fs";
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  ftruncateSync,
  lstatSync,
  openSync,
  readSync,
  rmdirSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { constants as osConstants } from "node:os";
import { join } from "node:path";
import type { Failure } from "./failure.ts";
import { cannot, errnoError, errnoOf, reasonOf, safely } from "./failure.ts";
import type { Holders } from "./holders.ts";
import { closeHolders, probeHolders } from "./holders.ts";
import type { Claim, Held, Identity } from "./record.ts";
import { kindOf, namesIn, readOwnFile, soon, tryClaim, writeOwnFile } from "./record.ts";

import type { Ended, Watch } from "./running.ts";
import { haveHoldersLeft } from "./running.ts";
import { makeDirectories } from "./socket.ts";
import type { Room } from "./spool.ts";

/** Of these files and of the segments beside them. What has another number is left alone. */
export const format = 1;
/** Of `about` and of `exit`: a command with cut arguments has some 10 KiB. */
const maxAboutBytes = 1 << 20;
const markNumbers = 8;
const terminalNumbers = 4;
const headerBytes = 8;
/** A holder that was let go of needs some ms, on a busy machine more. */
const leavingMs = 2000;
/** As much as a daemon accepts for one stdin, and more than it writes. */
const maxJournalBytes = 64 << 20;
/** How long another daemon, which is on its way out, is waited for, and how often it is looked at. */
export const ownerMs = 20_000;
export const ownerStepMs = 20;
const states = ["open", "ended", "broken"] as const;

/** The directory of what is kept, and what holds children there. */
export interface Keeper {
  readonly room: Room;
  /** The daemon's environment. */
  readonly env: NodeJS.ProcessEnv;
  log(line: string): void;
  /** Whether children can be held here, or why not: found out before the first is started. */
  holders: Promise<Holders | string> | undefined;
  /** What was found out. */
  isHolding: boolean;
  notHeld: string | undefined;
  /** Of held children. */
  readonly watch: Watch;
  /** To read what children say, of those that are kept; and to make anything in their directory. */
  claim: Claim | undefined;
  /** What is there is taken up, before anything is made there that would be taken for it: adoption.ts. */
  onClaimed(): void;
  /** Nothing is waited for any more. */
  readonly isEnding: boolean;
}

/** What a child was started as. */
export interface About {
  readonly id: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly cwd: string;
  readonly pid: number;
  /** Unix time. */
  readonly startedAt: number;
}

/** `about`: names of its environment, never values. */
export interface KeptAbout extends About {
  format: number;
  environment: string[];
  /** Of the daemon that started it. */
  instance: string;
  /** See running.ts; absent for one with plain pipes. */
  holder?: object | undefined;
  process: Identity;
}

export type Killer = "client" | "shutdown";

/** A child that a signal ended has the exit code that a shell would give it: 128 + the signal's number. */
export interface Exit {
  /** -1 where it is not known. */
  exitCode: number;
  signal?: NodeJS.Signals;
  killedBy?: Killer;
  /** Why it is not known. */
  unknown?: string;
}

export interface KeptExit {
  exit: Exit;
  /** Unix time. */
  endedAt: number;
  /** Of the exit message. */
  seq?: number | undefined;
}

export interface Mark {
  /** Bytes of stdin accepted, ever, and those that the pipe has taken; and how many are on their way to it. */
  applied: number;
  delivered: number;
  intent: number;
  stdin: (typeof states)[number];
  /** When its daemon left it to the next one, with all that was read in the spool: unix ms; 0 where it has not. */
  leftAt: number;
  /** Where output is in memory: no message has a higher seq. */
  seqLimit: number;
  /** Of output, ever. */
  outputBytes: number;
  /** Of one that is in a terminal. */
  terminal?: TerminalMark;
}

/** pty.ts. */
export interface TerminalMark {
  /** Last set. */
  rows: number;
  columns: number;
  /** What its output had set, up to the message of a seq. */
  modes: number;
  seq: number;
}

/** Finds out, once, whether children can be held here. */
export function holdersOf(keeper: Keeper): Promise<Holders | string> {
  keeper.holders ??= findHolders(keeper).then((found) => {
    keeper.isHolding = typeof found !== "string";
    if (typeof found === "string") keeper.notHeld = found;
    if (keeper.notHeld !== undefined) keeper.log(`[Process] They end with the daemon: ${keeper.notHeld}`);
    return found;
  });
  return keeper.holders;
}

async function findHolders(keeper: Keeper): Promise<Holders | string> {
  const { room, env, watch } = keeper;
  const { path } = room;
  if (path === undefined) return "nothing is kept on disk here";
  try {
    await soon(() => keeper.isEnding || claimKept(keeper, path), ownerMs, ownerStepMs);
    if (!keeper.claim) return `another daemon has "${path}", and has not left it within ${ownerMs / 1000} s`;
    return await probeHolders(path, env, undefined, watch);
  } catch (error) {
    return reasonOf(error);
  }
}

/**
 * Makes the directory of what is kept, and claims it. What is there is taken up at once.
 *
 * @returns Whether it is ours now: another daemon, on its way out, may have it yet.
 * @throws {Failure} It is not a directory of ours.
 */
export function claimKept(keeper: Keeper, path: string): boolean {
  if (keeper.claim) return true;
  const claim = tryClaimIn(path);
  if (!("release" in claim)) return false;
  keeper.claim = claim;
  keeper.onClaimed();
  return true;
}

function tryClaimIn(path: string): Claim | Held {
  try {
    makeDirectories(path);
    const stats = lstatSync(path);
    if (isOwnDirectory(stats)) return tryClaim(join(path, "owner"));
    const what = `it is ${kindOf(stats)} of user ${stats.uid}, a directory of our own is needed, mode 700`;
    throw cannot(`use "${path}": ${what}`);
  } catch (error) {
    const errno = errnoOf(error) ?? (error as Failure).data?.errno;
    if (errno !== "ENOENT") throw error;
    return { heldBy: undefined }; // whoever left it has just removed it
  }
}

/** Ends what was begun and is not noted, removes what was made ahead, lets the next daemon have the rest, and waits for holders that were let go of. */
export async function closeKept({ room, holders, claim, watch }: Keeper): Promise<void> {
  const found = await holders;
  if (found !== undefined && typeof found !== "string") await closeHolders(found, () => begunIn(room.path!));
  claim?.release();
  if (room.path !== undefined) safely(() => rmdirSync(room.path!)); // unless something is kept in it
  await soon(() => haveHoldersLeft(watch), leavingMs, 5);
}

export function exitFrom({ code, signal, unknown }: Ended): Exit {
  if (unknown !== undefined) return { exitCode: -1, unknown };
  return signal === null ? { exitCode: code ?? -1 } : { exitCode: 128 + osConstants.signals[signal], signal };
}

export function writeAbout(directory: string, about: KeptAbout): void {
  writeOwnFile(join(directory, "about"), JSON.stringify(about));
}

export function writeExit(directory: string, exit: KeptExit): void {
  writeOwnFile(join(directory, "exit"), JSON.stringify(exit));
}

/** @throws {Failure} What is wrong with it; undefined where there is none. */
export function readAbout(directory: string): KeptAbout | undefined {
  const value = readJson(directory, "about") as KeptAbout | undefined;
  if (value === undefined) return undefined;
  if (value.format !== format)
    throw cannot(
      `take up "${directory}": its format is ${JSON.stringify(value.format)?.slice(0, 20)}, this version knows ${format}`,
    );
  const { id, command, args, cwd, pid, startedAt, instance } = value;
  const texts = [id, command, cwd, instance, Object(value.process).host, ...(Array.isArray(args) ? args : [undefined])];
  const isRight = texts.every((text) => typeof text === "string") && Number.isSafeInteger(pid) && pid > 1;
  if (!isRight || id === "" || !Number.isFinite(startedAt))
    throw cannot(`take up "${directory}": its about is damaged`);
  return value;
}

export function writeForgotten(directory: string): void {
  writeOwnFile(join(directory, "forgotten"), "");
}

export function isForgotten(directory: string): boolean {
  return namesIn(directory).includes("forgotten");
}

export function readExit(directory: string): KeptExit | undefined {
  const value = safely(() => readJson(directory, "exit")) as KeptExit | undefined;
  const { exitCode } = Object(Object(value).exit);
  return Number.isInteger(exitCode) && Number.isFinite(value!.endedAt) ? value : undefined;
}

function readJson(directory: string, name: string): unknown {
  const path = join(directory, name);
  let text: string;
  try {
    text = readOwnFile(path, maxAboutBytes);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
  const value: unknown = safely(() => JSON.parse(text));
  if (typeof value !== "object" || value === null) throw cannot(`read "${path}": it is damaged`);
  return value;
}

export function createMark(): Mark {
  return { applied: 0, delivered: 0, intent: 0, stdin: "open", leftAt: 0, seqLimit: 0, outputBytes: 0 };
}

type MarkNumbers = [number, number, number, number, number, number, number, number];

/** In place: there is room for it on a full disk, and it is whole, whenever the daemon dies. */
export function writeMark(directory: string, mark: Mark): void {
  const { applied, delivered, intent, stdin, leftAt, seqLimit, outputBytes, terminal } = mark;
  const numbers = [format, applied, delivered, intent, states.indexOf(stdin), leftAt, seqLimit, outputBytes];
  if (terminal) numbers.push(terminal.rows, terminal.columns, terminal.modes, terminal.seq);
  const bytes = Buffer.alloc(numbers.length * 8);
  for (const [at, value] of numbers.entries()) bytes.writeDoubleBE(value, at * 8);
  safely(() =>
    withFile(join(directory, "mark"), constants.O_WRONLY | constants.O_CREAT, (file) =>
      writeSync(file, bytes, 0, bytes.length, 0),
    ),
  );
}

/** @returns Undefined where there is none, or it is damaged. */
export function readMark(directory: string): Mark | undefined {
  const bytes = Buffer.alloc((markNumbers + terminalNumbers) * 8);
  const length = safely(() => withFile(join(directory, "mark"), constants.O_RDONLY, (file) => readSync(file, bytes)));
  const isWhole = length === bytes.length || length === markNumbers * 8;
  const numbers = isWhole ? Array.from({ length: length / 8 }, (_, at) => bytes.readDoubleBE(at * 8)) : [];
  if (!isWhole || !numbers.every((value) => value >= 0 && value <= Number.MAX_SAFE_INTEGER)) return undefined;
  const [found, applied, delivered, intent, state, leftAt, seqLimit, outputBytes] = numbers as MarkNumbers;
  const stdin = states[state];
  if (found !== format || stdin === undefined) return undefined;
  const [rows, columns, modes, seq] = numbers.slice(markNumbers);
  const terminal = seq === undefined ? undefined : ({ rows, columns, modes, seq } as TerminalMark);
  return {
    ...{ applied, delivered, intent, stdin, leftAt, seqLimit, outputBytes },
    ...(terminal ? { terminal } : {}),
  };
}

/** Adds to what is accepted and not delivered. @param from The offset of the first byte: where the journal does not end there, all that it has is delivered. */
export function appendJournal(directory: string, bytes: Uint8Array, from: number): void {
  withFile(join(directory, "stdin"), constants.O_RDWR | constants.O_CREAT, (file) => {
    const { size } = fstatSync(file);
    const header = Buffer.alloc(headerBytes);
    readSync(file, header, 0, headerBytes, 0);
    const goesOn = size >= headerBytes && header.readDoubleBE() + size - headerBytes === from;
    if (!goesOn) {
      ftruncateSync(file);
      header.writeDoubleBE(from);
      writeSync(file, header, 0, headerBytes, 0);
    }
    const written = writeSync(file, bytes, 0, bytes.length, goesOn ? size : headerBytes);
    if (written < bytes.length) throw errnoError("ENOSPC", "no space left on device, write");
  });
}

/** All of it is delivered. */
export function clearJournal(directory: string): void {
  safely(() => truncateSync(join(directory, "stdin")));
}

/** @returns The bytes from one offset to another; those that are not there are missing at the end. */
export function readJournal(directory: string, from: number, to: number): Buffer {
  const nothing = Buffer.alloc(0);
  const read = (file: number): Buffer => {
    const { size } = fstatSync(file);
    if (size < headerBytes || size > maxJournalBytes) return nothing;
    const bytes = Buffer.alloc(size);
    readSync(file, bytes);
    const first = bytes.readDoubleBE();
    return first <= from ? bytes.subarray(headerBytes + from - first, headerBytes + to - first) : nothing;
  };
  return safely(() => withFile(join(directory, "stdin"), constants.O_RDONLY, read)) ?? nothing;
}

/** The directories of children below one, and why others are left alone. */
export function keptDirectories(path: string): { directories: string[]; problems: string[] } {
  const directories: string[] = [];
  const problems: string[] = [];
  for (const name of namesIn(path).filter((found) => /^[0-9a-z]{12}$/.test(found))) {
    const directory = join(path, name);
    const stats = safely(() => lstatSync(directory));
    if (!stats) continue;
    if (isOwnDirectory(stats)) directories.push(directory);
    else
      problems.push(
        `"${directory}" is ${kindOf(stats)} of user ${stats.uid}, mode ${(stats.mode & 0o777).toString(8)}: it is left alone`,
      );
  }
  return { directories, problems };
}

function begunIn(path: string): string[] {
  return keptDirectories(path).directories.filter((directory) => !existsSync(join(directory, "about")));
}

function isOwnDirectory(stats: Stats): boolean {
  return stats.isDirectory() && stats.uid === process.getuid!() && (stats.mode & 0o077) === 0;
}

function withFile<T>(path: string, flags: number, use: (file: number) => T): T {
  const file = openSync(path, flags | constants.O_NOFOLLOW | constants.O_NONBLOCK, 0o600);
  try {
    if (!fstatSync(file).isFile()) throw cannot(`use "${path}": it is not a file`);
    return use(file);
  } finally {
    closeSync(file);
  }
}
