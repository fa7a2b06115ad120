/**
 * A process as the application that started it sees it, over a connection that may come and go.
 *
 *     message -> queue -> onOutput, and each sink: an iterator, stdout, stderr
 *
 * What the application does not take stays in the queue. Once that is full the connection is not read (api.ts weighs it against what waits for an
 * answer), or, where nobody asks for the output or an answer is needed, later messages are let go and asked for again when the queue is empty: the
 * daemon holds them. `heldSeq` is where the next message joins, so nothing comes twice, whatever was asked for how often.
 */

import { randomBytes } from "node:crypto";
import { Readable, Writable } from "node:stream";
import type { Message } from "./client.ts";
import { withSignal } from "./client.ts";
import { callBack, cannot, defer, errorCodes, Failure } from "./failure.ts";
import type {
  CallOptions,
  Exit,
  Output,
  OutputOptions,
  ReattachOptions,
  RemoteProcess,
  RunOptions,
  RunResult,
  SpawnOptions,
} from "./library.ts";
import { asyncDispose } from "./library.ts";
import { sleep } from "./record.ts";

/** Of one process, output that was not taken: beyond it the connection is not read. */
export const fullBytes = 1 << 20;
/** Beyond this messages are let go, as the connection has to be read: for an answer, or for the others. */
const overflowBytes = 16 << 20;
/** What a message costs beside its data. */
const messageBytes = 200;
/** A stdin request carries this much, before base64. */
const stdinChunkBytes = 256 << 10;
const retryMs = 20;
/** A start that was refused is looked after again, at most so often: what is refused for good is not asked for ever. */
const maxStarts = 20;
/** What run() collects. */
const maxRunBytes = 16 << 20;

/** What a process needs of its connection. */
export interface Wire {
  /** Waits for the line where it is lost and will be dialled again. `now` takes the result before any message that follows it. */
  request(
    method: string,
    params: Record<string, unknown>,
    options?: CallOptions,
    now?: (result: unknown) => void,
  ): Promise<unknown>;
  /** From now on the messages of this id are this process's. */
  route(remote: Remote): void;
  unroute(remote: Remote): void;
  /** The queue of a process has grown or shrunk. */
  balance(): void;
  /** Whether a failed request may be made again on another line: resolves when that is there. Rejects when the connection has ended for good. */
  online(): Promise<void>;
  readonly mayReturn: boolean;
}

/** Where output goes that the application asked for. */
interface Sink {
  /** @returns Whether it takes more. */
  take(message: Message): boolean;
  /** @param failure Why no more comes; undefined at the process's end. */
  end(failure: Failure | undefined): void;
}

export interface Remote {
  readonly wire: Wire;
  /** Empty until the daemon has given it, where the application did not. */
  id: string;
  readonly options: OutputOptions & { share?: boolean };
  pid: number | undefined;
  /** What the application asked for: may be negative. */
  readonly fromSeq: number;
  /** Of the last message that the application was given. */
  lastSeq: number;
  /** Of the last message in the queue. -1: whatever comes next is the first. */
  heldSeq: number;
  queue: Message[];
  queuedBytes: number;
  /** What comes is let go. */
  isBehind: boolean;
  /** A reattach has no answer yet: what comes before it is of the stream before. */
  isFetching: boolean;
  isPumping: boolean;
  missed: number;
  readonly sinks: Set<Sink>;
  /** Those that take nothing now. */
  readonly full: Set<Sink>;
  readonly streams: { stdout?: Readable; stderr?: Readable; stdin?: Writable };
  /** Bytes of stdin that the daemon has taken; undefined where others may write, too. */
  stdinOffset: number | undefined;
  /** The last write, which the next one waits for. */
  writing: Promise<unknown>;
  /** It has an exit, or will have none. */
  isOver: boolean;
  /** Of its last message, once that is known. */
  endSeq: number | undefined;
  /** It is being ended for the application's reasons. */
  limit: { reason: unknown } | undefined;
  failure: Failure | undefined;
  readonly exit: Promise<Exit>;
  settle: { resolve(exit: Exit): void; reject(error: unknown): void };
}

function createRemote(wire: Wire, id: string, options: Remote["options"], fromSeq: number): Remote {
  const { promise: exit, ...settle } = defer<Exit>(); // who does not ask need not know
  return {
    wire,
    id,
    options,
    pid: undefined,
    fromSeq,
    lastSeq: Math.max(fromSeq, 0),
    heldSeq: Math.max(fromSeq, -1),
    queue: [],
    queuedBytes: 0,
    isBehind: false,
    isFetching: false,
    isPumping: false,
    missed: 0,
    sinks: new Set(),
    full: new Set(),
    streams: {},
    stdinOffset: options.share ? undefined : 0,
    writing: Promise.resolve(),
    isOver: false,
    endSeq: undefined,
    limit: undefined,
    failure: undefined,
    exit,
    settle,
  };
}

// How one begins

export async function spawnProcess(wire: Wire, options: SpawnOptions): Promise<Remote> {
  const { onOutput, onGap, lossless, signal, timeoutMs, id = "", ...params } = options; // without one the daemon gives it
  signal?.throwIfAborted();
  const remote = createRemote(wire, id, { onOutput, onGap, lossless }, 0);
  try {
    await withSignal(startProcess(remote, params), signal);
  } catch (error) {
    if (signal?.aborted) void wire.request("process.kill", { id, signal: "SIGTERM" }).catch(() => {}); // it may have been started
    throw error;
  }
  limitLife(remote, { signal, timeoutMs });
  return remote;
}

export function randomId(): string {
  return randomBytes(8).toString("hex");
}

/**
 * A line that is lost before the answer has come leaves open whether the process was started: the id tells. Or it is started in the very moment, by what
 * the old line still had; then a second start is refused.
 */
async function startProcess(remote: Remote, params: object): Promise<void> {
  const { wire, id } = remote;
  for (let attempt = 1; ; attempt++) {
    try {
      if (attempt === 1 || !(await isThere(remote))) await requestStart(remote, params);
      return;
    } catch (error) {
      const isRefused = (error as Failure).code === errorCodes.invalidParams && attempt > 1 && attempt < maxStarts;
      const isLost = isLoss(error) && wire.mayReturn && id !== "";
      if (!isLost && !isRefused) throw error;
    }
    await wire.online();
    await sleep(retryMs);
  }
}

async function isThere(remote: Remote): Promise<boolean> {
  try {
    await takeUp(remote, remote.wire.request);
    return true;
  } catch (error) {
    if ((error as Failure).reason === "not-found") return false;
    throw error;
  }
}

async function requestStart(remote: Remote, params: object): Promise<void> {
  const { wire, id, options } = remote;
  const start = { ...(id === "" ? {} : { id }), ...params, ...flagsOf(options) };
  await wire.request("process.spawn", start, {}, (answer) => {
    const { pid, id: given = id } = answer as { pid?: number; id?: string };
    Object.assign(remote, { pid, id: given });
    wire.route(remote);
  });
}

export async function reattachProcess(wire: Wire, id: string, options: ReattachOptions): Promise<Remote> {
  const { fromSeq = 0, signal, timeoutMs, onOutput, onGap, lossless, share } = options;
  const remote = createRemote(wire, id, { onOutput, onGap, lossless, share }, fromSeq);
  const ask: Wire["request"] = (method, params, _, now) => wire.request(method, params, { signal, timeoutMs }, now);
  const { stdinApplied } = await takeUp(remote, ask);
  if (!share) remote.stdinOffset = Number(stdinApplied) || 0;
  return remote;
}

export async function runProcess(wire: Wire, options: RunOptions): Promise<RunResult> {
  const { input, maxBytes = maxRunBytes, check, onOutput, ...rest } = options;
  const pieces = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] };
  let bytes = 0;
  const excess = defer<void>();
  const remote = await spawnProcess(wire, {
    ...rest,
    ...(input === undefined ? { stdin: "none" } : {}),
    onOutput(output) {
      bytes += output.data.length;
      if (bytes <= maxBytes) pieces[output.stream].push(output.data);
      else excess.resolve();
      callBack(onOutput, output);
    },
  });
  const process = processOf(remote);
  void excess.promise.then(() => process.terminate()).catch(() => {}); // output may have come together with the answer to its start
  if (input !== undefined) void Promise.all([process.write(input), process.end()]).catch(() => {}); // a process may end without reading all of it
  const exit = await process.exit;
  void wire.request("process.forget", { id: remote.id }).catch(() => {}); // an older daemon forgets it in time
  if (bytes > maxBytes) throw tooMuch(remote.id, maxBytes);
  const [stdoutBytes, stderrBytes] = [Buffer.concat(pieces.stdout), Buffer.concat(pieces.stderr)];
  const result = { ...exit, stdout: stdoutBytes.toString(), stderr: stderrBytes.toString(), stdoutBytes, stderrBytes };
  if (!check || exit.exitCode === 0) return result;
  const how =
    exit.exitCode === null ? `nobody knows how it ended: ${exit.reason}` : `it ended with exit code ${exit.exitCode}`;
  const said = result.stderr.trim().slice(-200);
  throw cannot(`run "${options.command}": ${how}${said && `: ${said}`}`, {
    data: { reason: "exit-code", result, exitCode: exit.exitCode, stderr: result.stderr.slice(-2000) },
  });
}

function tooMuch(id: string, maxBytes: number): Failure {
  const words = `Cannot collect the output of process "${id}": it has written more than ${maxBytes} bytes, which is the limit`;
  return new Failure(words, {
    data: { reason: "too-large" },
    hint: "raise maxBytes, or read it as it comes with spawn()",
  });
}

/** What the application gets. */
export function processOf(remote: Remote): RemoteProcess {
  const { wire, exit } = remote;
  const { id } = remote;
  const call = async (method: string, params: object, options?: CallOptions): Promise<unknown> =>
    wire.request(`process.${method}`, { id, ...params }, options);
  const terminate: RemoteProcess["terminate"] = async ({ graceMs = 3000, signal = "SIGTERM" } = {}) => {
    const answer = await call("killAndWait", { signal, timeoutMs: Math.max(1, graceMs) });
    return { died: (answer as { died: boolean }).died };
  };
  return {
    id,
    exit,
    get pid() {
      return remote.pid;
    },
    get lastSeq() {
      return remote.lastSeq;
    },
    get missed() {
      return remote.missed;
    },
    output: { [Symbol.asyncIterator]: () => iterate(remote) },
    get stdout() {
      return readableOf(remote, "stdout");
    },
    get stderr() {
      return readableOf(remote, "stderr");
    },
    get stdin() {
      return writableOf(remote);
    },
    write: (data, { signal } = {}) => writeStdin(remote, bytesOf(data), false, signal),
    end: () => writeStdin(remote, Buffer.alloc(0), true),
    kill: async (signal = "SIGTERM", options) => void (await call("kill", { signal }, options)),
    terminate,
    resize: async ({ rows, columns }, options) => void (await call("resize", { rows, columns }, options)),
    [asyncDispose]: async () => void (remote.isOver || (await terminate())),
  };
}

// Messages come in

export function takeMessage(remote: Remote, message: Message): void {
  if (message.type === "detached") detached(remote, String(message.by));
  else if (!remote.failure && !remote.isFetching && Number(message.seq) > remote.heldSeq) takeNext(remote, message);
}

function takeNext(remote: Remote, message: Message): void {
  const seq = Number(message.seq);
  const isExit = message.stream === "exit";
  if (remote.isBehind) {
    if (isExit) finish(remote, message);
    return;
  }
  if (remote.heldSeq >= 0) miss(remote, seq - 1);
  remote.heldSeq = seq;
  enqueue(remote, message);
  if (isExit) finish(remote, message);
  else if (remote.queuedBytes > (isWanted(remote) ? overflowBytes : fullBytes)) remote.isBehind = true;
  remote.wire.balance();
}

/** @param seq Up to it nothing will come that has not come. */
function miss(remote: Remote, seq: number): void {
  const messages = seq - remote.heldSeq;
  if (messages <= 0) return;
  remote.missed += messages;
  remote.heldSeq = seq;
  enqueue(remote, { stream: "gap", seq, messages });
}

function enqueue(remote: Remote, message: Message): void {
  remote.queue.push(message);
  remote.queuedBytes += costOf(message);
  pump(remote);
}

function costOf({ data }: Message): number {
  return messageBytes + (typeof data === "string" ? data.length : 0);
}

/** By the daemon, since we read too slowly: taken up again. By another connection: its process now. */
function detached(remote: Remote, by: string): void {
  if (by === "backpressure") return void fetchMore(remote);
  const words = `Another connection (${by}) has taken the output over; the process "${remote.id}" goes on`;
  fail(remote, new Failure(words, { data: { reason: "detached", lastSeq: remote.lastSeq } }));
}

/** Asks again for what comes after the queue. */
async function fetchMore(remote: Remote): Promise<void> {
  if (remote.isFetching) return;
  try {
    await takeUp(remote, remote.wire.request);
  } catch (error) {
    if (!isLoss(error) || !remote.wire.mayReturn) fail(remote, error as Failure);
  }
}

/**
 * Reattaches from where the queue ends.
 *
 * @param request That of the wire; or that of a line which is just being dialled.
 * @returns The answer, as it came.
 * @throws {Failure} There is no such process, or the line was lost.
 */
export async function takeUp(remote: Remote, request: Wire["request"]): Promise<Message> {
  const { id, options, heldSeq } = remote;
  const fromSeq = heldSeq < 0 ? remote.fromSeq : heldSeq;
  remote.isFetching = true;
  const now = (answer: unknown): void => takeAnswer(remote, answer as Message);
  try {
    const answer = (await request("process.reattach", { id, fromSeq, ...flagsOf(options) }, {}, now)) as Message;
    if (answer.found !== false) return answer;
  } finally {
    remote.isFetching = false;
  }
  const details = { data: { reason: "not-found" }, hint: "look for it with list(), or on the host with --list" };
  throw cannot(`reattach: no process has the id "${id}"`, details);
}

/** Only what is set: an older daemon knows neither. */
function flagsOf({ share, lossless }: Remote["options"]): object {
  return { ...(share ? { share } : {}), ...(lossless ? { lossless } : {}) };
}

function takeAnswer(remote: Remote, { found, running, firstSeq, lastSeq, ...exit }: Message): void {
  remote.isFetching = remote.isBehind = false;
  if (found === false) return;
  remote.wire.route(remote);
  if (remote.heldSeq >= 0) miss(remote, Number(firstSeq) - 1);
  if (running === false && Number(lastSeq) <= remote.heldSeq) finish(remote, { ...exit, seq: lastSeq }); // all of it has been seen: nothing follows
}

// Output goes out

function isWanted({ options, sinks }: Remote): boolean {
  return options.onOutput !== undefined || sinks.size > 0;
}

/** Whether its application is slower than what comes. */
export function isFull(remote: Remote): boolean {
  return remote.queuedBytes > fullBytes && isWanted(remote) && !remote.isBehind;
}

function pump(remote: Remote): void {
  const { queue, full } = remote;
  if (remote.isPumping || !isWanted(remote)) return;
  remote.isPumping = true;
  while (queue.length > 0 && full.size === 0) deliver(remote, queue.shift()!);
  remote.isPumping = false;
  if (queue.length > 0) return;
  if (remote.isBehind && !remote.failure) void fetchMore(remote);
  else if (remote.failure || remote.lastSeq === remote.endSeq) endSinks(remote);
}

function deliver(remote: Remote, message: Message): void {
  const { onOutput, onGap } = remote.options;
  remote.queuedBytes -= costOf(message);
  remote.lastSeq = Number(message.seq);
  const { stream, messages, maxBytes } = message as { stream: string; messages?: number; maxBytes?: number };
  if (stream === "gap") callBack(onGap, messages === undefined ? { maxBytes } : { messages });
  if (stream !== "stdout" && stream !== "stderr") return;
  if (onOutput) callBack(onOutput, outputOf(message));
  for (const sink of remote.sinks) if (!sink.take(message)) remote.full.add(sink);
}

function endSinks(remote: Remote): void {
  if (remote.full.size > 0) return;
  for (const sink of remote.sinks) sink.end(remote.failure);
  remote.sinks.clear();
}

function outputOf({ stream, data, seq }: Message): Output {
  return { stream: stream as Output["stream"], data: Buffer.from(String(data), "base64"), seq: Number(seq) };
}

function resume(remote: Remote, sink: Sink): void {
  remote.full.delete(sink);
  pump(remote);
  remote.wire.balance();
}

function removeSink(remote: Remote, sink: Sink): void {
  remote.sinks.delete(sink);
  resume(remote, sink);
}

/** One message at a time: what was not iterated over is not given, and a later reattach() brings it. */
async function* iterate(remote: Remote): AsyncGenerator<Output, void, undefined> {
  const inbox: Message[] = [];
  let end: { failure: Failure | undefined } | undefined;
  let wake = (): void => {};
  const sink: Sink = {
    take(message) {
      inbox.push(message);
      wake();
      return false;
    },
    end(failure) {
      end = { failure };
      wake();
    },
  };
  remote.sinks.add(sink);
  remote.full.add(sink); // until whoever else takes the output is there, too
  await new Promise(setImmediate);
  try {
    for (;;) {
      resume(remote, sink);
      while (inbox.length === 0 && !end) await new Promise<void>((done) => (wake = done));
      const message = inbox.shift();
      if (message) yield outputOf(message);
      else if (end?.failure) throw end.failure;
      else return;
    }
  } finally {
    removeSink(remote, sink);
  }
}

/**
 * A node stream of one output. It holds one message, so that little was given and not read when the connection is lost.
 *
 * Its error, then, is only for those who listen: an application that asks `exit` alone is not to be ended by it.
 */
function readableOf(remote: Remote, name: "stdout" | "stderr"): Readable {
  const known = remote.streams[name];
  if (known) return known;
  const stream = new Readable({
    highWaterMark: 1,
    read: () => resume(remote, sink),
    destroy(error, done) {
      removeSink(remote, sink);
      done(error);
    },
  });
  const sink: Sink = {
    take: (message) => message.stream !== name || stream.push(Buffer.from(String(message.data), "base64")),
    end(failure) {
      if (!failure) stream.push(null);
      // what was pushed is read first
      else setImmediate(() => stream.destroy(stream.listenerCount("error") > 0 ? failure : undefined));
    },
  };
  remote.sinks.add(sink);
  remote.streams[name] = stream;
  setImmediate(pump, remote); // when the other one has been asked for, too
  return stream;
}

// stdin

export function bytesOf(data: string | Uint8Array): Buffer {
  return typeof data === "string" ? Buffer.from(data) : Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

function writableOf(remote: Remote): Writable {
  const known = remote.streams.stdin;
  if (known) return known;
  const write = (data: Buffer, isEnd: boolean, done: (error?: Error) => void): void =>
    void writeStdin(remote, data, isEnd).then(() => done(), done);
  const stream = new Writable({
    highWaterMark: stdinChunkBytes,
    write: (chunk: Buffer, _, done) => write(chunk, false, done),
    final: (done) => write(Buffer.alloc(0), true, done),
  });
  stream.on("error", () => {}); // `exit` tells why; and who listens hears it, too
  remote.streams.stdin = stream;
  return stream;
}

async function writeStdin(remote: Remote, data: Buffer, isEnd: boolean, signal?: AbortSignal): Promise<void> {
  const before = remote.writing.catch(() => {});
  const written = before.then(async () => {
    for (let at = 0; at < data.length; at += stdinChunkBytes)
      await writePiece(remote, data.subarray(at, at + stdinChunkBytes), false, signal);
    if (isEnd) await writePiece(remote, data.subarray(data.length), true, signal);
  });
  remote.writing = written;
  await written;
}

/** Waits where the queue of the process is full. What was not answered when the line was lost is sent again: its offset says whether it had come. */
async function writePiece(remote: Remote, piece: Buffer, end: boolean, signal?: AbortSignal): Promise<void> {
  const { wire, id } = remote;
  for (;;) {
    signal?.throwIfAborted();
    const offset = remote.stdinOffset;
    const place = offset === undefined ? {} : { offset };
    try {
      const params = { id, data: piece.toString("base64"), ...place, ...(end ? { end } : {}) };
      await wire.request("process.stdin", params, { signal });
      if (offset !== undefined) remote.stdinOffset = offset + piece.length;
      return;
    } catch (error) {
      const { code } = error as Failure;
      if (code === errorCodes.stdinFull) await sleep(retryMs);
      else if (isLoss(error) && wire.mayReturn && offset !== undefined) await wire.online();
      else throw error;
    }
  }
}

// The end

/** Whether a request failed for want of a line, and not of time. */
export function isLoss(error: unknown): boolean {
  const { code, data } = error as Failure;
  return code === errorCodes.noDaemon && !data.timedOut;
}

function finish(remote: Remote, { exitCode, signal, killedBy, unknown, seq }: Message): void {
  remote.wire.unroute(remote);
  remote.isOver = true;
  remote.endSeq = Number(seq);
  const exit = { exitCode: unknown === undefined ? (exitCode ?? null) : null, signal, killedBy, reason: unknown };
  if (remote.limit) remote.settle.reject(remote.limit.reason);
  else remote.settle.resolve(JSON.parse(JSON.stringify(exit)) as Exit); // without what is undefined; of several ends the first counts
  pump(remote);
}

/** No more will come. What has come is given first. */
export function fail(remote: Remote, failure: Failure): void {
  if (remote.failure) return;
  remote.isOver = true;
  remote.failure = failure;
  remote.wire.unroute(remote);
  remote.settle.reject(failure); // unless it has ended
  pump(remote);
}

/** Ends a process for the application's own reasons: a signal that was aborted, a time limit. */
function limitLife(remote: Remote, { signal, timeoutMs = 0 }: CallOptions): void {
  const end = (reason: unknown): void => {
    const over = (): void => fail(remote, reason as Failure);
    remote.limit = { reason };
    processOf(remote).terminate().then(over, over);
  };
  const words = `Cannot wait for the process "${remote.id}": it has run for ${timeoutMs} ms, which is its limit`;
  const timeUp = (): void => end(new Failure(words, { data: { reason: "time-limit" } }));
  const timer = timeoutMs > 0 ? setTimeout(timeUp, timeoutMs) : undefined;
  const onAbort = (): void => end(signal!.reason);
  if (signal?.aborted) onAbort();
  else signal?.addEventListener("abort", onAbort);
  const done = (): void => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  };
  remote.exit.then(done, done);
}
