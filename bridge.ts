/**
 * A relay between one SSH channel and the daemon's socket.
 *
 * Native bytes pass untouched; a peer that speaks lines is re-framed, without a look into its JSON. It ends when either side ends, and never
 * outlives its channel: stdin's end (answers are drained for 2 s), an error on stdout, SIGHUP, or its parent's death.
 */

import { createWriteStream, fstatSync } from "node:fs";
import { Socket } from "node:net";
import type { OnReadOpts } from "node:net";
import type { Readable, Writable } from "node:stream";
import { tryConnect } from "./client.ts";
import type { ConnectFailure } from "./client.ts";
import { exitCodes, safely } from "./failure.ts";
import type { Failure } from "./failure.ts";
import { createFrameDecoder, encodeFrame, maxBodyBytes } from "./frame.ts";
import type { FrameDecoder, FrameEvent, Framing } from "./frame.ts";
import { runtime } from "./program.ts";
import { oversizeAnswer } from "./rpc.ts";

const connectMs = 5000;
/** How long answers are waited for after stdin has ended. */
const drainMs = 2000;
/** How long what was received may take to be written to stdout in the end. */
const flushMs = 2000;
/** How long a daemon may say nothing at all to a first request before it is asked, over a connection of its own, whether it answers. */
const silenceMs = 5000;
/** What was sent meanwhile is kept, so that it can be answered if the daemon does not. */
const maxHeldBytes = 1 << 20;
/** Requests that came with the first one, or right after it, are answered too. */
const burstMs = 100;
/** How often the parent is looked for. A channel whose shell was killed may leave us the pipes of somebody else. */
const parentMs = 2000;
/** What one read takes: a pipe holds 64 KiB, a Unix socket some 200. */
const intakeBytes = 256 << 10;

export interface BridgeWorld {
  input: Readable;
  output: Writable;
  socket: string;
  /** The daemon of this socket has provably ended, or is just ending: whoever connects to it is not heard. */
  isDead(): boolean;
  /** Finds another way to a daemon than its socket, having started one if need be; or says why there is none. */
  reachOtherwise(outcome: ConnectFailure): Promise<Socket | Failure>;
  /** Words for the person at stderr. */
  warn(failure: Failure): void;
  /** Asks the daemon over another connection; why it does not answer, when it does not. */
  explainSilence(): Promise<Failure | undefined>;
  /** Why the daemon closed the connection, once it has. */
  explainLoss(): Promise<Failure>;
}

/** The two ends of our own SSH channel. */
export function channelEnds(): { input: Readable; output: Writable } {
  // Not process.stdout: whether its writes to a pipe block is left to the runtime. If they did, a client that writes much before it reads would
  // stop both directions for good.
  const stats = fstatSync(1);
  const output =
    stats.isFIFO() || stats.isSocket()
      ? new Socket({ fd: 1, readable: false, writable: true })
      : createWriteStream("", { fd: 1 });
  return { input: openInput(), output };
}

function openInput(): Readable {
  const stats = fstatSync(0);
  // Deno and Bun do not read a descriptor by net.Socket
  if (!(stats.isFIFO() || stats.isSocket()) || runtime !== "node") return process.stdin;
  const intake = createIntake();
  // manualStart, as node opens process.stdin: else it reads, and may end, before anyone listens
  return intake.keepFor(
    new Socket({ fd: 0, readable: true, writable: false, manualStart: true, onread: intake.onread } as object),
  );
}

/** Takes a chunk that is good until it returns; with false, until resume(): then nothing more is read before that. */
type Take = (chunk: Buffer) => boolean;

/**
 * Reads a socket into one buffer, again and again. A buffer for each read, as streams have it, is what a relay spends most of its time on: with
 * this one it passes twice as much.
 */
interface Intake {
  onread: OnReadOpts;
  /** What it is that is read. */
  keepFor<T extends Readable>(source: T): T;
  take: Take;
  /** What came before anyone took it: a socket reads as soon as it can. */
  early: Buffer | undefined;
}

const intakes = new WeakMap<Readable, Intake>();

function createIntake(): Intake {
  const intake: Intake = {
    onread: {
      buffer: Buffer.allocUnsafe(intakeBytes),
      callback: (length, bytes) => intake.take(Buffer.from(bytes.buffer, bytes.byteOffset, length)),
    },
    keepFor: (source) => (intakes.set(source, intake), source),
    take: (chunk) => ((intake.early = Buffer.from(chunk)), false),
    early: undefined,
  };
  return intake;
}

/** Takes what comes from a stream, from now on; a runtime that knows no `onread` emits "data". */
function takeFrom(source: Readable, take: Take): void {
  const onData = (chunk: Buffer): void => void (take(chunk) || source.pause());
  source.removeAllListeners("data").on("data", onData);
  const intake = intakes.get(source);
  if (!intake) return;
  const { early } = intake;
  Object.assign(intake, { take, early: undefined });
  if (early) onData(early);
}

/** Writes a chunk as it is. Most often the kernel takes it at once; else its buffer is not to be read into until it has. */
function pass(chunk: Buffer, from: Readable, to: Writable): boolean {
  let isWaiting = false;
  to.write(chunk, () => isWaiting && from.resume());
  return !(isWaiting = to.writableLength > 0);
}

/**
 * Relays until either side ends.
 *
 * @returns The exit code: 0 when our own peer ended it, 69 when there is no daemon (any more), 1 when the daemon closed the connection.
 */
export function runBridge(world: BridgeWorld): Promise<number> {
  const parent = process.ppid;
  const orphaned = new Promise<number>((done) =>
    setInterval(() => process.ppid === parent || done(exitCodes.done), parentMs),
  );
  return Promise.race([reachAndRelay(world), orphaned]);
}

async function reachAndRelay(world: BridgeWorld): Promise<number> {
  const intake = createIntake();
  const connected = await tryConnect(world.socket, connectMs, intake.onread);
  const attempt = "socket" in connected && world.isDead() ? refused(connected.socket) : connected;
  const reached = "socket" in attempt ? intake.keepFor(attempt.socket) : await world.reachOtherwise(attempt);
  const outcome = reached instanceof Socket ? await relay(reached, world) : { failure: reached, unanswered: [] };
  if (typeof outcome === "number") return outcome;
  world.warn(outcome.failure);
  await answerWith(outcome.failure, outcome.unanswered, world);
  return outcome.failure.exit;
}

/** A daemon that is just ending may still be connected to for some ms, as its last thread leaves the kernel. */
function refused(socket: Socket): ConnectFailure {
  socket.destroy();
  return { error: Object.assign(new Error("ECONNREFUSED: the daemon is just ending"), { code: "ECONNREFUSED" }) };
}

/** The exit code; or, when the daemon has not said a word: why, and what it was sent. */
type RelayOutcome = number | { failure: Failure; unanswered: Buffer[] };

function relay(
  socket: Socket,
  { input, output, warn, explainLoss, explainSilence }: BridgeWorld,
): Promise<RelayOutcome> {
  return new Promise((done) => {
    const lines = createFrameDecoder();
    const answers = createFrameDecoder();
    const boundary = createBoundary();
    let framing: Framing | undefined;
    let inputEnded = false;
    let finished = false;
    let drainTimer: NodeJS.Timeout | undefined;
    let held: Buffer[] | undefined = [];
    let heldBytes = 0;
    let silenceTimer: NodeJS.Timeout | undefined;

    takeFrom(input, (chunk) => {
      framing ??= chunk[0] === 0 ? "native" : "lines";
      hold(chunk);
      return framing === "native" ? pass(chunk, input, socket) : forwardLines(lines.push(chunk));
    });
    socket.on("drain", () => input.resume());
    input
      .on("error", () => finish(exitCodes.done))
      .on("end", () => {
        inputEnded = true;
        forwardLines(lines.end());
        socket.end();
        drainTimer = setTimeout(finish, drainMs, exitCodes.done);
      });

    takeFrom(socket, (chunk) => {
      release();
      boundary.pass(chunk);
      return framing === "lines" ? writeLines(answers, chunk) : pass(chunk, socket, output);
    });
    output.on("drain", () => socket.resume()).on("error", () => finish(exitCodes.done)); // EPIPE: nobody reads any more
    // "close" follows both: of a daemon that has said all, and of one that is gone
    socket
      .on("end", () => socket.end())
      .on("error", () => {})
      .on("close", async () => {
        if (inputEnded || finished) return finish(exitCodes.done);
        const failure = await explainLoss();
        if (finished) return;
        const { message, hint, data } = failure;
        if (boundary.isBetweenFrames())
          output.write(
            encodeFrame(JSON.stringify({ type: "bridge", event: "lost", ...data, message, hint }), framing || "native"),
          );
        warn(failure);
        finish(failure.exit);
      });

    /** Keeps what the daemon was sent, until its first word. */
    function hold(chunk: Buffer): void {
      if (!held) return;
      silenceTimer ??= setTimeout(async () => {
        const failure = await explainSilence();
        if (!failure || !held || finished) return;
        end();
        done({ failure, unanswered: held });
      }, silenceMs);
      held.push(Buffer.from(chunk));
      if ((heldBytes += chunk.length) > maxHeldBytes) release();
    }

    function release(): void {
      if (!held) return;
      held = undefined;
      clearTimeout(silenceTimer);
    }

    function forwardLines(events: FrameEvent[]): boolean {
      let goOn = true;
      for (const event of events) {
        if ("body" in event) goOn = socket.write(encodeFrame(event.body, "native"));
        if ("oversizeBytes" in event) {
          output.write(encodeFrame(oversizeAnswer(event.oversizeBytes, maxBodyBytes), "lines"));
          if (event.fatal) finish(exitCodes.failed);
        }
      }
      return goOn;
    }

    function writeLines(decoder: FrameDecoder, chunk: Buffer): boolean {
      let goOn = true;
      for (const event of decoder.push(chunk))
        if ("body" in event) goOn = output.write(encodeFrame(event.body, "lines"));
      return goOn;
    }

    function finish(code: number): void {
      if (finished) return;
      end();
      input.destroy();
      void flush(output).then(() => done(code));
    }

    function end(): void {
      finished = true;
      clearTimeout(drainTimer);
      clearTimeout(silenceTimer);
      takeFrom(input, () => true);
      input.removeAllListeners("data");
      input.removeAllListeners("end");
      socket.destroy();
    }
  });
}

/** Follows native frames passing by, only far enough to know where one ends. */
function createBoundary(): { pass(chunk: Buffer): void; isBetweenFrames(): boolean } {
  let header = 0;
  let headerRead = 0;
  let left = 0;
  return {
    pass(chunk) {
      for (let at = 0; at < chunk.length; ) {
        const skipped = Math.min(left, chunk.length - at);
        at += skipped;
        left -= skipped;
        for (; left === 0 && headerRead < 4 && at < chunk.length; headerRead++) header = header * 256 + chunk[at++]!;
        if (headerRead < 4) continue;
        left = header;
        header = headerRead = 0;
      }
    },
    isBetweenFrames: () => left === 0 && headerRead === 0,
  };
}

/** Answers every request with why there is no daemon, so that a client that shows only RPC errors shows this; ends after the first burst of them. */
function answerWith(failure: Failure, unanswered: Buffer[], { input, output }: BridgeWorld): Promise<void> {
  return new Promise((done) => {
    const decoder = createFrameDecoder();
    const finish = (): void => void (input.destroy(), flush(output).then(done));
    const take = (events: FrameEvent[]): void => {
      for (const event of events) {
        if (!("body" in event)) continue;
        const answer = answerTo(event.body, failure);
        if (!answer) continue;
        output.write(encodeFrame(JSON.stringify(answer), decoder.framing || "native"));
        burst ??= setTimeout(finish, burstMs);
      }
    };
    let burst: NodeJS.Timeout | undefined;
    output.on("error", finish);
    input.on("error", finish);
    takeFrom(input, (chunk) => (take(decoder.push(chunk)), true));
    input.on("end", () => {
      take(decoder.end());
      finish();
    });
    for (const chunk of unanswered) take(decoder.push(chunk));
    if (input.readableEnded) finish();
    else input.resume();
  });
}

/** One error, or an array of them for a batch; undefined where only notifications came. What cannot be read is answered with id null. */
function answerTo(body: Buffer, { code, message, data, hint }: Failure): unknown {
  const error = { code, message, data: { ...data, hint } };
  const answersTo = (request: unknown): unknown[] => {
    if (typeof request !== "object" || request === null) return [{ jsonrpc: "2.0", id: null, error }];
    return "id" in request ? [{ jsonrpc: "2.0", id: request.id, error }] : [];
  };
  const requests = safely((): unknown => JSON.parse(body.toString("utf8")));
  if (!Array.isArray(requests) || requests.length === 0) return answersTo(Array.isArray(requests) ? null : requests)[0];
  const answers = requests.flatMap(answersTo);
  return answers.length === 0 ? undefined : answers;
}

function flush(output: Writable): Promise<void> {
  return new Promise((done) => {
    const over = (): void => (clearTimeout(timer), done());
    const timer = setTimeout(over, flushMs);
    output.on("error", over).end(over);
  });
}
