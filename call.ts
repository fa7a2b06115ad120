/** --call: one request from the shell. A process that it starts or takes up again is streamed until its exit. */

import { readFileSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { connectClient } from "./client.ts";
import type { Client, Message } from "./client.ts";
import { absenceFailure, explainAbsence } from "./doctor.ts";
import { cleanText, errnoOf, errorCodes, exitCodes, Failure, osFailure } from "./failure.ts";
import { readRecord, readToken } from "./socket.ts";
import type { Places } from "./socket.ts";

const connectMs = 5000;
/** How often a full pipe is tried that somebody has made non-blocking. */
const retryMs = 5;

/**
 * Connects to the daemon of a socket as the owner of its record, or with a token.
 *
 * @throws {Failure} There is no daemon, and why (exit code 69); or no way to authenticate (77).
 */
export async function connectOwned(places: Places, tokenFile: string | undefined): Promise<{ client: Client; auth: string }> {
  let client: Client;
  try {
    client = await connectClient(places.socket, connectMs);
  } catch (error) {
    const errno = (error as Failure).data?.errno;
    throw absenceFailure(explainAbsence(places, errno === undefined ? { timedOut: true } : { error: (error as Failure).cause as NodeJS.ErrnoException }));
  }
  if (tokenFile !== undefined) return { client, auth: await readToken(tokenFile) };
  const found = readRecord(places.record);
  if (found !== undefined && "record" in found) return { client, auth: found.record.key };
  client.close();
  throw new Failure(`Cannot authenticate: ${found === undefined ? `there is no record "${places.record}"` : found.problem}`, {
    exit: exitCodes.noPermission, hint: "give a token with --token-file",
  });
}

/**
 * Carries out one call.
 *
 * The result is printed as JSON; or, for process.spawn and process.reattach, the process's output is, on the streams it came from. When the
 * connection is lost the process goes on, and process.reattach takes it up again.
 *
 * @param paramsText JSON; "-" reads it from stdin.
 * @returns 0; or the exit code of the process, 128 and the signal's number when a signal ended it.
 */
export async function call(places: Places, method: string, paramsText: string | undefined, tokenFile: string | undefined): Promise<number> {
  const params = parseParams(paramsText === "-" ? readFileSync(0, "utf8") : paramsText ?? "{}");
  const { client, auth } = await connectOwned(places, tokenFile);
  try {
    if (method !== "process.spawn" && method !== "process.reattach") {
      print(1, cleanText(JSON.stringify(await client.request(method, params, auth))) + "\n");
      return exitCodes.done;
    }
    return await stream(client, method, method === "process.reattach" ? { fromSeq: 0, ...params } : params, auth);
  } catch (error) {
    if ((error as Failure).code !== errorCodes.unauthorized) throw error;
    throw new Failure((error as Failure).message, { exit: exitCodes.noPermission, hint: "give the daemon's token with --token-file" });
  } finally {
    client.close();
  }
}

function parseParams(text: string): Record<string, unknown> {
  const hint = `quote it for the shell: '{"id":"a"}'`;
  let params: unknown;
  try {
    params = JSON.parse(text);
  } catch (error) {
    throw new Failure(`Cannot read PARAMS: ${(error as Error).message}, a JSON object is needed`, { exit: exitCodes.usage, hint });
  }
  if (typeof params === "object" && params !== null && !Array.isArray(params)) return params as Record<string, unknown>;
  throw new Failure(`Cannot read PARAMS: it is ${JSON.stringify(params).slice(0, 50)}, a JSON object is needed`, { exit: exitCodes.usage, hint });
}

async function stream(client: Client, method: string, params: Record<string, unknown>, auth: string): Promise<number> {
  const { id } = params;
  let seenSeq = Number(params.fromSeq ?? 0);
  let finish: (last: Message) => void;
  let last = new Promise<Message>((done) => (finish = done));
  const takeUp = `--call process.reattach '${JSON.stringify({ id }).replaceAll("'", "'\\''")}'`;
  let stop: (error: unknown) => void;
  const broken = new Promise<never>((_, fail) => (stop = fail));
  broken.catch(() => {}); // also when nobody waits for it any more
  client.onMessage((message) => {
    if (message.processId !== id) return;
    if (message.stream !== "stdout" && message.stream !== "stderr") return finish(message);
    seenSeq = Number(message.seq);
    try {
      print(message.stream === "stdout" ? 1 : 2, Buffer.from(message.data as string, "base64"));
    } catch (error) {
      stop(new Failure(`${(error as Failure).message}; the process goes on`, { cause: error, hint: takeUp }));
    }
  });
  for (;;) {
    const result = (await client.request(method, params, auth)) as ReattachResult;
    if (result.found === false) throw new Failure(`Cannot reattach: no process has the id ${JSON.stringify(id)}`, { hint: "--call process.list" });
    const fromSeq = Number(params.fromSeq); // seenSeq may be further: messages that came along with the answer
    if (result.firstSeq !== undefined && result.firstSeq > fromSeq + 1) print(2, `holdfast: ${result.firstSeq - fromSeq - 1} older messages are not held any more\n`);
    if (result.running === false && result.lastSeq === fromSeq) return exitCodeOf(result); // all of it was seen: nothing follows
    const end = await Promise.race([last, client.closed, broken]);
    if (end === undefined) throw new Failure("The connection ended; the process goes on", { exit: exitCodes.unavailable, hint: takeUp });
    if (end.stream === "exit") return exitCodeOf(end);
    if (end.by !== "backpressure") throw new Failure(`Another connection (${String(end.by)}) has taken the output over; the process goes on`, { hint: takeUp });
    // our own stdout was not read for so long that the daemon went on without us
    last = new Promise((done) => (finish = done));
    [method, params] = ["process.reattach", { id, fromSeq: seenSeq }];
  }
}

/** process.spawn answers none of these. */
interface ReattachResult {
  found?: boolean;
  running?: boolean;
  firstSeq?: number;
  lastSeq?: number;
  exitCode?: number;
  signal?: string;
}

function exitCodeOf({ exitCode, signal }: ReattachResult | Message): number {
  return typeof signal === "string" ? 128 + (constants.signals[signal as NodeJS.Signals] ?? 0) : Number(exitCode);
}

/**
 * Writes all of it before it returns. Where nobody reads, the daemon is not read from either: it slows the process, or goes on without us. Had
 * process.stdout been written to, all output would pile up here.
 */
function print(fd: 1 | 2, output: string | Buffer): void {
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
