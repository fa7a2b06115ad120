/**
 * A relay between one SSH channel and the daemon's socket.
 *
 *     stdin ─▶ toDaemon() ─▶ socket        native bytes pass untouched; lines are re-framed
 *     stdout ◀─ fromDaemon() ◀─ socket     both ways only far enough looked at to know which requests have no answer yet
 *
 * It ends when either side ends: at stdin's end when the daemon has said what it owes, however long that takes. It never outlives its channel: an error
 * on stdout, SIGHUP, an ancestor's death. A daemon that dies before its first word is replaced (by control.ts), and what nobody has read is sent again;
 * whatever else has no answer by then gets one here. Never silence.
 */

import { fstatSync } from "node:fs";
import type { ConnectOpts, OnReadOpts, SocketConstructorOpts } from "node:net";
import { Socket } from "node:net";
import type { Readable, Writable } from "node:stream";
import { isatty } from "node:tty";
import type { ConnectFailure } from "./client.ts";
import { refusedBy, tryConnect } from "./client.ts";
import { cannot, capture, errnoOf, errorCodes, exitCodes, Failure, osFailure, safely } from "./failure.ts";
import type { Follower, FrameDecoder, FrameEvent, Framing } from "./frame.ts";
import {
  createFollower,
  createFrameDecoder,
  edgeBytes,
  encodeFrame,
  follow,
  isBetweenFrames,
  maxBodyBytes,
  partOf,
} from "./frame.ts";
import { ancestors, areAlive, runtime } from "./program.ts";
import { now } from "./record.ts";
import { answerTo, errorOf, isId, isNotification, oversizeAnswer } from "./rpc.ts";
import { flush, openOutput, setRaw } from "./terminal.ts";

const connectMs = 5000;
/** How long a daemon that owes something may say nothing at all before it is asked, over a connection of its own, whether it answers. */
const silenceMs = 5000;
/** What was sent before the daemon's first word is kept, so that it can be sent again or answered. */
const maxHeldBytes = 1 << 20;
/** Requests that came with the first one, or right after it, are answered too. */
const burstMs = 100;
/** How often our ancestors are looked for: a channel whose shell was killed may leave us the pipes of somebody else. */
const ancestorsMs = 2000;
/** What one read takes: a pipe holds 64 KiB, a Unix socket some 200. */
const intakeBytes = 256 << 10;
/** Daemons that are tried one after the other, each of which has died before its first word. */
const maxLinks = 4;
/** Requests without an answer that are kept track of. A daemon takes 1000 at a time. */
const maxOwed = 10_000;

/** Ctrl-C and Ctrl-D, typed by a person at a terminal that is set raw. */
const endKeys = [3, 4];

const scalar = String.raw`"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|null|true|false`;
/** The id before any nested member, and behind the last one. */
const idFirst = new RegExp(
  String.raw`^\s*\{(?:\s*"(?!id")[^"\\]*"\s*:\s*(?:${scalar})\s*,)*\s*"id"\s*:\s*(${scalar})\s*[,}]`,
);
const idLast = new RegExp(String.raw`,\s*"id"\s*:\s*(${scalar})(?:\s*,\s*"[^"\\]*"\s*:\s*(?:${scalar}))*\s*\}\s*$`);
/** As rpc.ts encodes it, alone or first of a batch. */
const answerId = new RegExp(String.raw`^\[?\{"jsonrpc":"2\.0","id":(${scalar})`);

export interface BridgeWorld {
  input: Source;
  output: Writable;
  socket: string;
  /** The daemon of this socket has provably ended, or is just ending: whoever connects to it is not heard. */
  isDead(): boolean;
  /** Which daemon the record is of. */
  instance(): string | undefined;
  /** The key of the daemon at the socket, proven by record and inode; undefined where the client is to authenticate itself. */
  ownerKey: (() => string) | undefined;
  /** Finds another way to a daemon than its socket, having started one if need be; or says why there is none. */
  reachOtherwise(outcome: ConnectFailure): Promise<Socket | Failure>;
  /** Words for the person at stderr. */
  warn(failure: Failure): void;
  /** Asks the daemon over another connection; why it does not answer, when it does not. */
  explainSilence(): Promise<Failure | undefined>;
  /** Why the daemon of this instance closed the connection, once it has. */
  explainLoss(instance: string | undefined): Promise<Failure>;
}

/** Takes a chunk that is good until it returns; with false, until resume(): then nothing more is read before that. */
type Take = (chunk: Buffer) => boolean;

/**
 * Reads a socket into one buffer, again and again. A buffer for each read, as streams have it, is what a relay spends most of its time on: with
 * this one it passes twice as much.
 */
interface Intake {
  onread: OnReadOpts;
  /** Who takes what comes; undefined until there is somebody, and in between. */
  take: Take | undefined;
  /** What came while nobody took it: a socket reads as soon as it can. */
  early: Buffer[];
}

/** A stream, and what reads it. */
export interface Source {
  stream: Readable;
  intake: Intake;
  /** Set raw: Ctrl-C and Ctrl-D are bytes like others. */
  isTerminal?: boolean;
}

/** All that a bridge knows, over the daemons that it may reach one after the other. */
interface Relay {
  world: BridgeWorld;
  /** What the peer's first byte has decided. */
  framing: Framing | undefined;
  /** Of a peer that speaks lines. */
  lines: FrameDecoder;
  inputHasEnded: boolean;
  /** Requests without an answer, oldest first, by their id as JSON: the id, or the ids of a batch; as often as they were asked. */
  owed: Map<string, { ids: unknown; count: number }>;
  /** Bytes for the next daemon, before anything else: what the last one has not read. Native. */
  unread: Buffer;
}

/** One connection to a daemon. */
interface Link {
  source: Source;
  socket: Socket;
  instance: string | undefined;
  requests: Follower;
  answers: Follower;
  answerLines: FrameDecoder;
  /** What the daemon was sent, write by write, until its first word; undefined from then on, or when it was too much. */
  held: Buffer[] | undefined;
  heldBytes: number;
  /** When it last said anything: now(). */
  heardAt: number;
  silenceTimer: NodeJS.Timeout | undefined;
  /** Why the connection broke: EPIPE says that nobody has read the last write, ECONNRESET that nobody has read its last byte (unix(7)). */
  error: string | undefined;
  end(how: LinkEnd): void;
}

/** How it ended: the connection closed; the daemon does not answer; or our own channel is done, with an exit code. */
type LinkEnd = { closed: true } | { silent: Failure } | { code: number };

/**
 * The two ends of our own SSH channel.
 *
 * @throws {Failure} stdin is a terminal that cannot be made to pass bytes as they are.
 */
export function channelEnds(): { input: Source; output: Writable } {
  return { input: openInput(), output: openOutput(1) };
}

function openInput(): Source {
  if (isatty(0)) {
    // it (ssh -tt) would echo what comes with its token, cut a line at 4095 bytes, and turn newlines of a frame into two bytes
    setRaw("relay over a terminal", "connect without one: ssh -T, RequestTTY no");
    return { ...sourceOf(process.stdin), isTerminal: true };
  }
  const stats = fstatSync(0);
  // Deno and Bun do not read a descriptor by net.Socket
  if (!(stats.isFIFO() || stats.isSocket()) || runtime !== "node") return sourceOf(process.stdin);
  const intake = createIntake();
  const options: SocketConstructorOpts & ConnectOpts = {
    fd: 0,
    readable: true,
    writable: false,
    onread: intake.onread,
  }; // the types of Node 20 lack it
  return sourceOf(new Socket(options), intake);
}

function createIntake(): Intake {
  const intake: Intake = {
    onread: {
      buffer: Buffer.allocUnsafe(intakeBytes),
      callback: (length, bytes) => give(intake, Buffer.from(bytes.buffer, bytes.byteOffset, length)),
    },
    take: undefined,
    early: [],
  };
  return intake;
}

/** @param intake What the stream was opened with; a stream, or a runtime, that knows no `onread` emits "data". */
function sourceOf<T extends Readable>(stream: T, intake = createIntake()): Source & { stream: T } {
  stream.on("data", (chunk: Buffer) => give(intake, chunk) || stream.pause());
  return { stream, intake };
}

function give(intake: Intake, chunk: Buffer): boolean {
  if (intake.take) return intake.take(chunk);
  intake.early.push(Buffer.from(chunk));
  return false;
}

/** Takes what comes, from now on, with what came early. */
function takeFrom({ stream, intake }: Source, take: Take): void {
  intake.take = take;
  const goOn = intake.early.splice(0).map((chunk) => give(intake, chunk));
  if (!goOn.includes(false)) stream.resume();
}

/** Writes a chunk as it is. Most often the kernel takes it at once; else its buffer is not to be read into until it has. */
function pass(chunk: Buffer, from: Readable, to: Writable): boolean {
  let isWaiting = false;
  to.write(chunk, () => isWaiting && from.resume());
  isWaiting = to.writableLength > 0;
  return !isWaiting;
}

/**
 * Relays until either side ends.
 *
 * @returns The exit code: 0 when our own peer ended it and has all its answers, 69 when there is no daemon (any more), 1 when the daemon closed the
 * connection or nobody takes the answers.
 */
export function runBridge(world: BridgeWorld): Promise<number> {
  const chain = ancestors();
  const isOver = (done: (code: number) => void) => () => areAlive(chain) || done(exitCodes.done);
  const orphaned = new Promise<number>((done) => setInterval(isOver(done), ancestorsMs));
  return Promise.race([reachAndRelay(world), orphaned]);
}

async function reachAndRelay(world: BridgeWorld): Promise<number> {
  const relay: Relay = {
    world,
    framing: undefined,
    lines: createFrameDecoder(),
    inputHasEnded: false,
    owed: new Map(),
    unread: Buffer.alloc(0),
  };
  for (let left = maxLinks; ; left--) {
    const reached = await reach(world);
    if (reached instanceof Failure) return answerWith(relay, reached, relay.unread);
    const link = createLink(reached, world.instance());
    const end = await relayOver(relay, link);
    release(relay, link);
    if ("code" in end) return finish(relay, end.code);
    if ("silent" in end) return answerWith(relay, end.silent, link.held && Buffer.concat(link.held), link);
    const code = await afterLoss(relay, link, left > 1);
    if (code !== undefined) return code;
  }
}

/** Connects to a daemon that lives, as far as can be known: one that is just ending may still be connected to for some ms. */
async function reach(world: BridgeWorld): Promise<(Source & { stream: Socket }) | Failure> {
  const intake = createIntake();
  const connected = await tryConnect(world.socket, connectMs, intake.onread);
  const attempt = "socket" in connected && world.isDead() ? refusedBy(connected.socket) : connected;
  const reached = "socket" in attempt ? attempt.socket : await world.reachOtherwise(attempt);
  if (!(reached instanceof Socket)) return reached;
  const source = "socket" in attempt ? sourceOf(reached, intake) : sourceOf(reached);
  const failure = world.ownerKey && (await authenticate(source, world.ownerKey));
  if (failure) reached.destroy();
  return failure || source;
}

/** Makes the connection its owner's, before the client's first byte: of all that comes until then the client sees nothing. */
function authenticate(
  { stream: socket, intake }: Source & { stream: Socket },
  ownerKey: () => string,
): Promise<Failure | undefined> {
  const decoder = createFrameDecoder();
  return new Promise((done) => {
    const settle = (failure?: Failure): void => {
      clearTimeout(timer);
      intake.take = undefined;
      done(failure);
    };
    const fail = (why: string): void =>
      settle(
        cannot(`authenticate as the daemon's owner: ${why}`, {
          code: errorCodes.noDaemon,
          exit: exitCodes.noPermission,
        }),
      );
    const timer = setTimeout(fail, connectMs, `no answer within ${connectMs / 1000} s`);
    socket.once("close", () => fail("the daemon closed the connection"));
    takeFrom({ stream: socket, intake }, (chunk) => {
      const [event] = decoder.push(Buffer.from(chunk));
      if (!event) return true;
      const answer = "body" in event ? safely(() => JSON.parse(event.body.toString())) : undefined;
      if (answer?.result?.authenticated === true) settle();
      else fail(answer?.error?.message ?? "the daemon's answer is none");
      return false;
    });
    try {
      const params = { token: ownerKey() };
      socket.write(
        encodeFrame(JSON.stringify({ jsonrpc: "2.0", id: 0, method: "server.authenticate", params }), "native"),
      );
    } catch (error) {
      fail((error as Error).message);
    }
  });
}

function createLink(source: Source & { stream: Socket }, instance: string | undefined): Link {
  return {
    source,
    socket: source.stream,
    instance,
    requests: createFollower(beginsWithId),
    answers: createFollower(),
    answerLines: createFrameDecoder(),
    held: [],
    heldBytes: 0,
    heardAt: now(),
    silenceTimer: undefined,
    error: undefined,
    end: () => {},
  };
}

function relayOver(relay: Relay, link: Link): Promise<LinkEnd> {
  const { input, output } = relay.world;
  return new Promise((done) => {
    const { socket } = Object.assign(link, { end: done });
    socket
      .on("end", () => socket.end())
      .on("error", (error) => (link.error = errnoOf(error)))
      .on("close", () => done({ closed: true })) // it follows both: of a daemon that has said all, and of one that is gone
      .on("drain", () => input.stream.resume());
    output.on("drain", () => socket.resume()).on("error", (error) => done({ code: cannotWrite(relay, error) }));
    input.stream.on("error", () => done({ code: exitCodes.done }));
    if (relay.unread.length > 0) sendNative(relay, link, relay.unread.subarray(0));
    relay.unread = Buffer.alloc(0);
    takeFrom(link.source, (chunk) => fromDaemon(relay, link, chunk));
    takeFrom(input, (chunk) => toDaemon(relay, link, chunk));
    if (input.stream.readableEnded) endInput(relay, link);
    else input.stream.once("end", () => endInput(relay, link));
  });
}

/** Lets go of the channel's two ends: another daemon may be there for them. */
function release({ world: { input, output } }: Relay, link: Link): void {
  clearTimeout(link.silenceTimer);
  input.intake.take = undefined;
  input.stream
    .removeAllListeners("end")
    .removeAllListeners("error")
    .on("error", () => {});
  output
    .removeAllListeners("drain")
    .removeAllListeners("error")
    .on("error", () => {});
  link.socket.removeAllListeners("drain").destroy();
}

/** EPIPE is our client that has gone; the rest is told. */
function cannotWrite({ world }: Relay, error: unknown): number {
  if (errnoOf(error) !== "EPIPE") world.warn(osFailure("write to stdout", error));
  return exitCodes.failed;
}

// From the client to the daemon

function toDaemon(relay: Relay, link: Link, chunk: Buffer): boolean {
  const { isTerminal, stream } = relay.world.input;
  if (isTerminal && relay.framing !== "native" && chunk.length === 1 && endKeys.includes(chunk[0]!)) {
    stream.pause();
    endInput(relay, link);
    return false;
  }
  relay.framing ??= chunk[0] === 0 ? "native" : "lines";
  if (relay.framing === "lines") return forwardLines(relay, link, relay.lines.push(chunk));
  note(relay, link, chunk);
  return pass(chunk, stream, link.socket);
}

function forwardLines(relay: Relay, link: Link, events: FrameEvent[]): boolean {
  let goOn = true;
  for (const event of events) {
    if ("body" in event) goOn = sendNative(relay, link, encodeFrame(event.body, "native"));
    if ("oversizeBytes" in event) {
      relay.world.output.write(encodeFrame(oversizeAnswer(event.oversizeBytes, maxBodyBytes), "lines"));
      if (event.fatal) link.end({ code: exitCodes.failed });
    }
  }
  return goOn;
}

function sendNative(relay: Relay, link: Link, frames: Buffer): boolean {
  note(relay, link, frames);
  return link.socket.write(frames);
}

/** Half-closes. What is owed still comes, and then the daemon's own end. */
function endInput(relay: Relay, link: Link): void {
  if (relay.framing === "lines" && !relay.inputHasEnded) forwardLines(relay, link, relay.lines.end());
  relay.inputHasEnded = true;
  link.socket.end();
  watchSilence(relay, link);
}

/** Keeps in mind what is on its way to the daemon. */
function note(relay: Relay, link: Link, bytes: Buffer): void {
  follow(link.requests, bytes, (body) => addOwed(relay, body));
  watchSilence(relay, link);
  if (!link.held) return;
  link.heldBytes += bytes.length;
  if (link.heldBytes > maxHeldBytes) link.held = undefined;
  else link.held.push(Buffer.from(bytes));
}

function addOwed({ owed }: Relay, body: Buffer): void {
  const ids = idsIn(body);
  if (ids === undefined || owed.size >= maxOwed) return;
  const key = JSON.stringify(Array.isArray(ids) ? ids[0] : ids);
  const entry = owed.get(key);
  if (entry) entry.count++;
  else owed.set(key, { ids, count: 1 });
}

/** The id of a request, as it is answered; those of a batch; undefined for what is not answered, or is not JSON. */
export function idsIn(body: Buffer): unknown {
  const isLarge = body.length > 2 * edgeBytes;
  const found = isLarge
    ? (idAtBeginning(body) ?? capture(idLast, body.toString("utf8", body.length - edgeBytes)))
    : undefined;
  if (found !== undefined) return answeredId({ id: safely((): unknown => JSON.parse(found)) });
  const request = safely((): unknown => JSON.parse(body.toString()));
  if (!Array.isArray(request))
    return request === undefined || isNotification(request) ? undefined : answeredId(request);
  const ids = request.filter((one) => !isNotification(one)).map(answeredId);
  return ids.length > 0 ? ids : undefined;
}

/** Then a large body need not be kept. */
export function beginsWithId(body: Buffer): boolean {
  return idAtBeginning(body) !== undefined;
}

function idAtBeginning(body: Buffer): string | undefined {
  return capture(idFirst, body.toString("utf8", 0, edgeBytes));
}

/** What is no request, or has no id that is one, is refused, with null. */
function answeredId(request: unknown): unknown {
  const { id } = Object(request) as { id?: unknown };
  return isId(id) ? id : null;
}

/** A daemon that owes something, or its end, is to say something now and then; one that does not is asked over another connection. */
function watchSilence(relay: Relay, link: Link): void {
  if (link.silenceTimer) return;
  link.silenceTimer = setTimeout(async () => {
    const isQuiet = now() - link.heardAt >= silenceMs;
    const owes = relay.owed.size > 0 || relay.inputHasEnded;
    const failure = isQuiet && owes ? await relay.world.explainSilence() : undefined;
    link.silenceTimer = undefined;
    if (failure && now() - link.heardAt >= silenceMs) return link.end({ silent: failure });
    if (owes) watchSilence(relay, link);
  }, silenceMs);
}

// From the daemon to the client

function fromDaemon(relay: Relay, link: Link, chunk: Buffer): boolean {
  const { output } = relay.world;
  link.held = undefined;
  link.heardAt = now();
  follow(link.answers, chunk, (body) => settleOwed(relay, body));
  if (relay.framing !== "lines") return pass(chunk, link.source.stream, output);
  let goOn = true;
  for (const event of link.answerLines.push(chunk))
    if ("body" in event)
      goOn = isDetached(event.body) ? endTaken(link) : output.write(encodeFrame(event.body, "lines"));
  return goOn;
}

function isDetached(body: Buffer): boolean {
  return body.toString("latin1", 0, 18) === '{"type":"detached"';
}

/** Its stream was taken: clients of the public protocol, which speak lines, know an end, not that word. */
function endTaken(link: Link): boolean {
  link.end({ code: exitCodes.failed });
  return true;
}

function settleOwed({ owed }: Relay, body: Buffer): void {
  if (owed.size === 0 || body[2] === 0x74) return; // {"type":…
  const id = capture(answerId, body.toString("utf8", 0, edgeBytes));
  const entry = id === undefined ? undefined : owed.get(id);
  if (entry && --entry.count === 0) owed.delete(id!);
}

// The end

/**
 * The daemon has closed the connection, or is gone.
 *
 * @param mayGoOn Another daemon may be asked.
 * @returns The exit code; or undefined: relay.unread is for the next daemon.
 */
async function afterLoss(relay: Relay, link: Link, mayGoOn: boolean): Promise<number | undefined> {
  const { world } = relay;
  if (relay.inputHasEnded && relay.owed.size === 0 && link.error === undefined) return finish(relay, exitCodes.done);
  const failure = tokenHint(await world.explainLoss(link.instance), link);
  const doubtful = new Failure(`${failure.message}; what was asked may have been carried out`, failure);
  const isOver = world.isDead() || failure.data.reason === "crashed" || world.instance() !== link.instance;
  if (!link.held || !mayGoOn || !isOver) {
    if (isBetweenFrames(link.answers)) answerOwed(relay, doubtful);
    if (isBetweenFrames(link.answers) && !relay.inputHasEnded) sayLost(relay, failure);
    world.warn(failure);
    return finish(relay, failure.exit);
  }
  const { read, unread } = partOf(link.held, link.error);
  relay.owed.clear();
  relay.unread = unread;
  for (const body of read) answer(relay, body, doubtful);
  return undefined;
}

/** A client that has said nothing is closed after a minute: perhaps it has no token, and waits. */
function tokenHint(failure: Failure, { heldBytes }: Link): Failure {
  if (failure.data.reason !== "closed" || heldBytes > 0) return failure;
  const hint =
    "a client authenticates within 60 s, with the token that --serve has named; --bridge --as-owner needs none";
  return new Failure(failure.message, { ...failure, hint });
}

function sayLost(relay: Relay, { message, hint, data }: Failure): void {
  say(relay, { type: "bridge", event: "lost", ...data, message, hint });
}

function say({ world, framing }: Relay, message: unknown): void {
  world.output.write(encodeFrame(JSON.stringify(message), framing || "native"));
}

/** Returns whether there was anything to answer. */
function answerOwed(relay: Relay, failure: Failure): boolean {
  const owed = [...relay.owed.values()];
  relay.owed.clear();
  for (const { ids, count } of owed) {
    const error = Array.isArray(ids) ? ids.map((id) => errorOf(id, failure)) : errorOf(ids, failure);
    for (let i = 0; i < count; i++) say(relay, error);
  }
  return owed.length > 0;
}

function answer(relay: Relay, body: Buffer, failure: Failure): boolean {
  const found = answerTo(body, failure);
  if (found) say(relay, found);
  return found !== undefined;
}

/**
 * Answers every request with why there is no daemon, so that a client that shows only RPC errors shows this; ends after the first burst of them.
 *
 * @param unanswered What was sent and not answered, as native frames; undefined when only `owed` knows of it.
 * @param link Where it was sent.
 */
function answerWith(relay: Relay, failure: Failure, unanswered: Buffer | undefined, link?: Link): Promise<number> {
  const { input, output, warn } = relay.world;
  warn(failure);
  return new Promise((done) => {
    const end = (): void => void finish(relay, failure.exit).then(done);
    if (link && !isBetweenFrames(link.answers)) return end(); // never a frame within another
    const frames = createFrameDecoder();
    let isEnding = false;
    const endSoon = (): void => {
      if (!isEnding) setTimeout(end, burstMs);
      isEnding = true;
    };
    const take = (events: FrameEvent[]): void => {
      for (const event of events) if ("body" in event && answer(relay, event.body, failure)) endSoon();
    };
    output.on("error", end);
    if (unanswered) take(frames.push(unanswered));
    else if (answerOwed(relay, failure)) endSoon();
    if (!unanswered && link && !isBetweenFrames(link.requests)) return; // the rest of a request cannot be read as one
    takeFrom(input, (chunk) => {
      relay.framing ??= chunk[0] === 0 ? "native" : "lines";
      take((relay.framing === "lines" ? relay.lines : frames).push(chunk));
      return true;
    });
    const endInput = (): void => {
      if (relay.framing === "lines" && !relay.inputHasEnded) take(relay.lines.end());
      end();
    };
    input.stream.on("error", end);
    if (input.stream.readableEnded) endInput();
    else input.stream.on("end", endInput);
  });
}

/** When all of stdout is written: a slow line is waited for, as long as our ancestors live. */
async function finish({ world: { input, output } }: Relay, code: number): Promise<number> {
  input.stream.destroy();
  return (await flush(output)) ? Math.max(code, exitCodes.failed) : code;
}
