/**
 * The daemon's connections: accepts them, keeps strangers few, takes frames, writes answers, and makes nobody wait for another.
 *
 *     accept ─▶ stranger ──a good token──▶ known ─▶ closed
 *                  │ 60 s, or 64 younger ones, or 64 KiB of refusals
 *                  └───────────────────────────────▶ closed
 *
 * What a body means is left to rpc.ts, how bytes become bodies to frame.ts. A socket is a Duplex here: tests hand in streams of their own.
 */

import { closeSync, openSync } from "node:fs";
import type { Duplex } from "node:stream";
import { cannot, errnoOf, Failure } from "./failure.ts";
import type { FrameDecoder, FrameEvent, Framing } from "./frame.ts";
import { createFrameDecoder, encodeFrame, framePieces, lengthOf, maxBodyBytes, strangerBodyBytes } from "./frame.ts";
import type { Log } from "./record.ts";
import { now } from "./record.ts";
import type { Answer, Caller, Peer } from "./rpc.ts";
import { encodeError, oversizeAnswer } from "./rpc.ts";

/** Connections that have not shown a good token: so many, so long. The oldest makes room for a new one. */
export const maxStrangers = 64;
const strangerMs = 60_000;
/** Answers that such a connection gets, and requests of it that are refused, answered or not, before it is closed: each costs more to make than to provoke. */
const strangerAnswerBytes = 64 << 10;
const strangerRefusals = 25_000;
/** A connection that has this much unread is not read from until it has read. */
const maxUnsentBytes = 16 << 20;
/** Requests of one connection under way at once; more wait in its socket. */
const maxPending = 1000;
/** Half-sent frames of all known connections together: four of the largest. */
const maxHeldBytes = 64 << 20;
/** How long a connection that is being closed may take to read what was written. */
const closeMs = 500;
/** How long bodies are carried out before whoever else has sent something has a turn. */
const turnMs = 15;
/** A body of at most so many bytes is taken as it comes, whoever else is waiting: it takes no time to read. */
const smallBodyBytes = 16 << 10;
/** Of output: a frame with so much base64 is written by itself; and the largest there is, with the longest id. */
const largeDataBytes = 16 << 10;
const spareBytes = 48 << 10;
/** Of their buffers so many are kept: six are under way for a connection that is behind (server.ts). */
const maxSpares = 8;
/** Decoded at once: small frames are not to cost an array each. */
const maxEvents = 64;
const nothing = Buffer.alloc(0);
/** What the host may be short of is logged at most so often, for each errno. */
const shortages = /^E(MFILE|NFILE|AGAIN|NOMEM|NOSPC|DQUOT|TIMEDOUT)$/;
const shortageMs = 60_000;

/** All of them, and what they share. */
export interface Connections {
  open: Set<Connection>;
  /** How many there have been: a connection is named after it. */
  count: number;
  /** Memory that half-sent frames of known connections take. */
  heldBytes: number;
  /** Until when, by now(), nothing is said of an errno. */
  shortages: Map<string, number>;
  /** When, by now(), the turn under way is over; who goes on in the next, in order; and whether that is arranged. */
  turnEndsAt: number | undefined;
  queue: Set<Connection>;
  isGoingOn: boolean;
  /** What large frames of output are made in; those that no socket has. */
  spares: Buffer[];
  log: Log;
  /** Carries out one body: see rpc.ts. */
  handle(body: Buffer, caller: Caller): Answer | Promise<Answer>;
  /** The soft limit, for words: infinity where it cannot be told. */
  maxOpenFiles: number;
  /** Says whether there is a descriptor left after the one of a new connection. */
  hasDescriptors(): boolean;
}

export interface Connection {
  /** "c12". */
  id: string;
  socket: Duplex;
  decoder: FrameDecoder;
  caller: Caller;
  /** What has come, and is not yet its turn: some events, and bytes that are not yet decoded. An event takes much more memory than its frame may have. */
  waiting: FrameEvent[];
  undecoded: Buffer;
  /** Requests under way, and the bytes of their frames. */
  pending: number;
  pendingBytes: number;
  /** Of all answers, ever. */
  answeredBytes: number;
  /** What its half-sent frame counts for in all, and when the last piece of it came: now(). */
  heldBytes: number;
  heldAt: number;
  /** Something was written in this tick: it leaves when the tick is over. */
  isCorked: boolean;
  /** The peer has sent all it will. */
  isHalfClosed: boolean;
}

export function createConnections(
  handle: Connections["handle"],
  log: Log,
  maxOpenFiles: number,
  hasDescriptors: () => boolean = canOpen,
): Connections {
  return {
    open: new Set(),
    count: 0,
    heldBytes: 0,
    shortages: new Map(),
    turnEndsAt: undefined,
    queue: new Set(),
    isGoingOn: false,
    spares: [],
    log,
    handle,
    maxOpenFiles,
    hasDescriptors,
  };
}

/** Takes a new connection, or refuses it in words. */
export function acceptConnection(connections: Connections, socket: Duplex): void {
  // the last descriptor is kept free to say so: libuv takes and closes what comes when there is none, without a word
  if (!connections.hasDescriptors()) {
    refuseConnection(connections, socket);
    return;
  }
  const connection = createConnection(connections, socket);
  makeRoom(connections);
  connections.open.add(connection);
  connections.log("[Server] New connection from: @");
  const timer = setTimeout(() => connection.caller.known || socket.destroy(), strangerMs).unref();
  socket
    .on("error", () => {}) // "close" follows
    .on("drain", () => throttle(connection))
    .on("data", (chunk: Buffer) => guard(connections, connection, () => takeChunk(connections, connection, chunk)))
    .on("end", () => guard(connections, connection, () => takeEnd(connections, connection)))
    .on("close", () => {
      clearTimeout(timer);
      connections.open.delete(connection);
      countHeld(connections, connection, 0);
      connection.decoder.giveUp();
      if (!connection.caller.known) dropWaiting(connection); // who is known may send and go
      connections.log("[Server] Connection closed: @");
    });
}

/** Lets the peer have what was written, but does not wait for one that does not read, or does not end its side. */
export function closeConnection(socket: Duplex): void {
  socket.end();
  setTimeout(() => socket.destroy(), closeMs).unref();
}

export function closeAll({ open }: Connections): void {
  for (const { socket } of open) closeConnection(socket);
}

/** Tells the log what the host is short of: once, not thousands of times. */
export function noteShortage(connections: Connections, errno: unknown, words: string): void {
  const name = String(errno);
  if (!shortages.test(name) || now() < (connections.shortages.get(name) ?? 0)) return;
  connections.shortages.set(name, now() + shortageMs);
  connections.log(`[Server] The host is short of something: ${words}`);
}

function canOpen(): boolean {
  try {
    closeSync(openSync("/dev/null", "r"));
    return true;
  } catch (error) {
    return errnoOf(error) !== "EMFILE" && errnoOf(error) !== "ENFILE";
  }
}

function refuseConnection(connections: Connections, socket: Duplex): void {
  const { maxOpenFiles } = connections;
  const all = maxOpenFiles === Infinity ? "all" : `all ${maxOpenFiles}`;
  const message = `Cannot accept a connection: ${all} descriptors that this process may have are in use, see ulimit -n`;
  noteShortage(connections, "EMFILE", message);
  socket
    .on("error", () => {})
    .on("end", () => socket.destroy())
    .resume()
    .write(encodeFrame(encodeError(null, new Failure(message, { data: { errno: "EMFILE" } })), "native"));
  closeConnection(socket);
}

/** The oldest stranger makes room. Node 18 accepts all that wait in one turn, before the first that was destroyed has closed. */
function makeRoom({ open }: Connections): void {
  const strangers = [...open].filter(({ caller, socket }) => !caller.known && !socket.destroyed);
  if (strangers.length >= maxStrangers) strangers[0]!.socket.destroy();
}

function createConnection(connections: Connections, socket: Duplex): Connection {
  const listenTo = (event: string) => (listener: () => void) => {
    socket.on(event, listener);
    return () => void socket.off(event, listener);
  };
  const peer: Peer = {
    id: `c${++connections.count}`,
    send: (message) => sendMessage(connections, connection, message),
    get unsentBytes() {
      return socket.writableLength;
    },
    onDrain: listenTo("drain"),
    onClose: listenTo("close"),
    endLines() {
      if (framingOf(connection) !== "lines") return false;
      closeConnection(socket);
      return true;
    },
  };
  const connection: Connection = {
    id: peer.id,
    socket,
    decoder: createFrameDecoder({ maxBodyBytes: strangerBodyBytes }),
    caller: { peer, authenticated: false, known: false },
    waiting: [],
    undecoded: nothing,
    pending: 0,
    pendingBytes: 0,
    answeredBytes: 0,
    heldBytes: 0,
    heldAt: 0,
    isCorked: false,
    isHalfClosed: false,
  };
  return connection;
}

/** Whatever goes wrong with one connection ends that one, not the daemon. */
function guard(connections: Connections, { id, socket }: Connection, action: () => void): void {
  try {
    action();
  } catch (error) {
    connections.log(`[Server] Internal error on ${id}, which is closed: ${(error as Error).stack ?? error}`);
    socket.destroy();
  }
}

// What comes

function takeChunk(connections: Connections, connection: Connection, chunk: Buffer): void {
  const { undecoded, caller } = connection;
  connection.undecoded = undecoded.length === 0 ? chunk : Buffer.concat([undecoded, chunk]);
  const event = nextEvent(connection);
  const isSmall = event && "body" in event && event.body.length <= smallBodyBytes;
  if (isSmall && !caller.calling && !isTiresome(connection))
    takeEvent(connections, connection, connection.waiting.shift()!);
  takeWaiting(connections, connection);
}

/** The first that waits; undefined when there is none. */
function nextEvent(connection: Connection): FrameEvent | undefined {
  const { waiting, undecoded, decoder } = connection;
  if (waiting.length === 0 && undecoded.length > 0) {
    connection.waiting = decoder.push(undecoded, maxEvents);
    connection.undecoded = undecoded.subarray(decoder.takenBytes);
  }
  return connection.waiting[0];
}

function takeEnd(connections: Connections, connection: Connection): void {
  connection.waiting.push(...connection.decoder.end());
  connection.isHalfClosed = true;
  takeWaiting(connections, connection);
}

/** Takes what has come, until the turn is over. */
function takeWaiting(connections: Connections, connection: Connection): void {
  const { caller, socket } = connection;
  for (let event = nextEvent(connection); event && !caller.calling; event = nextEvent(connection)) {
    if (isTurnOver(connections)) break;
    if (isTiresome(connection)) {
      dropWaiting(connection);
      closeConnection(socket);
      return;
    }
    takeEvent(connections, connection, connection.waiting.shift()!);
  }
  if (caller.calling) void caller.calling.then(() => goOn(connections, connection));
  else if (isWaiting(connection)) goOn(connections, connection);
  if (caller.known) holdFrame(connections, connection);
  throttle(connection);
  endWhenAnswered(connection);
}

function dropWaiting(connection: Connection): void {
  connection.waiting = [];
  connection.undecoded = nothing;
}

function isWaiting({ waiting, undecoded }: Connection): boolean {
  return waiting.length > 0 || undecoded.length > 0;
}

/** A stranger that has had its share of refusals. */
function isTiresome({ caller, answeredBytes }: Connection): boolean {
  return !caller.known && (answeredBytes > strangerAnswerBytes || (caller.refusals ?? 0) > strangerRefusals);
}

/** Says whether others are to have their turn: what they have sent is read between two of them. */
export function isTurnOver(connections: Connections): boolean {
  if (connections.turnEndsAt === undefined) {
    connections.turnEndsAt = now() + turnMs;
    setImmediate(() => {
      connections.turnEndsAt = undefined;
    });
  }
  return now() >= connections.turnEndsAt;
}

function goOn(connections: Connections, connection: Connection): void {
  connections.queue.add(connection);
  if (connections.isGoingOn) return;
  connections.isGoingOn = true;
  setImmediate(takeTurns, connections);
}

/** Each in the queue has its turn; who is not done goes to its end. */
function takeTurns(connections: Connections): void {
  const { queue } = connections;
  for (const connection of [...queue]) {
    if (isTurnOver(connections)) break;
    queue.delete(connection);
    guard(connections, connection, () => takeWaiting(connections, connection));
  }
  connections.isGoingOn = queue.size > 0;
  if (connections.isGoingOn) setImmediate(takeTurns, connections);
}

function takeEvent(connections: Connections, connection: Connection, event: FrameEvent): void {
  if ("body" in event) {
    takeBody(connections, connection, event.body);
  } else {
    write(connection, oversizeAnswer(event.oversizeBytes, connection.decoder.maxBodyBytes));
    if (event.fatal) closeConnection(connection.socket);
  }
}

function takeBody(connections: Connections, connection: Connection, body: Buffer): void {
  const answer = connections.handle(body, connection.caller);
  if (connection.caller.known) connection.decoder.maxBodyBytes = maxBodyBytes;
  if (answer instanceof Promise) awaitAnswer(connections, connection, answer, body.length);
  else if (answer !== undefined) write(connection, answer);
}

/** @param length That of the body, which is not to be held until the answer comes. */
function awaitAnswer(connections: Connections, connection: Connection, answer: Promise<Answer>, length: number): void {
  connection.pending++;
  connection.pendingBytes += length;
  void answer.then((text) => {
    connection.pending--;
    connection.pendingBytes -= length;
    guard(connections, connection, () => {
      if (text !== undefined) write(connection, text);
      endWhenAnswered(connection);
      throttle(connection);
    });
  });
}

/** Counts a half-sent frame. When they are too large together, that one is given up which has stood still longest: nobody waits for it. */
function holdFrame(connections: Connections, connection: Connection): void {
  countHeld(connections, connection, connection.decoder.heldBytes);
  while (connections.heldBytes > maxHeldBytes) {
    let oldest: Connection | undefined;
    for (const one of connections.open) if (one.heldBytes > 0 && (!oldest || one.heldAt < oldest.heldAt)) oldest = one;
    if (!oldest) return;
    const why = `the half-sent frames of all connections have over ${maxHeldBytes} bytes, and this one has stood still longest`;
    const hint = "send it again, in one go";
    oldest.decoder.giveUp();
    countHeld(connections, oldest, 0);
    write(oldest, encodeError(null, cannot(`read frame: ${why}`, { data: { errno: "ENOMEM" }, hint })));
  }
}

function countHeld(connections: Connections, connection: Connection, bytes: number): void {
  connections.heldBytes += bytes - connection.heldBytes;
  connection.heldBytes = bytes;
  connection.heldAt = now();
}

function endWhenAnswered(connection: Connection): void {
  const { isHalfClosed, pending, socket } = connection;
  if (isHalfClosed && pending === 0 && !isWaiting(connection)) socket.end();
}

/** Reads on only while the peer takes its answers. */
function throttle(connection: Connection): void {
  const { socket, pending, pendingBytes } = connection;
  const isBehind = socket.writableLength > maxUnsentBytes;
  if (isBehind || isWaiting(connection) || pending > maxPending || pendingBytes > maxBodyBytes) socket.pause();
  else if (socket.isPaused()) socket.resume();
}

// What goes

function write(connection: Connection, body: string | Buffer[]): void {
  const framing = framingOf(connection);
  deliver(connection, typeof body === "string" ? [encodeFrame(body, framing)] : framePieces(body, framing));
}

/** @returns False when the peer has fallen behind. It never throws: who sends has no part in what is wrong with a message. */
function sendMessage(connections: Connections, connection: Connection, message: object): boolean {
  let isTaken = true;
  guard(connections, connection, () => {
    isTaken = isOutput(message)
      ? writeOutput(connections, connection, message)
      : deliver(connection, [encodeFrame(JSON.stringify(message), framingOf(connection))]);
  });
  return isTaken;
}

/** A stream message with bytes, in base64. */
interface OutputMessage {
  type: "stream";
  data: string;
}

function isOutput(message: object): message is OutputMessage {
  const { type, data } = message as Partial<OutputMessage>;
  return type === "stream" && typeof data === "string";
}

/**
 * JSON.stringify looks at each character of a string: for 32 KiB of output that is most of its cost (46 us of 77; this takes 12). Base64 needs no look.
 *
 * Large frames are made in a few buffers, again and again: memory that is new each time has to be mapped, and stays as garbage for as long as an idle
 * daemon collects none.
 */
function writeOutput({ spares }: Connections, connection: Connection, message: OutputMessage): boolean {
  const { data, ...others } = message;
  const head = `${JSON.stringify(others).slice(0, -1)},"data":"`;
  const framing = framingOf(connection);
  if (data.length < largeDataBytes) return deliver(connection, [encodeFrame(head, framing, [data, '"}'])]);
  const { socket } = connection;
  if (isEnding(socket)) return true;
  const room = spares.pop() ?? Buffer.allocUnsafeSlow(spareBytes);
  const frame = encodeFrame(head, framing, [data, '"}'], room);
  connection.answeredBytes += frame.length;
  return socket.write(frame, (error) => {
    if (!error && spares.length < maxSpares) spares.push(room);
  });
}

function framingOf({ decoder }: Connection): Framing {
  return decoder.framing || "native";
}

/** What is written within one tick leaves in one system call. */
function deliver(connection: Connection, pieces: Buffer[]): boolean {
  const { socket } = connection;
  if (isEnding(socket)) return true;
  connection.answeredBytes += lengthOf(pieces);
  if (!connection.isCorked) {
    connection.isCorked = true;
    socket.cork();
    process.nextTick(() => {
      connection.isCorked = false;
      socket.uncork();
    });
  }
  return pieces.map((piece) => socket.write(piece)).pop()!;
}

function isEnding({ destroyed, writableEnded }: Duplex): boolean {
  return destroyed || writableEnded;
}
