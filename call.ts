/** --call: one request from the shell. A process that it starts or takes up again is streamed until its exit. */

import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { connectClient } from "./client.ts";
import type { Client, Message } from "./client.ts";
import { absenceFailure, explainAbsence } from "./doctor.ts";
import { errorCodes, exitCodes, Failure } from "./failure.ts";
import { readRecord, readToken } from "./socket.ts";
import type { Places } from "./socket.ts";

const connectMs = 5000;

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
      process.stdout.write(JSON.stringify(await client.request(method, params, auth)) + "\n");
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
  let params: unknown;
  try {
    params = JSON.parse(text);
  } catch (error) {
    throw new Failure(`Cannot read PARAMS: ${(error as Error).message}, a JSON object is needed`, { exit: exitCodes.usage, hint: `quote it for the shell: '{"id":"a"}'` });
  }
  if (typeof params === "object" && params !== null && !Array.isArray(params)) return params as Record<string, unknown>;
  throw new Failure(`Cannot read PARAMS: it is ${JSON.stringify(params).slice(0, 50)}, a JSON object is needed`, { exit: exitCodes.usage });
}

async function stream(client: Client, method: string, params: Record<string, unknown>, auth: string): Promise<number> {
  const exit = new Promise<Message>((done) => {
    client.onMessage((message) => {
      if (message.processId !== params.id) return;
      if (message.stream === "stdout" || message.stream === "stderr") process[message.stream].write(Buffer.from(message.data as string, "base64"));
      else done(message);
    });
  });
  const result = (await client.request(method, params, auth)) as { found?: boolean; firstSeq?: number };
  if (result.found === false) throw new Failure(`Cannot reattach: no process has the id ${JSON.stringify(params.id)}`, { hint: "--call process.list" });
  const missing = (result.firstSeq ?? 0) - Number(params.fromSeq) - 1;
  if (missing > 0) process.stderr.write(`holdfast: ${missing} older messages are not held any more\n`);
  const last = await Promise.race([exit, client.closed]);
  if (last === undefined) throw new Failure("The connection ended; the process goes on", { exit: exitCodes.unavailable, hint: `--call process.reattach '{"id":${JSON.stringify(params.id)}}'` });
  if (last.stream !== "exit") throw new Failure(`Another connection (${String(last.by)}) has taken the output over; the process goes on`);
  return typeof last.signal === "string" ? 128 + (constants.signals[last.signal as NodeJS.Signals] ?? 0) : Number(last.exitCode);
}
