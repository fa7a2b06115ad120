/**
 * What could not be done, as the one who asked reads it: on stderr with a hint and an exit code, or as an RPC error.
 *
 * Wording: Cannot <do what> "<path>": <what is>, <what must be>. The original error is kept in `cause`.
 */

import { getSystemErrorMap } from "node:util";
import { HoldfastError } from "./library.ts";

/** Exit codes, after sysexits(3). */
export const exitCodes = {
  done: 0,
  failed: 1,
  usage: 64,
  unavailable: 69,
  cannotCreate: 73,
  busy: 75,
  noPermission: 77,
  willNotSurvive: 78,
} as const;

/** Beside them what env(1) has, of --run and its like. */
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes] | 125 | 126 | 127;

/** JSON-RPC 2.0 error codes, and ours. */
export const errorCodes = {
  parse: -32700,
  invalidRequest: -32600,
  unknownMethod: -32601,
  invalidParams: -32602,
  internal: -32603,
  unauthorized: -32001,
  stdinFull: -32002,
  stdinGap: -32003,
  noDaemon: -32010,
} as const;

export interface FailureDetails {
  /** The process's exit code when this ends a command. 1 by default. */
  exit?: ExitCode;
  /** The RPC error code when this answers a request. -32603 by default. */
  code?: number;
  /** A command that can be pasted, or one sentence of what to do next. */
  hint?: string;
  /** Goes into the RPC error's `data`. */
  data?: Record<string, unknown>;
  cause?: unknown;
}

export class Failure extends HoldfastError {
  declare readonly exit: ExitCode;

  constructor(message: string, details: FailureDetails = {}) {
    const { exit = exitCodes.failed, code = errorCodes.internal } = details;
    super(message, { ...details, code });
    Object.assign(this, { exit });
  }
}

/** The hint of whatever is wrong with a place. */
export const elsewhere = "choose another place with --socket";

/** @param what Completes "Cannot …": `read "/etc/x": it is a directory, a file is needed`. */
export function cannot(what: string, details?: FailureDetails): Failure {
  return new Failure(`Cannot ${what}`, details);
}

/**
 * Turns an operating system's error into a Failure that says what was being done.
 *
 * @param doing Completes "Cannot …", with the path in quotes: `read "/etc/x"`.
 * @param error What a node:fs, node:net or node:child_process call threw or emitted.
 * @returns A Failure whose `data.errno` is the error's name, such as "ENOENT", when it has one. A Failure is returned as it is.
 */
export function osFailure(doing: string, error: unknown, details: FailureDetails = {}): Failure {
  if (error instanceof Failure) return error;
  const errno = errnoOf(error);
  return cannot(`${doing}: ${reasonOf(error)}`, {
    ...details,
    cause: error,
    data: errno ? { errno, ...details.data } : details.data,
  });
}

/** Names the errno of an operating system's error: "ENOENT"; undefined when the error is of another kind. */
export function errnoOf(error: unknown): string | undefined {
  const code = (Object(error) as { code?: unknown }).code;
  return typeof code === "string" && /^E[A-Z0-9]+$/.test(code) ? code : undefined;
}

/** An error as the operating system's are, where it is found out by ourselves. */
export function errnoError(code: string, words: string, more: object = {}): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: ${words}`), { code, ...more });
}

/** Says in words why an operation failed: "no such file or directory (ENOENT)". */
export function reasonOf(error: unknown): string {
  const errno = errnoOf(error);
  if (!errno) return error instanceof Error ? error.message : String(error);
  // fork(2), of limits whose names it does not tell; on a pids cgroup's too
  if (errno === "EAGAIN" && /^spawn/.test((error as NodeJS.ErrnoException).syscall || ""))
    return "the user has as many processes as may be, see ulimit -u and TasksMax= (EAGAIN)";
  const number = (error as { errno?: unknown }).errno;
  const known = typeof number === "number" ? getSystemErrorMap().get(number)?.[1] : undefined;
  const words = errno === "ENOEXEC" ? "exec format error" : known; // libuv has no words for it
  // Deno and Bun leave errno out now and then; the message then begins "ENOENT: no such file or directory, open …"
  const message = (error as Error).message || "";
  const found = words || capture(/^E[A-Z0-9]+: ([^,]+)/, message) || message;
  return found === "" ? errno : `${found} (${errno})`;
}

/** The first group of the first match. */
export function capture(pattern: RegExp, text: string | undefined): string | undefined {
  return (pattern.exec(text || "") || [])[1];
}

/**
 * Makes text from elsewhere harmless on a terminal and in a log: control characters shown as \uNNNN, cut to a length.
 *
 * JSON on one line stays the same JSON.
 */
export function cleanText(text: string, maxLength = Infinity): string {
  // C0, DEL, C1, and the characters that turn the direction of writing
  return cutText(text, maxLength).replace(
    /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g,
    (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** As a shell takes it for one word, whatever is in it. */
export function quoteWord(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

export function cutText(text: string, maxLength: number): string {
  return text.length > maxLength ? `${text.slice(0, maxLength)}…` : text;
}

/** Does something that may fail where failing means that there is nothing: the error is the answer "undefined". */
export function safely<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}

/** A promise, and what settles it. */
export interface Deferred<T> {
  promise: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}

export function defer<T>(): Deferred<T> {
  const deferred = {} as Deferred<T>;
  deferred.promise = new Promise<T>((resolve, reject) => Object.assign(deferred, { resolve, reject }));
  deferred.promise.catch(() => {}); // also when nobody waits
  return deferred;
}

/** What a function of the application throws is reported as of any listener, and ends nothing here. */
export function callBack<T>(listener: ((value: T) => unknown) | undefined, value: T): void {
  try {
    listener?.(value);
  } catch (error) {
    process.nextTick(() => {
      throw error;
    });
  }
}

/** "90 s", "15 min", "3 h", "5 days". */
export function durationWords(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  return seconds < 120
    ? `${seconds} s`
    : seconds < 7200
      ? `${Math.round(seconds / 60)} min`
      : seconds < 172_800
        ? `${Math.round(seconds / 3600)} h`
        : `${Math.round(seconds / 86_400)} days`;
}

/** "at 14:03:22 (2 h ago)". */
export function timeWords(at: number): string {
  return `${clockWords(at)} (${durationWords(Date.now() - at)} ago)`;
}

/** "at 14:03:22"; with the date when it is another day. */
export function clockWords(at: number): string {
  const time = new Date(at);
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toISOString().slice(0, 10)} `;
  return `at ${day}${time.toTimeString().slice(0, 8)}`;
}

export function sizeWords(bytes: number): string {
  return bytes < 10_000
    ? `${bytes} B`
    : bytes < 1e7
      ? `${Math.round(bytes / 1e3)} kB`
      : bytes < 1e10
        ? `${Math.round(bytes / 1e6)} MB`
        : `${Math.round(bytes / 1e9)} GB`;
}

/** The name that somebody may have meant: one that begins so, or is a letter in three away; undefined where none is near. */
export function nearest(word: string, names: readonly string[]): string | undefined {
  const begins = word.length >= 3 ? names.filter((name) => name.startsWith(word)) : [];
  if (begins.length > 0) return begins.sort((a, b) => a.length - b.length)[0];
  const near = names.map((name) => ({ name, steps: stepsBetween(word, name) })).sort((a, b) => a.steps - b.steps)[0];
  return near &&
    near.steps <= Math.max(1, Math.floor(Math.max(word.length, near.name.length) / 3)) &&
    near.steps < word.length
    ? near.name
    : undefined;
}

/** Letters put in, left out, changed, or changed with their neighbour. */
function stepsBetween(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = last[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      const swap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? before[j - 2]! + 1 : change;
      row.push(Math.min(last[j]! + 1, row[j - 1]! + 1, change, swap));
    }
    before = last;
    last = row;
  }
  return last[b.length]!;
}

/** A part of a client's own text, for the log and for errors. */
export function shorten(text: string): string {
  return cleanText(text, 100);
}
