/** --call: one request from the shell. A process that it starts or takes up again is streamed until its exit. */

import { readFileSync, writeSync } from "node:fs";
import { createConnection } from "./api.ts";
import type { Output, RemoteProcess } from "./api.ts";
import type { Client } from "./client.ts";
import { connectOwned } from "./control.ts";
import { cannot, cleanText, errnoOf, errorCodes, exitCodes, Failure, osFailure } from "./failure.ts";
import { isObject } from "./rpc.ts";
import { safely } from "./socket.ts";
import type { Places } from "./socket.ts";

/** How often a full pipe is tried that somebody has made non-blocking. */
const retryMs = 5;

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
  const params = parseParams(paramsText === "-" ? readFileSync(0, "utf8") : (paramsText ?? "{}"));
  const { client, auth } = await connectOwned(places, tokenFile);
  try {
    if (method !== "process.spawn" && method !== "process.reattach") {
      print(1, cleanText(JSON.stringify(await client.request(method, params, auth))) + "\n");
      return exitCodes.done;
    }
    await client.request("server.authenticate", { token: auth });
    return await stream(client, method, params);
  } catch (error) {
    if ((error as Failure).code !== errorCodes.unauthorized) throw error;
    throw new Failure((error as Failure).message, {
      exit: exitCodes.noPermission,
      hint: "give the daemon's token with --token-file",
    });
  } finally {
    client.close();
  }
}

function parseParams(text: string): Record<string, unknown> {
  const params = safely((): unknown => JSON.parse(text));
  if (isObject(params)) return params;
  throw cannot(`read PARAMS: it is ${JSON.stringify(text.slice(0, 50))}, a JSON object is needed`, {
    exit: exitCodes.usage,
    hint: `quote it for the shell: '{"id":"a"}'`,
  });
}

/** @returns The exit code of the process. */
async function stream(
  client: Client,
  method: string,
  { id, fromSeq, ...params }: Record<string, any>,
): Promise<number> {
  const connection = createConnection(client, {}, () => {});
  const takeUp = `--call process.reattach '${JSON.stringify({ id }).replaceAll("'", "'\\''")}'`;
  let told = 0;
  const tellMissed = ({ missed }: RemoteProcess): void => {
    if (missed > told) print(2, `holdfast: ${missed - told} older messages are not held any more\n`);
    told = missed;
  };
  let stop: (error: unknown) => void;
  const broken = new Promise<never>((_, fail) => (stop = fail));
  broken.catch(() => {}); // also when nobody waits for it any more
  const onOutput = ({ stream: name, data }: Output): void => {
    try {
      print(name === "stdout" ? 1 : 2, data);
    } catch (error) {
      stop(new Failure(`${(error as Error).message}; the process goes on`, { cause: error }));
    }
  };
  const remote = await (method === "process.spawn"
    ? connection.spawn({ id, command: "", ...params, onOutput })
    : connection.reattach(id, { fromSeq, onOutput }));
  try {
    tellMissed(remote);
    const { exitCode } = await Promise.race([remote.exit, broken]);
    tellMissed(remote); // of what came while nobody read our own stdout for so long that the daemon went on without us
    return exitCode;
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
function print(fd: 1 | 2, output: string | Uint8Array): void {
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
