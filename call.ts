/** One request from the shell: --call, which streams a process that it starts or takes up again, and --status; what --list shows; and printing, with nothing lost. */

import { createWriteStream, fstatSync, readFileSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import type { Writable } from "node:stream";
import { isatty } from "node:tty";
import { keptWords } from "./adoption.ts";
import { createConnection } from "./api.ts";
import type { Client } from "./client.ts";
import {
  cannot,
  cleanText,
  clockWords,
  defer,
  durationWords,
  errnoOf,
  errorCodes,
  exitCodes,
  Failure,
  nearest,
  osFailure,
  quoteWord,
  safely,
  sizeWords,
} from "./failure.ts";
import type { Output, RemoteProcess } from "./library.ts";
import type { Lifetime } from "./lifetime.ts";
import type { ChildSummary, Summary } from "./processes.ts";
import { answerMs, connectOwned } from "./reach.ts";
import { isObject } from "./rpc.ts";
import type { Places } from "./socket.ts";

/** How often a full pipe is tried that somebody has made non-blocking. */
const retryMs = 5;

// --call

/**
 * Carries out one call.
 *
 * The result is printed as JSON; or, for process.spawn and process.reattach, the process's output is, on the streams it came from. When the
 * connection is lost the process goes on, and process.reattach takes it up again.
 *
 * @param paramsText JSON; "-" reads it from stdin.
 * @returns 0; or the exit code of the process, 128 and the signal's number when a signal ended it.
 */
export async function call(
  places: Places,
  method: string,
  paramsText: string | undefined,
  tokenFile: string | undefined,
): Promise<number> {
  const params = parseParams(paramsText === "-" ? readParams() : (paramsText ?? "{}"));
  const { client, auth } = await connectOwned(places, tokenFile);
  try {
    await client.request("server.authenticate", { token: auth }); // first of all: what a stranger may send is little
    if (method === "process.spawn" || method === "process.reattach") return await stream(client, method, params);
    return say(jsonLine(await client.request(method, params)));
  } catch (error) {
    throw await explainRefusal(client, method, error as Failure);
  } finally {
    client.close();
  }
}

async function explainRefusal(client: Client, method: string, error: Failure): Promise<Failure> {
  const { message, code, data } = error;
  if (code === errorCodes.unauthorized)
    return new Failure(message, { exit: exitCodes.noPermission, hint: "give the daemon's token with --token-file" });
  if (code !== errorCodes.unknownMethod) return error;
  const known = (await client.request("server.capabilities", {}).catch(() => ({}))) as { methods?: string[] };
  const near = nearest(method, known.methods ?? []);
  return new Failure(message, {
    code,
    data,
    hint: near ? `did you mean ${near}?` : "see the methods of --call server.capabilities",
  });
}

/** All of stdin. What is not UTF-8 would name another file. */
function readParams(): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(0));
  } catch (error) {
    if (errnoOf(error) === undefined) throw cannot("read PARAMS: they are not UTF-8", { exit: exitCodes.usage });
    throw osFailure("read PARAMS from stdin", error);
  }
}

function parseParams(text: string): Record<string, unknown> {
  const params = safely((): unknown => JSON.parse(text.replace(/^\ufeff/, ""))); // a BOM, of a file from Windows
  if (isObject(params)) return params;
  throw cannot(`read PARAMS: it is ${JSON.stringify(text.slice(0, 50))}, a JSON object is needed`, {
    exit: exitCodes.usage,
    hint: `quote it for the shell: '{"id":"a"}'`,
  });
}

/** @returns The exit code of the process. */
async function stream(client: Client, method: string, given: Record<string, unknown>): Promise<number> {
  const { id, fromSeq, ...params } = given as { id: string; fromSeq?: number };
  const connection = createConnection(client);
  const takeUp = `--call process.reattach ${quoteWord(JSON.stringify({ id }))}`;
  let told = 0;
  const tellMissed = ({ missed }: RemoteProcess): void => {
    if (missed > told) print(2, `holdfast: ${missed - told} older messages are not held any more\n`);
    told = missed;
  };
  const broken = defer<never>();
  const onOutput = ({ stream: name, data }: Output): void => {
    try {
      print(name === "stdout" ? 1 : 2, data);
    } catch (error) {
      broken.reject(new Failure(`${(error as Error).message}; the process goes on`, { cause: error }));
    }
  };
  const remote = await (method === "process.spawn"
    ? connection.spawn({ id, command: "", ...params, onOutput })
    : connection.reattach(id, { fromSeq, onOutput }));
  try {
    tellMissed(remote);
    const { exitCode } = await Promise.race([remote.exit, broken.promise]);
    tellMissed(remote); // of what came while nobody read our own stdout for so long that the daemon went on without us
    return exitCode ?? exitCodes.failed;
  } catch (error) {
    const { message, code } = error as Failure;
    throw new Failure(message, {
      exit: code === errorCodes.noDaemon ? exitCodes.unavailable : exitCodes.failed,
      hint: takeUp,
      cause: error,
    });
  }
}

/**
 * Writes all of it before it returns. Where nobody reads, the daemon is not read from either: it slows the process, or goes on without us. Had
 * process.stdout been written to, all output would pile up here.
 */
export function print(fd: 1 | 2, output: string | Uint8Array): void {
  const bytes = Buffer.from(output as string);
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      if (errnoOf(error) !== "EAGAIN") throw osFailure("write the output", error);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, retryMs);
    }
  }
}

/** Prints the answer of a mode. To somebody who has stopped reading there is nothing to say; a full disk is told. */
export function say(words: string): number {
  try {
    print(1, words);
  } catch (error) {
    if ((error as Failure).errno !== "EPIPE") throw error;
  }
  return exitCodes.done;
}

/** A word in colour, where it goes to a terminal that has colours, and nobody has asked for none (no-color.org). */
export function inColour(fd: 1 | 2, colour: number, word: string): string {
  const { NO_COLOR, TERM } = process.env;
  return word !== "" && isatty(fd) && !NO_COLOR && TERM !== "dumb" ? `\x1b[${colour}m${word}\x1b[0m` : word;
}

/** An answer as JSON, on one line. */
export function jsonLine(answer: unknown): string {
  return `${cleanText(JSON.stringify(answer))}\n`;
}

/**
 * Opens a descriptor of ours for writing.
 *
 * Not process.stdout: whether its writes to a pipe block is left to the runtime. If they did, a client that writes much before it reads would stop both
 * directions for good.
 */
export function openOutput(fd: 1 | 2): Writable {
  const stats = fstatSync(fd);
  // never closed: libuv aborts where one of its own pipes, which took this number then, is
  if (!stats.isFIFO() && !stats.isSocket()) return createWriteStream("", { fd, autoClose: false });
  return new Socket({ fd, readable: false, writable: true });
}

// --status

/** So many processes are listed; of more, only how many. */
const maxListed = 12;

interface Status extends Summary {
  version: string;
  instanceId: string;
  startedAt: number;
  pid: number;
  uptimeMs: number;
  /** Undefined where there is no /proc. */
  rssBytes?: number;
  connections: number;
  log: string;
  socket: string;
  lifetime: Lifetime;
  /** Left out where there is no logind to tell. */
  logoutsOutlived?: number;
}

/** Asks the daemon and prints the answer. Returns the exit code. */
export async function printStatus(places: Places, json: boolean, say: (text: string) => number): Promise<number> {
  const { client, auth } = await connectOwned(places);
  try {
    const status = (await client.request("server.status", {}, auth, answerMs)) as Status;
    return say(json ? jsonLine(status) : statusWords(status));
  } finally {
    client.close();
  }
}

function statusWords(status: Status): string {
  const { lifetime, processes } = status;
  const running = processes.filter((entry) => entry.running).length;
  const rows: [string, string][] = [
    ["daemon", `holdfast ${status.version}, pid ${status.pid}, instance ${status.instanceId}`],
    ["up", `${durationWords(status.uptimeMs)}, started ${clockWords(status.startedAt)}`],
    ["lives", lifetime.where],
    ["survives logout", lifetime.words],
    ...outlivedWords(status),
    ...lifetime.warnings.flatMap(({ message, hint }): [string, string][] => [
      ["warning", message],
      ["hint", hint],
    ]),
    ["connections", String(status.connections)],
    ["memory", status.rssBytes === undefined ? "unknown" : sizeWords(status.rssBytes)],
    ["socket", status.socket],
    ["log", status.log],
    ["processes", `${running} running, ${processes.length - running} ended`],
    ...keptWords(status),
  ];
  const listed = [...processes].sort((a, b) => Number(b.running) - Number(a.running)).slice(0, maxListed);
  const lines = rows.map(([name, text]) => `${name.padEnd(16)}${cleanText(text, 1000)}`);
  for (const entry of listed) lines.push(`  ${cleanText(entry.id, 24).padEnd(24)} ${processWords(entry)}`);
  if (processes.length > listed.length)
    lines.push(`  and ${processes.length - listed.length} more: --call process.list`);
  return `${lines.join("\n")}\n`;
}

function outlivedWords({ logoutsOutlived: count }: Status): [string, string][] {
  return count === undefined ? [] : [["outlived", `${count} ${count === 1 ? "logout" : "logouts"} so far`]];
}

function processWords({ pid, command, running, bytes, ageMs }: ChildSummary): string {
  return `${(running ? `pid ${pid}` : "ended").padEnd(12)} ${durationWords(ageMs).padEnd(8)} ${sizeWords(bytes).padStart(9)}  ${cleanText(command, 40)}`;
}

// --list

/** A row of process.list. */
export interface Listed {
  id: string;
  command: string;
  args: string[];
  pid: number;
  running: boolean;
  startedAt: number;
  bytes: number;
  exitCode?: number;
  signal?: string;
}

export function listWords(processes: Listed[]): string {
  const head = ["ID", "STATE", "PID", "AGE", "SIZE", "COMMAND"];
  const rows = processes.map(({ id, command, args, pid, running, startedAt, bytes, ...exit }) => {
    const state = running ? "running" : (exit.signal ?? `exit ${exit.exitCode}`);
    const words = [command, ...args].map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : JSON.stringify(word)));
    return [id, state, String(pid), durationWords(Date.now() - startedAt), sizeWords(bytes), words.join(" ")];
  });
  const table = [head, ...rows].map((row) => row.map((text) => cleanText(text)));
  const widths = head.map((_, at) => Math.max(...table.map((row) => row[at]!.length)));
  return table
    .map((row) => `${row.map((text, at) => (at === 5 ? text : text.padEnd(widths[at]!))).join("  ")}\n`)
    .join("");
}
