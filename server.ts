/**
 * The daemon: listens, knows its connections, authenticates, ends.
 *
 *     serving ──shutdown, processes alive──▶ retired ──grace over, or all ended──▶ ending
 *        ▲                                      │
 *        └────────── admit (a --serve) ─────────┘
 *
 * A retired daemon has no public name and no connections, but still listens under the name it was bound to: there a --serve that comes in
 * time finds it, with its processes. What a method does is left to processes.ts and files.ts, how a request is read to rpc.ts.
 *
 * Names, record and directory may be deleted at any time. Every 30 s, and on SIGCONT (harmless to whoever else gets it), the daemon looks after
 * them and makes them again: a --serve that finds none of them, but its process, sends that and joins.
 */

import { Buffer } from "node:buffer";
import { createHash, timingSafeEqual } from "node:crypto";
import { lutimesSync, readdirSync, stat as statSoon } from "node:fs";
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { dirname } from "node:path";
import { proveAnswering } from "./client.ts";
import { cannot, errorCodes, exitCodes, Failure, reasonOf, safely } from "./failure.ts";
import { createFiles } from "./files.ts";
import { createFrameDecoder, encodeFrame, framePieces, lengthOf, maxBodyBytes, strangerBodyBytes } from "./frame.ts";
import type { FrameDecoder, FrameEvent, Framing } from "./frame.ts";
import { areHeld, createLanes } from "./lanes.ts";
import { describeVerdict, judgePlace, judgeSignals, placeOf, readLimit, realWorld } from "./lifetime.ts";
import type { Facts, Lifetime } from "./lifetime.ts";
import { createLog } from "./log.ts";
import type { Log } from "./log.ts";
import { watchLogouts } from "./logouts.ts";
import type { Logouts } from "./logouts.ts";
import { createProcesses } from "./processes.ts";
import { claimSoon, identify, livenessOf, now, readRecord, writeRecord } from "./record.ts";
import type { DaemonRecord, EndReason } from "./record.ts";
import {
  booleanParam,
  encodeError,
  handleBody,
  integerParam,
  optionalStringParam,
  oversizeAnswer,
  stringParam,
  unauthorized,
} from "./rpc.ts";
import type { Caller, Method, Params, Peer, Rpc } from "./rpc.ts";
import {
  homeDirectory,
  isSame,
  listenBeside,
  lookAt,
  makeRunDirectory,
  notASocket,
  publishSocket,
  retireName,
} from "./socket.ts";
import type { Places } from "./socket.ts";

/** Tokens accepted side by side: one per --serve that joined, the newest this many. */
const maxTokens = 64;
/** Connections that have not shown a good token: so many, so long. The oldest makes room for a new one. */
const maxStrangers = 64;
const strangerMs = 60_000;
/** Refusals and errors that such a connection gets, some 600, before it is closed: each costs more to make than to provoke. */
const strangerAnswerBytes = 64 << 10;
/** A connection that has this much unread is not read from until it has read. */
const maxUnsentBytes = 16 << 20;
/** Requests of one connection under way at once; more wait in its socket. */
const maxPending = 1000;
/** How often the public name is looked after: it may be deleted, and /tmp is cleaned by age. */
const checkMs = 30_000;
/** How long processes may go on after a --stop, before TERM; a --serve meanwhile finds them (--grace). */
const defaultGraceMs = 10_000;
/** From TERM to KILL for processes when the daemon is stopped; and when it was told to end by SIGTERM: it must be gone within 2 s. */
const killAfterMs = 3000;
const killAfterSignalMs = 1000;
/** How long another's publication is waited for: it takes a millisecond. */
const lockMs = 1000;
/** What the host may be short of is logged at most so often, for each errno. */
const shortages = /^E(MFILE|NFILE|AGAIN|NOMEM|NOSPC|DQUOT|TIMEDOUT)$/;
const shortageMs = 60_000;
/** SIGTERM, SIGCONT and SIGHUP of systemd come within a millisecond, in any order. */
const signalsMs = 50;

/** What the launcher hands over. Tokens only as hashes: the daemon never knows them. */
export interface Handover {
  places: Places;
  tokenHashes: string[];
  facts: Facts;
  /** What starts such a daemon again. */
  command: string[];
  version: string;
  /** Takes the public name over from the daemon that has it. */
  over: boolean;
  /** Of the record. Made by the launcher, which waits anyway: node:crypto takes as long to load as all else that a daemon does to start. */
  instance: string;
  key: string;
}

interface Connection {
  id: string;
  socket: Socket;
  decoder: FrameDecoder;
  caller: Caller;
  /** Requests under way, and the bytes of their frames. */
  pending: number;
  pendingBytes: number;
  /** Of all answers, ever. */
  answeredBytes: number;
  corked: boolean;
  /** The peer has sent all it will. */
  halfClosed: boolean;
}

export interface Daemon {
  record: DaemonRecord;
  lifetime: Lifetime;
  /** Resolves when it has ended, to its exit code. */
  ended: Promise<number>;
}

/**
 * Starts the daemon in this process.
 *
 * @returns When its socket is published.
 * @throws {Failure} Why it cannot start, with exit code 73 or 75. Nothing is left behind.
 */
export async function startDaemon(
  { places, tokenHashes, facts, command, version, over, instance, key }: Handover,
  world = realWorld(),
): Promise<Daemon> {
  const log: Log = createLog(places.log);
  prepareDaemon(); // in the foreground nobody has
  const maxOpenFiles = readLimit("Max open files", world);
  const lockPath = `${places.record}.lock`;
  const connections = new Set<Connection>();
  const startedAt = Date.now();
  const bornAt = now();
  let phase: "starting" | "serving" | "retired" | "ending" = "starting";
  let connectionCount = 0;
  let graceTimer: NodeJS.Timeout | undefined;
  let looking: Promise<void> | undefined;
  let logouts: Logouts | undefined;
  let lastProblem = "";
  const shortageNotes = new Map<unknown, number>(); // until when nothing is said of an errno
  let finish: (code: number) => void;
  const ended = new Promise<number>((done) => (finish = done));

  const lanes = createLanes();
  const processes = createProcesses({
    env: process.env,
    log,
    lanes,
    onAllExited: () => phase === "retired" && void end("stopped", "no process was left", killAfterMs),
  });
  const files = createFiles(() => homeDirectory(), lanes);
  const methods = new Map<string, Method>([...serverMethods(), ...processes.methods, ...files]);
  const rpc: Rpc = {
    methods,
    isToken,
    onUnauthorized: noteRefusal,
    onFailure: ({ data, cause, message }) => noteShortage(data.errno, cause === undefined ? message : reasonOf(cause)),
  };
  const refused = new WeakSet<Caller>();

  let lifetime = describeVerdict(judgePlace(placeOf("self", world), facts));
  listenToSignals();
  let listener = createListener();
  let socket = await listenBeside(listener, places.socket);
  const record: DaemonRecord = {
    ...identify(),
    version,
    instance,
    key,
    tokenHashes: tokenHashes.slice(-maxTokens),
    socket: { path: places.socket, ...socket },
    log: places.log,
    startedAt,
    command,
    lifetime,
  };
  try {
    if (over) await proveAnswering(socket.bound, 2000); // before it takes the name over
    await publish(over);
  } catch (error) {
    listener.close();
    retireName(socket.bound, socket);
    throw error;
  }
  phase = "serving";
  const checkTimer = setInterval(() => void check(), checkMs);
  setImmediate(() => {
    // when the launcher has its word
    logouts = watchLogouts(facts.uid, facts.stopDelayUs === "infinity" ? 0 : facts.stopDelayUs / 1000);
    log(
      `Remote server listening on ${places.socket} (pid ${process.pid}, instance ${instance}, ${lifetime.where}; survives logout: ${lifetime.words})`,
    );
  });
  return { record, lifetime, ended };

  // Publication and the record

  /** Only one publishes at a time, and only over a name that is free: what is there may be a daemon that was quicker. */
  async function publish(replace: boolean): Promise<void> {
    await withPublication(() => {
      if (phase !== "starting" && phase !== "serving")
        throw cannot(`publish the socket "${places.socket}": the daemon was told to end`);
      const there = lookAt(places.socket);
      if (there.kind === "socket" && !replace && !isSame(places.socket, socket)) {
        throw cannot(`publish the socket "${places.socket}": another daemon has just done so`, {
          exit: exitCodes.busy,
        });
      }
      if (there.kind === "other") throw notASocket(places.socket, there.what);
      writeRecord(places.record, record); // first: so that a dead socket can always be told to be ours
      publishSocket(socket, places.socket, replace);
    });
  }

  async function withPublication(action: () => void): Promise<void> {
    const claim = await claimSoon(lockPath, lockMs);
    if (!claim)
      throw cannot(`publish the socket "${places.socket}": "${lockPath}" is held by another`, { exit: exitCodes.busy });
    try {
      action();
    } finally {
      claim.release();
    }
  }

  /** Writes the record, unless a successor has written its own. */
  async function saveRecord(): Promise<void> {
    const save = (): void => {
      if (isSame(places.socket, socket) || successor() === undefined) writeRecord(places.record, record);
    };
    await withPublication(save).catch((error: Error) => log(`[Server] ${error.message}`));
  }

  /** The record of another daemon, where ours was. */
  function successor(): DaemonRecord | undefined {
    const { record: found } = readRecord(places.record);
    return found && found.instance === instance ? undefined : found;
  }

  /** Makes sure that the names lead here and the record is there, and that those who clean /tmp by age see that they are in use. */
  function check(): Promise<void> {
    return (looking ??= look()
      .catch((error: Error) => `cannot be mended: ${error.message}`)
      .then((problem = "") => {
        looking = undefined;
        if (problem !== "" && problem !== lastProblem) log(`[Server] Not reachable: "${places.socket}" ${problem}`);
        lastProblem = problem;
      }));
  }

  /** @returns Why the daemon cannot be reached by its public name. */
  async function look(): Promise<string | undefined> {
    if (phase !== "serving" && phase !== "retired") return undefined;
    makeRunDirectory(dirname(places.socket));
    makeRunDirectory(places.directory);
    const next = successor();
    if (next && !isSame(places.socket, socket) && livenessOf(next).state !== "dead") {
      if (processes.liveCount() === 0) void end("replaced", `by instance ${next.instance}`, killAfterMs);
      return `belongs to instance ${next.instance} now`;
    }
    if (!isSame(places.socket, socket) && !isSame(socket.bound, socket)) await listenAgain();
    const there = lookAt(places.socket);
    if (phase === "serving" && there.kind === "absent") {
      await publish(false);
      log(`[Server] The socket "${places.socket}" was deleted: published again`);
    } else if (!hasRecord()) {
      await saveRecord();
    }
    const date = new Date();
    for (const name of [places.socket, socket.bound])
      if (isSame(name, socket)) safely(() => lutimesSync(name, date, date));
    return phase !== "serving" || isSame(places.socket, socket)
      ? undefined
      : `is ${there.kind === "other" ? there.what : "another's socket"} now`;
  }

  /** Connections stay: they are the old listener's no more. */
  async function listenAgain(): Promise<void> {
    const next = createListener();
    socket = await listenBeside(next, places.socket);
    record.socket = { path: places.socket, ...socket };
    listener.close();
    listener = next;
  }

  function hasRecord(): boolean {
    const { record: found } = readRecord(places.record);
    return found !== undefined && found.instance === instance && found.socket.ino === socket.ino;
  }

  // Connections

  function createListener(): Server {
    const server = createServer({ allowHalfOpen: true, highWaterMark: 1 << 20 }, accept);
    server.on("error", (error) => log(`[Server] Cannot accept a connection: ${error.message}`));
    return server;
  }

  function accept(peerSocket: Socket): void {
    // The last descriptor is kept free to say so. libuv takes and closes what comes when there is none, without a word.
    if ((peerSocket as { _handle?: { fd?: number } })._handle?.fd! >= maxOpenFiles - 1) return refuse(peerSocket);
    const connection = createConnection(`c${++connectionCount}`, peerSocket);
    // Node 18 accepts all that wait in one turn, before the first that was destroyed has closed
    const strangers = [...connections].filter(({ caller, socket: { destroyed } }) => !caller.known && !destroyed);
    if (strangers.length >= maxStrangers) strangers[0]!.socket.destroy();
    connections.add(connection);
    log("[Server] New connection from: @");
    const timer = setTimeout(() => connection.caller.known || peerSocket.destroy(), strangerMs).unref();
    peerSocket.on("error", () => {}); // "close" follows
    peerSocket
      .on("drain", () => throttle(connection))
      .on("data", (chunk) => {
        for (const event of connection.decoder.push(chunk)) {
          if (!connection.caller.known && connection.answeredBytes > strangerAnswerBytes)
            return closeConnection(connection);
          take(connection, event);
        }
        throttle(connection);
      })
      .on("end", () => {
        for (const event of connection.decoder.end()) take(connection, event);
        connection.halfClosed = true;
        endWhenAnswered(connection);
      })
      .on("close", () => {
        clearTimeout(timer);
        connections.delete(connection);
        log("[Server] Connection closed: @");
      });
  }

  function refuse(peerSocket: Socket): void {
    const message = `Cannot accept a connection: ${maxOpenFiles - 1} files are open, the limit is ${maxOpenFiles}`;
    noteShortage("EMFILE", message);
    const failure = new Failure(message, { data: { errno: "EMFILE" } });
    peerSocket
      .on("error", () => {})
      .on("end", () => peerSocket.destroy())
      .resume()
      .write(encodeFrame(encodeError(null, failure), "native"));
    closeConnection({ socket: peerSocket });
  }

  /** In the log once, not thousands of times. */
  function noteShortage(errno: unknown, words: string): void {
    if (!shortages.test(String(errno)) || now() < (shortageNotes.get(errno) || 0)) return;
    shortageNotes.set(errno, now() + shortageMs);
    log(`[Server] The host is short of something: ${words}`);
  }

  function take(connection: Connection, event: FrameEvent): void {
    if ("oversizeBytes" in event) {
      write(connection, oversizeAnswer(event.oversizeBytes, connection.decoder.maxBodyBytes));
      if (event.fatal) closeConnection(connection);
    }
    if (!("body" in event)) return;
    const answer = handleBody(rpc, event.body, connection.caller);
    if (connection.caller.known) connection.decoder.maxBodyBytes = maxBodyBytes;
    if (!answer) return;
    if (!(answer instanceof Promise)) return void write(connection, answer);
    const { length } = event.body; // it is not to be held until the answer comes
    connection.pending++;
    connection.pendingBytes += length;
    void answer.then((text) => {
      connection.pending--;
      connection.pendingBytes -= length;
      if (text !== undefined) write(connection, text);
      endWhenAnswered(connection);
      throttle(connection);
    });
  }

  function endWhenAnswered({ halfClosed, pending, socket: peerSocket }: Connection): void {
    if (halfClosed && pending === 0) peerSocket.end();
  }

  /** Reads on only while the peer takes its answers. */
  function throttle({ socket: peerSocket, pending, pendingBytes }: Connection): void {
    if (peerSocket.writableLength > maxUnsentBytes || pending > maxPending || pendingBytes > maxBodyBytes)
      peerSocket.pause();
    else if (peerSocket.isPaused()) peerSocket.resume();
  }

  function createConnection(id: string, peerSocket: Socket): Connection {
    const listenTo = (event: string) => (listener: () => void) => (
      peerSocket.on(event, listener), () => void peerSocket.off(event, listener)
    );
    const peer: Peer = {
      id,
      send: (message) => deliver(connection, [encodeMessage(message, framingOf(connection))]),
      get unsentBytes() {
        return peerSocket.writableLength;
      },
      onDrain: listenTo("drain"),
      onClose: listenTo("close"),
    };
    const connection: Connection = {
      id,
      socket: peerSocket,
      decoder: createFrameDecoder({ maxBodyBytes: strangerBodyBytes }),
      caller: { peer, authenticated: false, known: false },
      pending: 0,
      pendingBytes: 0,
      answeredBytes: 0,
      corked: false,
      halfClosed: false,
    };
    return connection;
  }

  /** What is written within one tick leaves in one system call. */
  function write(connection: Connection, body: string | Buffer[]): void {
    const framing = framingOf(connection);
    deliver(connection, typeof body === "string" ? [encodeFrame(body, framing)] : framePieces(body, framing));
  }

  function framingOf({ decoder }: Connection): Framing {
    return decoder.framing || "native";
  }

  /** @returns False when the peer has fallen behind. */
  function deliver(connection: Connection, pieces: Buffer[]): boolean {
    const { socket: peerSocket } = connection;
    if (peerSocket.destroyed || peerSocket.writableEnded) return true;
    connection.answeredBytes += lengthOf(pieces);
    if (!connection.corked) {
      connection.corked = true;
      peerSocket.cork();
      process.nextTick(() => {
        connection.corked = false;
        peerSocket.uncork();
      });
    }
    return pieces.map((piece) => peerSocket.write(piece)).pop()!;
  }

  // Methods

  /** Compares with every hash, each in constant time. The record's key is its owner's token. */
  function isToken(token: string): boolean {
    if (isKey(token)) return true;
    const hash = createHash("sha256").update(token).digest();
    let found = false;
    for (const known of record.tokenHashes) found = timingSafeEqual(hash, Buffer.from(known, "hex")) || found;
    return found;
  }

  /** In constant time, without node:crypto: the launcher asks as its first question. */
  function isKey(given: string): boolean {
    let difference = given.length ^ key.length;
    for (let i = 0; i < key.length; i++) difference |= given.charCodeAt(i) ^ key.charCodeAt(i);
    return difference === 0;
  }

  function serverMethods(): [string, Method][] {
    return [
      ["server.ping", () => ({ pong: true })],
      ["server.authenticate", authenticate],
      ["server.capabilities", capabilities],
      ["server.status", status],
      ["server.shutdown", shutdown],
      ["server.admit", admit],
    ];
  }

  function authenticate(params: Params, caller: Caller): unknown {
    if (!isToken(stringParam(params, "token"))) {
      noteRefusal(caller);
      throw unauthorized();
    }
    caller.authenticated = caller.known = true;
    return { authenticated: true };
  }

  /** The first of a connection stands for all: one frame may have a thousand. */
  function noteRefusal(caller: Caller): void {
    if (!refused.has(caller)) log(`[Server] Unauthorized request on ${caller.peer.id}`);
    refused.add(caller);
  }

  function capabilities(): Record<string, unknown> {
    return {
      version,
      methods: [...methods.keys()].sort(),
      features: ["native", "lines", "batch", "lifetime", "reattach", "stdin-offset", "grace"],
      instanceId: instance,
      startedAt,
      lifetime,
    };
  }

  function status(): Record<string, unknown> {
    return {
      ...capabilities(),
      pid: process.pid,
      uptimeMs: Math.round(now() - bornAt),
      rssBytes: process.memoryUsage().rss,
      connections: connections.size,
      processes: processes.summary(),
      log: places.log,
      socket: places.socket,
      phase,
      logoutsOutlived: logouts?.outlived(),
      limits: {
        maxBodyBytes,
        strangerBodyBytes,
        maxStrangers,
        maxTokens,
        openFiles: safely(() => readdirSync("/proc/self/fd").length),
        maxOpenFiles,
      },
    };
  }

  function shutdown(params: Params): unknown {
    const graceMs = integerParam(params, "graceMs", { min: 0, max: 86_400_000, default: defaultGraceMs });
    const alive = processes.liveCount();
    if (booleanParam(params, "ifIdle", false) && alive > 0) {
      throw cannot(
        `stop: ${alive} ${alive === 1 ? "process is" : "processes are"} alive, and it was to be stopped only if idle`,
        { data: { processes: alive } },
      );
    }
    setImmediate(() => void retire(graceMs)); // once the answer is written
    return { ok: true, processes: alive };
  }

  /** For the owner of the record: one more token, a new verdict; and a retired daemon serves again. */
  async function admit(params: Params): Promise<unknown> {
    if (!isKey(stringParam(params, "key")))
      throw cannot("admit: the key is not that of this daemon's record", { code: errorCodes.unauthorized });
    if (phase === "ending") throw cannot("admit: the daemon is ending", { data: { ending: true } });
    const hash = optionalStringParam(params, "tokenHash");
    if (hash !== undefined) {
      if (!/^[0-9a-f]{64}$/.test(hash))
        throw cannot("admit: tokenHash must be 64 hex digits", { code: errorCodes.invalidParams });
      record.tokenHashes = [...record.tokenHashes.filter((known) => known !== hash), hash].slice(-maxTokens);
    }
    if (params.facts !== undefined) {
      Object.assign(facts, params.facts);
      lifetime = describeVerdict(judgePlace(placeOf("self", world), facts));
      record.lifetime = lifetime;
    }
    const revived = phase === "retired";
    if (revived) {
      clearTimeout(graceTimer);
      phase = "serving";
      delete record.stoppingAt;
      await publish(false).catch((error: Error) => {
        void retire(defaultGraceMs); // as it was told
        throw error;
      });
      log(`[Server] Revived with ${processes.liveCount()} processes: a --serve came within the grace`);
    } else {
      await check();
      await saveRecord();
    }
    return { instanceId: instance, pid: process.pid, version, revived, processes: processes.liveCount(), lifetime };
  }

  // The end

  async function retire(graceMs: number): Promise<void> {
    if (phase === "ending") return;
    clearTimeout(graceTimer); // of an earlier stop, when this is the second
    const alive = processes.liveCount();
    log(`[Server] Told to stop: ${alive} processes are alive${alive > 0 ? `, they have ${graceMs / 1000} s` : ""}`);
    if (alive === 0 || graceMs === 0) return end("stopped", "told to stop", killAfterMs);
    phase = "retired";
    record.stoppingAt = Date.now() + graceMs;
    // not through end(): a --serve that comes now must find all of it
    graceTimer = setTimeout(() => void end("stopped", "told to stop, and the grace is over", killAfterMs), graceMs);
    await saveRecord();
    if (phase !== "retired") return;
    await retirePublicName("retired");
    if (phase === "retired") connections.forEach(closeConnection);
  }

  /** @param expected The phase in which that is right: a --serve may have come meanwhile. */
  async function retirePublicName(expected: typeof phase): Promise<void> {
    // where no lock can be made (a full disk), nobody else can publish either
    const claim = await claimSoon(lockPath, lockMs).catch(() => ({ release: () => {} }));
    if (!claim) return log(`[Server] "${places.socket}" is not retired: "${lockPath}" is held by another`);
    if (phase === expected) retireName(places.socket, socket);
    claim.release();
  }

  /** Lets the peer have what was written, but does not wait for one that does not read, or does not end its side. */
  function closeConnection({ socket: peerSocket }: Pick<Connection, "socket">): void {
    peerSocket.end();
    setTimeout(() => peerSocket.destroy(), 500).unref();
  }

  async function end(reason: EndReason, detail: string, killMs: number): Promise<void> {
    if (phase === "ending") return;
    phase = "ending";
    clearTimeout(graceTimer);
    clearInterval(checkTimer);
    logouts?.close();
    log(`[Server] Ending: ${reason} (${detail})`);
    record.ended = { at: Date.now(), reason, detail };
    delete record.stoppingAt;
    await saveRecord(); // first: systemd may not leave us the time
    await retirePublicName("ending");
    connections.forEach(closeConnection);
    const killed = await processes.endAll({ graceMs: killMs });
    retireName(socket.bound, socket);
    listener.close();
    log(`[Server] Ended, with ${killed} processes`);
    if (areHeld(lanes)) process.kill(process.pid, "SIGKILL");
    finish(0);
  }

  /** SIGHUP alone is no reason to end: a terminal went away. A second SIGTERM does not wait for processes. */
  function listenToSignals(): void {
    const seen = new Map<string, number>();
    for (const signal of ["SIGTERM", "SIGINT", "SIGCONT", "SIGHUP"] as const) {
      process.on(signal, () => {
        log(`[Server] Received ${signal}`);
        seen.set(signal, now());
        if (signal === "SIGCONT") setTimeout(() => void check(), signalsMs); // unless it came with SIGTERM
        if (signal === "SIGCONT" || signal === "SIGHUP") return;
        if (phase === "starting") return void (phase = "ending"); // publish() refuses then, and the start is undone
        if (phase === "ending") return void processes.endAll({ graceMs: 0 });
        setTimeout(() => {
          const { reason, detail } = judgeSignals(
            new Set([...seen].filter(([, at]) => now() - at < 1000).map(([name]) => name)),
          );
          void end(reason, detail, killAfterSignalMs);
        }, signalsMs);
      });
    }
    process.on("uncaughtException", (error: Error) => {
      if (phase === "starting") throw error;
      log(`[Server] Internal error: ${error.stack || error.message}`);
      record.ended = { at: Date.now(), reason: "crashed", detail: error.message };
      void saveRecord().then(() => finish(exitCodes.failed));
    });
  }
}

/**
 * What a daemon can do before it knows what it is to serve: node:net is loaded, and libuv makes its threads. It would make them when they are first
 * needed, and abort when the user may have no more by then (ulimit -u).
 */
export function prepareDaemon(): void {
  createServer();
  statSoon("/", () => {});
}

/** JSON.stringify looks at each character of a string: for 32 KiB of output that is most of its cost (46 us of 77; this takes 12). Base64 needs no look. */
function encodeMessage(message: object, framing: Framing): Buffer {
  const { type, data } = message as { type?: string; data?: unknown };
  if (type !== "stream" || typeof data !== "string") return encodeFrame(JSON.stringify(message), framing);
  return encodeFrame(`${JSON.stringify({ ...message, data: undefined }).slice(0, -1)},"data":"`, framing, data, '"}');
}
