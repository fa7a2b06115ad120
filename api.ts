/**
 * connect() and serve(): for applications in JavaScript that start daemons, connect to them, and run processes there. What each member means
 * stands in library.ts.
 *
 * A connection is a session that has a line, or is getting one. The line ends: all that waits for an answer is told so; then, with `reconnect`, the
 * session dials again, takes its processes up where their queues end, and only then carries out what has waited. Without it, or when that is given
 * up, the session is over, and everything that still waits is told why.
 */

import type { Client, Command, Message } from "./client.ts";
import { connectClient, createClient, explainCommand, runCommand, withLimit, withSignal } from "./client.ts";
import { startServer } from "./control.ts";
import type { Deferred } from "./failure.ts";
import { callBack, cannot, defer, errorCodes, Failure } from "./failure.ts";
import type {
  CallOptions,
  Connection,
  ConnectionEvents,
  ConnectOptions,
  FileEntry,
  FileStat,
  Files,
  HostPath,
  Loss,
  ProcessSummary,
  Served,
  ServeOptions,
  Status,
} from "./library.ts";
import { asyncDispose } from "./library.ts";
import { daemonCommand, version } from "./program.ts";
import { connectOwned } from "./reach.ts";
import { now, within } from "./record.ts";
import type { Remote, Wire } from "./remote.ts";
import {
  bytesOf,
  fail,
  isFull,
  isLoss,
  processOf,
  randomId,
  reattachProcess,
  runProcess,
  spawnProcess,
  takeMessage,
  takeUp,
} from "./remote.ts";
import { hashToken, makeRunDirectory, ownToken, placesOf } from "./socket.ts";

const connectMs = 20_000;
const requestMs = 60_000;
const defaultHeartbeatMs = 15_000;
const minDelayMs = 500;
const maxDelayMs = 30_000;

/** What no other attempt mends. */
const finalReasons = [
  "host-key",
  "login-refused",
  "no-runtime",
  "no-file",
  "not-executable",
  "no-command",
  "permission",
];

/**
 * Starts a daemon on this machine, or joins the one that runs: what --serve does.
 *
 * The daemon is holdfast.js, run by the runtime of this process, without its flags.
 *
 * @throws {HoldfastError} Why it could not be started.
 */
export async function serve(options: ServeOptions = {}): Promise<Served> {
  const places = placesOf({ socket: options.socket, log: options.log });
  if (options.token === undefined) makeRunDirectory(places.directory);
  const started = await startServer({
    places,
    tokenHashes: [hashToken(options.token ?? ownToken(places.token))],
    launch: options.lifetime || "auto",
    enableLinger: options.enableLinger === true,
    replace: options.replace === true,
    command: daemonCommand(places, { program: options.program }),
    version: version(),
    progress: () => {},
  });
  const { pid, instance, version: running, how, lifetime } = started;
  const { socket, log, token: tokenFile } = places;
  const served = { socket, pid, instance, version: running, how, lifetime, log };
  return options.token === undefined ? { ...served, tokenFile } : served;
}

/**
 * Connects to a daemon, by its socket or over a command, and authenticates.
 *
 * @throws {HoldfastError} There is no daemon and why, the token is refused, or the command failed and what it said.
 */
export async function connect(options: ConnectOptions = {}): Promise<Connection> {
  options.signal?.throwIfAborted();
  const session = createSession(options);
  await withSignal(open(session), options.signal).catch((error) => {
    over(session, { reason: "closed-here", message: "It was given up" });
    throw error;
  });
  return connectionOf(session);
}

/** @internal A connection over a client that is there already, and has authenticated. */
export function createConnection(client: Client): Connection {
  const session = createSession({ requestTimeoutMs: 0, heartbeatMs: 0 });
  useLine(session, { client, auth: undefined, command: undefined }, {});
  return connectionOf(session);
}

// A session

/** A client, and what it was reached over. */
interface Line {
  client: Client;
  /** A token, or the key of a record; undefined where the other side has it. */
  auth: string | undefined;
  command: Command | undefined;
}

interface Session {
  readonly options: ConnectOptions;
  /** Undefined while there is none. */
  line: Line | undefined;
  capabilities: Message;
  /** Processes whose messages come here, by id. */
  readonly remotes: Map<string, Remote>;
  readonly listeners: Map<keyof ConnectionEvents, ((details: never) => void)[]>;
  /** Resolves with the next line, for those who wait for it; rejects when there will be none. */
  next: Deferred<void>;
  /** One that is not ready yet. */
  dialling: Line | undefined;
  /** What a bridge has said of its daemon's end. */
  lost: Message | undefined;
  /** It has ended for good. */
  loss: Loss | undefined;
  readonly wire: Wire;
  readonly closed: Promise<Loss>;
  close(loss: Loss): void;
}

function createSession(options: ConnectOptions): Session {
  const { promise: closed, resolve: close } = defer<Loss>();
  const session: Session = {
    options,
    line: undefined,
    capabilities: {},
    remotes: new Map(),
    listeners: new Map(),
    next: defer(),
    dialling: undefined,
    lost: undefined,
    loss: undefined,
    wire: {
      mayReturn: Boolean(options.reconnect),
      request: (...call) => request(session, ...call),
      route: (remote) => route(session, remote),
      unroute: (remote) => unroute(session, remote),
      balance: () => balance(session),
      online: () => (session.line ? Promise.resolve() : session.next.promise),
    },
    closed,
    close,
  };
  return session;
}

function emit<E extends keyof ConnectionEvents>(session: Session, event: E, details: ConnectionEvents[E]): void {
  for (const listener of session.listeners.get(event) ?? [])
    callBack(listener as (details: ConnectionEvents[E]) => void, details);
}

// Dialling

/** Gets a line, authenticates, and asks what is there. */
async function open(session: Session): Promise<void> {
  const { timeoutMs = connectMs } = session.options;
  const line = await dial(session.options, timeoutMs);
  const { client, auth: token, command } = line;
  session.dialling = line;
  try {
    if (session.loss) throw lossFailure(session.loss); // closed meanwhile
    const ask = (method: string, params: object): Promise<unknown> =>
      client.request(method, params, undefined, timeoutMs);
    const [, capabilities] = await Promise.all([
      token === undefined ? undefined : ask("server.authenticate", { token }),
      ask("server.capabilities", {}),
    ]);
    await takeUpAll(session, line);
    useLine(session, line, capabilities as Message);
  } catch (error) {
    client.close();
    const failure = error as Failure;
    if (failure.code === errorCodes.unauthorized) throw refused(failure);
    if (!command || failure.code !== errorCodes.noDaemon || failure.reason) throw failure;
    throw await explainCommand(command, failure);
  } finally {
    session.dialling = undefined;
  }
}

function refused({ message, code, hint, data }: Failure): Failure {
  return new Failure(message, {
    code,
    hint: hint ?? "give the daemon's token",
    data: { ...data, reason: "unauthorized" },
  });
}

async function dial({ socket, command: words, token, onStderr }: ConnectOptions, timeoutMs: number): Promise<Line> {
  if (words) {
    const command = runCommand(words, onStderr);
    const client = createClient(command.line, command.name);
    void command.ended.then(({ error }) => error && client.close());
    return { client, auth: token, command };
  }
  const places = placesOf({ socket });
  if (token === undefined) return { ...(await connectOwned(places)), command: undefined };
  return { client: await connectClient(places.socket, timeoutMs || connectMs), auth: token, command: undefined };
}

function useLine(session: Session, line: Line, capabilities: Message): void {
  const { heartbeatMs: silenceMs = defaultHeartbeatMs } = session.options;
  session.line = line;
  session.lost = undefined;
  session.capabilities = capabilities;
  line.client.onMessage((message) => takeLineMessage(session, message));
  if (silenceMs > 0) line.client.watch(silenceMs, () => balance(session));
  session.next.resolve();
  session.next = defer();
  void line.client.closed.then(() => onLineEnd(session, line));
}

function takeLineMessage(session: Session, message: Message): void {
  if (message.type === "bridge" && message.event === "lost") session.lost = message;
  const remote = session.remotes.get(String(message.processId));
  if (remote) takeMessage(remote, message);
}

/** Before anything else is said over a new line: what a process writes next is to find its place. */
async function takeUpAll(session: Session, { client }: Line): Promise<void> {
  client.onMessage((message) => takeLineMessage(session, message));
  const ask: Wire["request"] = (method, params, _, now) => client.request(method, params, undefined, requestMs, now);
  const takenUp = [...session.remotes.values()].map((remote) =>
    takeUp(remote, ask).catch((error: Failure) => {
      if (isLoss(error)) throw error;
      fail(remote, error);
    }),
  );
  await Promise.all(takenUp);
}

// The end of a line

async function onLineEnd(session: Session, line: Line): Promise<void> {
  if (session.line !== line) return;
  session.line = undefined;
  const loss = await explainLoss(session, line);
  if (session.loss) return;
  if (!session.options.reconnect) return over(session, loss);
  emit(session, "lost", loss);
  await redial(session, loss);
}

async function explainLoss({ lost }: Session, { client, command }: Line): Promise<Loss> {
  const known = lost as { reason: string; message: string; hint?: string } | undefined;
  if (known) {
    const { reason, message, hint } = known;
    return lossOf(new Failure(message, { code: errorCodes.noDaemon, hint, data: { reason } }));
  }
  const failure = client.loss!;
  if (command && !failure.reason) return lossOf(await explainCommand(command, failure));
  return lossOf(failure);
}

function lossOf(error: Failure): Loss {
  const { message, hint, reason = "closed" } = error;
  return { reason, message, ...(hint ? { hint } : {}), error };
}

function lossFailure({ reason, message, hint, error }: Loss): Failure {
  return new Failure(message, {
    code: errorCodes.noDaemon,
    hint,
    cause: error,
    data: { ...error?.data, reason },
  });
}

/** Dials until there is a line, or no reason to go on. */
async function redial(session: Session, first: Loss): Promise<void> {
  const { reconnect } = session.options;
  const { giveUpAfterMs = 0, ...delays } = reconnect === true ? {} : reconnect || {};
  const { instanceId } = session.capabilities;
  const lostAt = now();
  let loss = first;
  for (let attempt = 1; !isFinal(loss); attempt++) {
    await within(session.closed, delayOf(attempt, delays)); // a pause that close() ends
    if (session.loss) return;
    try {
      await open(session);
      const found = String(session.capabilities.instanceId);
      return emit(session, "reconnected", { attempt, instanceId: found, sameDaemon: found === instanceId });
    } catch (error) {
      loss = lossOf(error as Failure);
      if (session.loss) return;
      if (isFinal(loss) || (giveUpAfterMs > 0 && now() - lostAt > giveUpAfterMs)) break;
      emit(session, "retry", { attempt, delayMs: delayOf(attempt + 1, delays), error: error as Failure });
    }
  }
  over(session, loss);
}

function isFinal({ reason, error }: Loss): boolean {
  return error?.code === errorCodes.unauthorized || finalReasons.includes(reason);
}

/** Twice the one before; less up to a half, so that many clients do not come back at once. */
function delayOf(attempt: number, delays: { minDelayMs?: number; maxDelayMs?: number }): number {
  const longest = Math.min((delays.minDelayMs ?? minDelayMs) * 2 ** (attempt - 1), delays.maxDelayMs ?? maxDelayMs);
  return Math.round(longest * (1 - Math.random() / 2));
}

/** The session has ended for good: whatever waits for it is told. */
function over(session: Session, loss: Loss): void {
  if (session.loss) return;
  const { line, dialling, remotes } = session;
  session.loss = loss;
  session.line = undefined;
  session.next.reject(lossFailure(loss));
  line?.client.close();
  dialling?.client.close();
  for (const remote of [...remotes.values()]) fail(remote, processFailure(remote, loss));
  remotes.clear();
  session.close(loss);
  emit(session, "closed", loss);
}

function processFailure({ id, lastSeq }: Remote, loss: Loss): Failure {
  const { code, hint, cause, data } = lossFailure(loss);
  return new Failure(`${loss.message}; the process "${id}" goes on`, { code, hint, cause, data: { ...data, lastSeq } });
}

// Requests

async function request(
  session: Session,
  method: string,
  params: Record<string, unknown>,
  { signal, timeoutMs = session.options.requestTimeoutMs ?? requestMs }: CallOptions = {},
  now?: (result: unknown) => void,
): Promise<unknown> {
  signal?.throwIfAborted();
  if (session.loss) throw lossFailure(session.loss);
  if (!session.line)
    await withLimit(withSignal(session.next.promise, signal), timeoutMs, () => noLine(method, timeoutMs));
  const { client } = session.line!;
  const answer = client.request(method, params, undefined, timeoutMs, now);
  balance(session); // an answer is waited for: it has to be read
  try {
    return await withSignal(answer, signal);
  } catch (error) {
    if (!session.wire.mayReturn && isLoss(error) && !(error as Failure).reason) throw lossFailure(await session.closed);
    throw error;
  } finally {
    balance(session);
  }
}

/** Nobody reads where applications are slow, and neither an answer nor another process is waited for. */
function balance({ line, remotes }: Session): void {
  const all = [...remotes.values()];
  line?.client.setPaused(line.client.waiting === 0 && all.length > 0 && all.every(isFull));
}

function noLine(method: string, timeoutMs: number): Failure {
  return cannot(`call ${method}: there is no connection, and none came within ${timeoutMs} ms`, {
    code: errorCodes.noDaemon,
    data: { reason: "not-answering", timedOut: true },
  });
}

function route({ remotes }: Session, remote: Remote): void {
  const before = remotes.get(remote.id);
  remotes.set(remote.id, remote);
  if (!before || before === remote) return;
  const words = `This connection has taken the process "${remote.id}" up a second time`;
  fail(before, new Failure(words, { data: { reason: "detached", lastSeq: before.lastSeq } }));
}

function unroute({ remotes }: Session, remote: Remote): void {
  if (remotes.get(remote.id) === remote) remotes.delete(remote.id);
}

// What the application gets

function connectionOf(session: Session): Connection {
  const { wire, listeners } = session;
  const call = (method: string, params: Record<string, unknown>, options?: CallOptions): Promise<unknown> =>
    wire.request(method, params, options);
  const close = async (): Promise<void> => {
    over(session, { reason: "closed-here", message: "The connection was closed here" });
    await session.closed;
  };
  const connection: Connection = {
    get instanceId() {
      return String(session.capabilities.instanceId);
    },
    get capabilities() {
      return session.capabilities;
    },
    closed: session.closed,
    files: filesOf(wire),
    close,
    [asyncDispose]: close,
    request: (method, params = {}, options) => call(method, params, options),
    spawn: async (options) => processOf(await spawnProcess(wire, { id: randomId(), ...options })),
    reattach: async (id, options = {}) => processOf(await reattachProcess(wire, id, options)),
    run: (options) => runProcess(wire, { id: randomId(), ...options }),
    list: async (options) => ((await call("process.list", {}, options)) as { processes: ProcessSummary[] }).processes,
    status: async (options) => (await call("server.status", {}, options)) as Status,
    forget: async (id, options) => void (await call("process.forget", { id }, options)),
    kill: async (id, signal = "SIGTERM", options) => void (await call("process.kill", { id, signal }, options)),
    stop: async ({ graceMs, ifIdle, ...options } = {}) => {
      const params = { ...(graceMs === undefined ? {} : { graceMs }), ...(ifIdle ? { ifIdle } : {}) };
      return { processes: ((await call("server.shutdown", params, options)) as { processes: number }).processes };
    },
    on(event, listener) {
      listeners.set(event, [...(listeners.get(event) ?? []), listener]);
      return connection;
    },
    off(event, listener) {
      listeners.set(
        event,
        (listeners.get(event) ?? []).filter((known) => known !== listener),
      );
      return connection;
    },
  };
  return connection;
}

/** A file is read in pieces of this size, each in a frame of its own. */
const pieceBytes = 4 << 20;
const maxReadBytes = 64 << 20;

function filesOf({ request: ask }: Wire): Files {
  const call = (method: string, params: object, { signal, timeoutMs }: CallOptions = {}): Promise<unknown> =>
    ask(`files.${method}`, { ...params }, { signal, timeoutMs });
  const read = (path: HostPath, options?: ReadOptions): Promise<Buffer> => readPieces(ask, path, options);
  return {
    stat: async (path, options) => (await call("stat", { path }, options)) as FileStat,
    list: async (path, { includeHidden = false, ...options } = {}) =>
      ((await call("list", { path, includeHidden }, options)) as { entries: FileEntry[] }).entries,
    read,
    readText: async (path, options) => decodeText(await read(path, options), path),
    write: async (path, content, { mode, createDirs, ...options } = {}) => {
      const more = { ...(mode === undefined ? {} : { mode }), ...(createDirs ? { createDirs } : {}) };
      const params = { path, content: bytesOf(content).toString("base64"), encoding: "base64", ...more };
      return (await call("write", params, options)) as { written: number; inPlace?: boolean };
    },
    validate: async (path, options) =>
      (await call("validate", { path }, options)) as { valid: boolean; isDir: boolean },
  };
}

type ReadOptions = CallOptions & { maxBytes?: number };

async function readPieces(ask: Wire["request"], path: HostPath, options: ReadOptions = {}): Promise<Buffer> {
  const { maxBytes = maxReadBytes, signal, timeoutMs } = options;
  const pieces: Buffer[] = [];
  for (let offset = 0; ; ) {
    const params = { path, offset, maxBytes: Math.min(pieceBytes, maxBytes + 1 - offset), encoding: "base64" };
    const answer = await ask("files.read", params, { signal, timeoutMs });
    const { content, exists } = answer as { content: string; exists: boolean };
    if (!exists) throw noFile(path);
    const piece = Buffer.from(content, "base64");
    offset += piece.length;
    if (offset > maxBytes) throw fileTooLarge(path, maxBytes);
    if (piece.length === 0) return Buffer.concat(pieces);
    pieces.push(piece);
  }
}

function noFile(path: HostPath): Failure {
  return cannot(`read ${JSON.stringify(path)}: no such file or directory (ENOENT)`, { data: { errno: "ENOENT" } });
}

function fileTooLarge(path: HostPath, maxBytes: number): Failure {
  const data = { errno: "EFBIG", reason: "too-large" };
  return cannot(`read ${JSON.stringify(path)}: it has more than ${maxBytes} bytes`, { data, hint: "raise maxBytes" });
}

function decodeText(bytes: Buffer, path: HostPath): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw cannot(`read ${JSON.stringify(path)} as UTF-8: it is not UTF-8`, { data: { errno: "EILSEQ" }, cause });
  }
}
