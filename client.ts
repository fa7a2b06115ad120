/**
 * One connection to a daemon as its user sees it: requests, answers, and the messages in between. Native framing. And what it is made of: a socket,
 * or the two ends of a command such as ssh, which may fail in ways of its own.
 */

import type { ChildProcessByStdio } from "node:child_process";
import { spawn } from "node:child_process";
import { lstatSync } from "node:fs";
import type { OnReadOpts, Socket } from "node:net";
import { connect } from "node:net";
import type { Duplex, Readable, Writable } from "node:stream";
import {
  callBack,
  cannot,
  defer,
  errnoError,
  errnoOf,
  errorCodes,
  exitCodes,
  Failure,
  osFailure,
  reasonOf,
  safely,
} from "./failure.ts";
import type { FrameDecoder } from "./frame.ts";
import { createFrameDecoder, encodeFrame } from "./frame.ts";
import type { Reason } from "./library.ts";
import { now, within } from "./record.ts";

/** A stream, exit, detached or lost message: whatever is not the answer to a request. */
export type Message = Record<string, unknown>;

export interface Client {
  /**
   * Sends a request and waits for its answer.
   *
   * @param auth A token, or a record's key; none after server.authenticate.
   * @param timeoutMs 0 waits for as long as the connection lives.
   * @param now Takes the result as it comes, before the messages that follow it: a promise tells it later.
   * @throws {Failure} The daemon's own error with its `code`; or "not answering", or "closed", with code -32010.
   */
  request(
    method: string,
    params: unknown,
    auth?: string,
    timeoutMs?: number,
    now?: (result: unknown) => void,
  ): Promise<unknown>;
  /** Called for each message that is no answer, in order. Messages before it is set are kept. */
  onMessage(listener: (message: Message) => void): void;
  /** Resolves when the connection has ended, whoever ended it. */
  readonly closed: Promise<void>;
  close(): void;
  /** Stops reading, and goes on. What is not read piles up at the daemon, which slows its processes or goes on without us. */
  setPaused(isPaused: boolean): void;
  /**
   * Ends the connection when it is silent: nothing for `silenceMs`, and no answer to a question within as long again.
   *
   * One that is not read is read for the question; `answered` is called then.
   */
  watch(silenceMs: number, answered: () => void): void;
  /** How many requests have no answer yet. */
  readonly waiting: number;
  /** Why it has ended; undefined as long as it has not. */
  readonly loss: Failure | undefined;
}

/** Where a connection's bytes come from and go to: one socket, or the two ends of a command. */
export interface Line {
  input: Readable;
  output: Writable;
  destroy(): void;
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
          if (lstatSync(path).uid !== process.getuid!()) throw errnoError("EACCES", "another user may have planted it");
          clearTimeout(timer);
          socket.removeAllListeners("error");
          done({ socket });
        } catch (error) {
          fail({ error: error as NodeJS.ErrnoException }); // or it has just gone
        }
      });
  });
}

/** What is made of a connection to a daemon that has ended, or is just ending, and hears nobody. */
export function refusedBy(socket: Socket): ConnectFailure {
  socket.destroy();
  return { error: errnoError("ECONNREFUSED", "the daemon is just ending") };
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
      data: { reason: "not-answering", timedOut: true },
    },
  );
}

const streamHead = '{"type":"stream",';
const dataMember = ',"data":"';

/** What a login shell or a banner may say before the first frame of a bridge. */
const maxNoiseBytes = 64 << 10;

/** When nothing can be written any more, the peer's last words are waited for. */
const lastWordsMs = 1000;

interface State {
  readonly line: Line;
  /** What it leads to, for words. */
  readonly path: string;
  readonly decoder: FrameDecoder;
  /** Requests without an answer, by id. */
  readonly waiting: Map<number, { resolve(result: unknown): void; reject(error: Failure): void }>;
  /** Messages that came before there was a listener. */
  readonly kept: Message[];
  listener: ((message: Message) => void) | undefined;
  lastId: number;
  /** What came before the first frame; undefined from then on. */
  noise: Buffer | undefined;
  /** The daemon's words for closing the connection: an error without an id. */
  refusal: string | undefined;
  /** Why it has ended; undefined as long as it has not. */
  loss: Failure | undefined;
  /** Nothing is read. */
  isPaused: boolean;
  /** When bytes came last, or could not come. */
  heardAt: number;
  /** The next look at how long that is ago. It keeps the process: a line that is not read does not. */
  timer: NodeJS.Timeout | undefined;
  /** Resolves `closed`. */
  end(): void;
}

/**
 * Speaks over a socket that is connected, or over the two ends of a command such as "ssh host node holdfast.js --bridge".
 *
 * Bytes before the first frame are not the daemon's: a frame begins with 0x00, words of a shell do not. They are skipped, and shown when no
 * frame follows.
 *
 * @param path What it leads to, for words only.
 */
export function createClient(line: Duplex | Line, path: string): Client {
  const { promise: closed, resolve: end } = defer<void>();
  const state: State = {
    line: "input" in line ? line : { input: line, output: line, destroy: () => line.destroy() },
    path,
    decoder: createFrameDecoder(),
    waiting: new Map(),
    kept: [],
    listener: undefined,
    lastId: 0,
    noise: Buffer.alloc(0),
    refusal: undefined,
    loss: undefined,
    isPaused: false,
    heardAt: now(),
    timer: undefined,
    end,
  };
  listen(state);
  return {
    closed,
    close: () => lose(state),
    onMessage: (listener) => setListener(state, listener),
    request: (...request) => sendRequest(state, ...request),
    setPaused: (isPaused) => setPaused(state, isPaused),
    watch: (...how) => watch(state, ...how),
    get waiting() {
      return state.waiting.size;
    },
    get loss() {
      return state.loss;
    },
  };
}

/** The end of either side is the end. Of two streams each tells its own, and not always by "close". */
function listen(state: State): void {
  const { input, output } = state.line;
  input
    .on("data", (chunk: Buffer) => takeChunk(state, chunk))
    .on("error", () => lose(state))
    .on("end", () => lose(state))
    .on("close", () => lose(state));
  const isDeaf = (): void => void setTimeout(lose, lastWordsMs, state).unref();
  if ((output as unknown) !== input) output.on("error", isDeaf).on("close", isDeaf);
}

function takeChunk(state: State, received: Buffer): void {
  state.heardAt = now();
  const chunk = state.noise ? skipNoise(state, state.noise, received) : received;
  for (const event of state.decoder.push(chunk)) {
    const message = "body" in event && safely(() => parseMessage(event.body));
    if (message) takeMessage(state, message);
    else lose(state); // a daemon never sends such a frame
  }
}

/** @returns What is the daemon's; often nothing yet. */
function skipNoise(state: State, noise: Buffer, chunk: Buffer): Buffer {
  const start = chunk.indexOf(0);
  state.noise = Buffer.concat([noise, start < 0 ? chunk : chunk.subarray(0, start)]);
  if (state.noise.length > maxNoiseBytes) lose(state);
  else if (start >= 0) state.noise = undefined;
  return state.noise ? Buffer.alloc(0) : chunk.subarray(start);
}

function takeMessage(state: State, message: Message): void {
  const entry = typeof message.id === "number" && !("type" in message) ? state.waiting.get(message.id) : undefined;
  if (!entry) {
    if (message.id === null) state.refusal = (message.error as Error | undefined)?.message;
    if (state.listener) state.listener(message);
    else state.kept.push(message);
    return;
  }
  state.waiting.delete(message.id as number);
  const error = message.error as { code: number; message: string; data?: Record<string, unknown> } | undefined;
  if (error === undefined) entry.resolve(message.result);
  else entry.reject(new Failure(error.message, { ...error, hint: error.data?.hint as string | undefined }));
}

function setListener(state: State, listener: (message: Message) => void): void {
  state.listener = listener;
  for (const message of state.kept.splice(0)) listener(message);
}

function sendRequest(
  state: State,
  method: string,
  params: unknown,
  auth?: string,
  timeoutMs = 0,
  now?: (result: unknown) => void,
): Promise<unknown> {
  const { loss, waiting, path } = state;
  if (loss) return Promise.reject(loss);
  const id = ++state.lastId;
  return new Promise((resolve, reject) => {
    const frame = encodeFrame(JSON.stringify({ jsonrpc: "2.0", id, method, params, auth }), "native"); // which may be too large
    const giveUp = (): void => {
      waiting.delete(id);
      reject(notAnswering(path, timeoutMs));
    };
    const timer = timeoutMs === 0 ? undefined : setTimeout(giveUp, timeoutMs);
    waiting.set(id, {
      resolve: (result) => {
        clearTimeout(timer);
        now?.(result);
        resolve(result);
      },
      reject: (error) => {
        clearTimeout(timer);
        reject(error);
      },
    });
    state.line.output.write(frame);
  });
}

function setPaused(state: State, isPaused: boolean): void {
  if (state.isPaused === isPaused || state.loss) return;
  state.isPaused = isPaused;
  state.heardAt = now();
  if (isPaused) state.line.input.pause();
  else state.line.input.resume();
}

/**
 * Asks for a word when nothing came for `silenceMs`, and ends the connection when nothing comes for as long again: a network that is gone says
 * nothing. Who was busy, or asleep, for longer than that asks anew.
 */
function watch(state: State, silenceMs: number, answered: () => void): void {
  let askedAt = -1;
  const look = (): void => {
    const at = now();
    const isSilent = at - state.heardAt >= silenceMs;
    const isUnanswered = askedAt > state.heardAt && at - askedAt < 1.5 * silenceMs;
    if (isSilent && isUnanswered && !state.isPaused) lose(state, silent(state.path, at - state.heardAt));
    if (state.loss) return;
    if (isSilent) {
      setPaused(state, false);
      askedAt = now();
      sendRequest(state, "server.ping", {}, undefined, 2 * silenceMs).then(answered, answered); // any answer will do
    }
    state.timer = setTimeout(look, isSilent ? silenceMs : silenceMs - (at - state.heardAt));
  };
  state.timer = setTimeout(look, silenceMs);
}

function silent(path: string, ms: number): Failure {
  return new Failure(`The connection to "${path}" is silent: nothing came for ${Math.round(ms / 100) / 10} s`, {
    code: errorCodes.noDaemon,
    exit: exitCodes.unavailable,
    hint: "connect again; the daemon is not known to be dead",
    data: { reason: "not-answering" },
  });
}

/** Ends the connection, once, whoever ended it: nothing stays without an answer. */
function lose(state: State, loss = lost(state)): void {
  if (state.loss) return;
  state.loss = loss;
  clearTimeout(state.timer);
  state.line.destroy();
  for (const { reject } of state.waiting.values()) reject(loss);
  state.waiting.clear();
  state.end();
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

function lost({ path, noise, refusal }: State): Failure {
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

// A command

/** Of what a command says on stderr the end is kept for the words of its failure. */
const maxStderrLength = 2000;
/** From the end of its output to its exit code. */
const exitMs = 1000;

export interface Command {
  /** As it was called, for words. */
  readonly name: string;
  readonly line: Line;
  /** The end of what it has said. */
  stderr: string;
  /** How it ended; undefined as long as it has not. */
  outcome: Outcome | undefined;
  /** Resolves when it has ended, and all its stderr is here. */
  readonly ended: Promise<Outcome>;
}

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** It could not be run. */
  error?: NodeJS.ErrnoException;
}

/** Runs a command whose stdin and stdout are a line. @throws {Failure} There is none. */
export function runCommand(words: string[], onStderr?: (text: string) => void): Command {
  const [program, ...args] = words;
  if (!program) throw cannot("run a command: it is empty, it must have a program");
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"] });
  child.stdin.on("error", () => {}); // it has ended, and says so
  const command: Command = {
    name: words.join(" "),
    line: { input: child.stdout, output: child.stdin, destroy: () => endCommand(child) },
    stderr: "",
    outcome: undefined,
    ended: new Promise((done) => {
      child.once("error", (error) => done({ code: null, signal: null, error }));
      child.once("close", (code, signal) => done({ code, signal }));
    }),
  };
  void command.ended.then((outcome) => (command.outcome = outcome));
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    command.stderr = (command.stderr + text).slice(-maxStderrLength);
    callBack(onStderr, text);
  });
  return command;
}

/** An ssh whose network is gone ends by a signal, not by the end of its stdin. */
function endCommand(child: ChildProcessByStdio<Writable, Readable, Readable>): void {
  child.stdout.destroy();
  child.stdin.destroy();
  child.kill();
  setTimeout(() => child.stderr.destroy(), exitMs).unref(); // which a child of its own may hold
}

/** @param failure What is known without the command: the connection has ended. */
export async function explainCommand(command: Command, failure: Failure): Promise<Failure> {
  const outcome = await within(command.ended, exitMs);
  const stderr = command.stderr.trim();
  const { reason, hint } = outcome ? diagnose(outcome, stderr) : {};
  const words = outcome ? outcomeWords(outcome) : failure.message;
  return cannot(`connect over "${command.name}": ${words}${stderr === "" ? "" : `: ${stderr}`}`, {
    code: errorCodes.noDaemon,
    exit: exitCodes.unavailable,
    cause: outcome?.error ?? failure,
    hint: hint ?? failure.hint,
    data: { ...failure.data, ...(reason ? { reason } : {}), stderr: command.stderr, exitCode: outcome?.code },
  });
}

export function outcomeWords({ code, signal, error }: Outcome): string {
  if (error) return reasonOf(error);
  return signal === null ? `it ended with exit code ${code}` : `it was ended by ${signal}`;
}

/** Of ssh's own failures, with its exit code 255: words on stderr, in the order in which they are looked for. */
const sshFailures: [RegExp, Reason, string][] = [
  [
    /host key verification failed|remote host identification has changed/i,
    "host-key",
    "compare the host's key with its administrator's, then: ssh-keygen -R HOST",
  ],
  [/could not resolve hostname/i, "no-such-host", "check the name, and Host in ~/.ssh/config"],
  [/no route to host|network is unreachable/i, "no-route", "check the network, or the VPN"],
  [/connection refused/i, "connection-refused", "check that sshd runs on the host, and its port"],
  [/timed out|timeout|not responding/i, "timed-out", "check the network, or a firewall between"],
  [
    /permission denied|too many authentication failures/i,
    "login-refused",
    "ssh-add, or ssh -v HOST says which keys it tried",
  ],
  [/connection (reset|closed)|broken pipe/i, "closed", "connect again"],
];

const runtimeNames = "['\"]?(node|nodejs|bun|deno)\\b['\"]?";
/** bash, dash, tcsh: "node: command not found"; zsh: "command not found: node"; fish: "Unknown command: node"; env: "'node': No such file or directory". */
const noRuntime = new RegExp(
  `there is no node|${runtimeNames}:.*(not found|no such file)|(not found|unknown command): ${runtimeNames}`,
  "i",
);
const noFile = /not found|no such file|cannot find module|cannot open|unknown command/i;

/** Names in one word what a command ended with. A host's shell says 127 for what it does not find, and 126 for what it may not run. */
export function diagnose({ code, error }: Outcome, stderr: string): { reason?: Reason; hint?: string } {
  if (error) return { reason: errnoOf(error) === "ENOENT" ? "no-command" : "command-failed" };
  if (code === 0) return {};
  if (code === null) return { reason: "closed", hint: "connect again" };
  if (code === 255) {
    const [, reason = "command-failed", hint] = sshFailures.find(([pattern]) => pattern.test(stderr)) ?? [];
    return { reason, hint };
  }
  if (code === 127 && noRuntime.test(stderr))
    return { reason: "no-runtime", hint: 'put a node (18 or later) beside the file on the host, named "node"' };
  if (noFile.test(stderr)) return { reason: "no-file", hint: "copy it there: deploy(), or scp holdfast.js HOST:" };
  if (code === 126) return { reason: "not-executable", hint: "run it by its shell: sh holdfast.js, or chmod +x it" };
  return { reason: "command-failed" };
}

/** What a promise comes to, unless it is given up before. */
export function withSignal<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  return new Promise<T>((resolve, reject) => {
    const abort = (): void => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** What a promise comes to, unless that takes longer than `timeoutMs`: 0 is for ever. */
export function withLimit<T>(promise: Promise<T>, timeoutMs: number, late: () => Failure): Promise<T> {
  if (timeoutMs === 0) return promise;
  return new Promise<T>((resolve, reject) => {
    const timer = setTimeout(() => reject(late()), timeoutMs);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
