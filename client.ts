/** One connection to a daemon as its user sees it: requests, answers, and the messages in between. Native framing. */

import { lstatSync } from "node:fs";
import { connect } from "node:net";
import type { OnReadOpts, Socket } from "node:net";
import type { Duplex } from "node:stream";
import { errorCodes, exitCodes, Failure, osFailure } from "./failure.ts";
import { createFrameDecoder, encodeFrame } from "./frame.ts";

/** A stream, exit, detached or lost message: whatever is not the answer to a request. */
export type Message = Record<string, unknown>;

export interface Client {
  /**
   * Sends a request and waits for its answer.
   *
   * @param auth A token, or a record's key; none after server.authenticate.
   * @param timeoutMs 0 waits for as long as the connection lives.
   * @throws {Failure} The daemon's own error with its `code`; or "not answering", or "closed", with code -32010.
   */
  request(method: string, params: unknown, auth?: string, timeoutMs?: number): Promise<unknown>;
  /** Called for each message that is no answer, in order. Messages before it is set are kept. */
  onMessage(listener: (message: Message) => void): void;
  /** Resolves when the connection has ended, whoever ended it. */
  readonly closed: Promise<void>;
  close(): void;
}

/** How a connect attempt to a socket went. "timeout" is not dead: only not answering. */
export type ConnectOutcome = { socket: Socket } | ConnectFailure;
export type ConnectFailure = { error: NodeJS.ErrnoException } | { timedOut: true };

/**
 * Connects to a socket of our own user, bounded in time. Never rejects.
 *
 * @param onread Takes what comes in the place of "data" events, where the runtime can.
 */
export function tryConnect(path: string, timeoutMs: number, onread?: OnReadOpts): Promise<ConnectOutcome> {
  return new Promise((done) => {
    const socket = connect({ path, allowHalfOpen: true, onread });
    const fail = (failure: ConnectFailure): void => {
      clearTimeout(timer);
      socket.destroy();
      done(failure);
    };
    const timer = setTimeout(fail, timeoutMs, { timedOut: true });
    socket
      .once("error", (error) => fail({ error }))
      .once("connect", () => {
        try {
          // in /tmp whoever takes a free name would be sent tokens
          if (lstatSync(path).uid !== process.getuid!())
            throw Object.assign(new Error("EACCES: another user may have planted it"), { code: "EACCES" });
          clearTimeout(timer);
          socket.removeAllListeners("error");
          done({ socket });
        } catch (error) {
          fail({ error: error as NodeJS.ErrnoException }); // or it has just gone
        }
      });
  });
}

/**
 * Connects to a daemon's socket.
 *
 * @throws {Failure} It cannot be connected to: code -32010, `data.errno` of connect(2) where there is one.
 */
export async function connectClient(path: string, timeoutMs: number): Promise<Client> {
  const outcome = await tryConnect(path, timeoutMs);
  if ("socket" in outcome) return createClient(outcome.socket, path);
  if ("error" in outcome)
    throw osFailure(`connect to "${path}"`, outcome.error, { code: errorCodes.noDaemon, exit: exitCodes.unavailable });
  throw notAnswering(path, timeoutMs);
}

/**
 * Asks for any answer at all: a refusal is one.
 *
 * @throws {Failure} There was none.
 */
export async function proveAnswering(path: string, timeoutMs: number): Promise<void> {
  const client = await connectClient(path, timeoutMs);
  try {
    await client.request("server.ping", {}, "", timeoutMs).catch((error: Failure) => {
      if (error.code !== errorCodes.unauthorized) throw error;
    });
  } finally {
    client.close();
  }
}

function notAnswering(path: string, timeoutMs: number): Failure {
  return new Failure(
    `The daemon at "${path}" is not answering: no answer within ${timeoutMs / 1000} s. It is not known to be dead`,
    {
      code: errorCodes.noDaemon,
      exit: exitCodes.unavailable,
      data: { timedOut: true },
    },
  );
}

const streamHead = '{"type":"stream",';
const dataMember = ',"data":"';

/** What a login shell or a banner may say before the first frame of a bridge. */
const maxNoiseBytes = 64 << 10;

/**
 * Speaks over a socket that is connected, or over the two ends of a command such as "ssh host node holdfast.js --bridge".
 *
 * Bytes before the first frame are not the daemon's: a frame begins with 0x00, words of a shell do not. They are skipped, and shown when no
 * frame follows.
 *
 * @param path What it leads to, for words only.
 */
export function createClient(socket: Duplex, path: string): Client {
  const decoder = createFrameDecoder();
  const waiting = new Map<number, { resolve(result: unknown): void; reject(error: Failure): void }>();
  const kept: Message[] = [];
  let listener: ((message: Message) => void) | undefined;
  let lastId = 0;
  let ended = false;
  let noise: Buffer | undefined = Buffer.alloc(0); // until the first frame
  let refusal: string | undefined; // why the connection is about to be closed

  const closed = new Promise<void>((done) => {
    socket.on("close", () => {
      ended = true;
      for (const { reject } of waiting.values()) reject(lost(path, noise, refusal));
      waiting.clear();
      done();
    });
  });
  socket.on("error", () => {}); // "close" follows
  socket
    .on("end", () => socket.end())
    .on("data", (received: Buffer) => {
      let chunk = received;
      if (noise) {
        const start = chunk.indexOf(0);
        noise = Buffer.concat([noise, start < 0 ? chunk : chunk.subarray(0, start)]);
        if (noise.length > maxNoiseBytes) return void socket.destroy();
        if (start < 0) return;
        chunk = chunk.subarray(start);
        noise = undefined;
      }
      for (const event of decoder.push(chunk)) {
        if (!("body" in event)) return void socket.destroy(); // a daemon never sends such a frame
        take(parseMessage(event.body));
      }
    });

  function take(message: Message): void {
    const entry = typeof message.id === "number" && !("type" in message) ? waiting.get(message.id) : undefined;
    if (!entry) {
      if (message.id === null) refusal = (message.error as Error | undefined)?.message;
      if (listener) listener(message);
      else kept.push(message);
      return;
    }
    waiting.delete(message.id as number);
    const error = message.error as { code: number; message: string; data?: Record<string, unknown> } | undefined;
    if (error === undefined) entry.resolve(message.result);
    else entry.reject(new Failure(error.message, error));
  }

  return {
    closed,
    close: () => void socket.destroy(),
    onMessage(next) {
      listener = next;
      for (const message of kept.splice(0)) next(message);
    },
    request(method, params, auth, timeoutMs = 0) {
      if (ended) return Promise.reject(lost(path, noise, refusal));
      const id = ++lastId;
      return new Promise((resolve, reject) => {
        const timer =
          timeoutMs === 0
            ? undefined
            : setTimeout(() => {
                waiting.delete(id);
                reject(notAnswering(path, timeoutMs));
              }, timeoutMs);
        waiting.set(id, {
          resolve: (result) => (clearTimeout(timer), resolve(result)),
          reject: (error) => (clearTimeout(timer), reject(error)),
        });
        socket.write(encodeFrame(JSON.stringify({ jsonrpc: "2.0", id, method, params, auth }), "native"));
      });
    },
  };
}

/** The daemon puts a message's data last: base64 that JSON.parse need not look at (12 us of 44 for 32 KiB, with what it leaves to be collected 32). */
function parseMessage(body: Buffer): Message {
  const at = body.indexOf(dataMember) + dataMember.length;
  if (
    at < dataMember.length ||
    body.indexOf('"', at) !== body.length - 2 ||
    body.toString("latin1", 0, streamHead.length) !== streamHead
  )
    return JSON.parse(body.toString("utf8"));
  return { ...JSON.parse(`${body.toString("utf8", 0, at)}"}`), data: body.toString("latin1", at, body.length - 2) };
}

function lost(path: string, noise: Buffer | undefined, refusal: string | undefined): Failure {
  const details = { code: errorCodes.noDaemon, exit: exitCodes.unavailable };
  if (!noise || noise.length === 0)
    return new Failure(refusal || `The connection to "${path}" ended before the answer came`, details);
  const shown = JSON.stringify(noise.toString("utf8", 0, 200));
  return new Failure(
    `The connection to "${path}" ended before a frame came: it began with ${noise.length} bytes that are not the daemon's: ${shown}`,
    {
      ...details,
      hint: "a start-up file of the login shell prints them: --doctor on the host tells which",
    },
  );
}
