/** A line to the daemon as a client has it: a socket or a bridge, native frames or lines of JSON. Written by hand, so that frame.ts is not its own judge. */

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { connect } from "node:net";
import type { Readable, Writable } from "node:stream";

/** The line is gone, or could not be had. Where the daemon was just ended on purpose, that is as it should be. */
export class Lost extends Error {}
/** The daemon has done what it must not. Nothing excuses that. */
export class Wrong extends Error {}
/** An error answer. */
export class Refused extends Error {
  code: number;
  data: any;
  constructor({ code, message, data }: { code: number; message: string; data?: unknown }) {
    super(`${message} (${code})`);
    this.code = code;
    this.data = data;
  }
}

/** A machine may be loaded: nothing of the daemon's own takes so long. */
const answerMs = 60_000;

export interface Line {
  /** How it leads to the daemon: "bridge, lines". */
  readonly name: string;
  readonly framing: "native" | "lines";
  /** The --bridge, where it is one. */
  readonly bridge: ChildProcess | undefined;
  /** What the bridge says on stderr. */
  words: string;
  /** Put into each request unless it is undefined. */
  auth: string | undefined;
  /** @param now Called with the result before any message after it is looked at. */
  request(method: string, params?: unknown, now?: (result: any) => void): Promise<any>;
  /** Sends what is no request of its own: a batch, a notification; or anything. */
  send(message: unknown): void;
  write(bytes: Buffer | string): void;
  /** The next message that is neither the answer to a request() nor of a stream that is followed. */
  next(): Promise<any>;
  onStream(id: string, listener: (message: any) => void): void;
  /** Waits for something to become true, that a message makes so. */
  until(what: string, isSo: () => boolean, timeoutMs?: number): Promise<void>;
  /** Nothing is read any more, until resume(). */
  pause(): void;
  resume(): void;
  /** Ends it as a client does, and waits for the other side. */
  close(): Promise<void>;
  /** Without a word: kill -9 to a bridge. */
  cut(): void;
  readonly closed: Promise<void>;
  readonly isClosed: boolean;
}

export function openSocketLine(path: string, framing: Line["framing"]): Promise<Line> {
  return new Promise((done, fail) => {
    const socket = connect({ path, allowHalfOpen: true });
    socket.once("error", (error) => fail(new Lost(error.message)));
    socket.once("connect", () =>
      done(createLine("socket", framing, socket, socket, () => socket.destroy(), undefined)),
    );
  });
}

export function openBridgeLine(command: string[], env: NodeJS.ProcessEnv, framing: Line["framing"]): Line {
  const bridge = spawn(command[0]!, command.slice(1), { env, cwd: "/" });
  const line = createLine("bridge", framing, bridge.stdout, bridge.stdin, () => bridge.kill("SIGKILL"), bridge);
  bridge.stderr.on("data", (chunk: Buffer) => (line.words = (line.words + chunk).slice(-1000)));
  return line;
}

/** What waits for messages of one line. */
interface Inbox {
  name: string;
  /** By the id of the request; called with undefined when the line has ended. */
  answers: Map<number, (answer: any) => void>;
  streams: Map<string, (message: any) => void>;
  /** What nobody has waited for, oldest first. */
  others: any[];
  watchers: Set<() => void>;
  lastId: number;
  isClosed: boolean;
}

function createLine(
  kind: string,
  framing: Line["framing"],
  input: Readable,
  output: Writable,
  kill: () => void,
  bridge: ChildProcess | undefined,
): Line {
  const name = `${kind}, ${framing}`;
  const inbox: Inbox = {
    ...{ name, answers: new Map(), streams: new Map(), others: [], watchers: new Set(), lastId: 0, isClosed: false },
  };
  input
    .on(
      "data",
      createDecoder(framing, (message) => take(inbox, message)),
    )
    .on("error", () => {}); // "close" follows
  output.on("error", () => {});
  const closed = new Promise<void>((done) => {
    const end = (): void => {
      endInbox(inbox);
      done();
    };
    if (bridge !== undefined) return void bridge.once("close", end).once("error", end);
    input.once("close", end);
    input.once("end", () => output.end()); // allowHalfOpen: the daemon has said all
  });

  const line: Line = {
    ...{ name, framing, bridge, words: "", auth: undefined, closed },
    get isClosed() {
      return inbox.isClosed;
    },
    request: (method, params = {}, now) => ask(inbox, line, { method, params }, now),
    send: (message) => line.write(encode(framing, message)),
    write: (bytes) => void (output.writable && output.write(bytes)),
    next: () => nextOf(inbox),
    onStream: (id, listener) => void inbox.streams.set(id, listener),
    until: (what, isSo, timeoutMs) => waitUntil(inbox, what, isSo, timeoutMs),
    pause: () => void input.pause(),
    resume: () => void input.resume(),
    close: async () => {
      input.resume();
      output.end();
      const timer = setTimeout(kill, answerMs);
      await closed;
      clearTimeout(timer);
    },
    cut: () => {
      kill();
      input.resume(); // what is still in it would keep "close" away
    },
  };
  return line;
}

function take({ answers, streams, others, watchers }: Inbox, message: any): void {
  const answer = typeof message?.id === "number" ? answers.get(message.id) : undefined;
  const stream = streams.get(message?.processId);
  if (answer !== undefined) {
    answers.delete(message.id);
    answer(message);
  } else if (stream !== undefined) stream(message);
  else others.push(message);
  for (const watcher of [...watchers]) watcher();
}

function endInbox(inbox: Inbox): void {
  inbox.isClosed = true;
  for (const answer of inbox.answers.values()) answer(undefined);
  for (const watcher of [...inbox.watchers]) watcher();
}

function ask(
  inbox: Inbox,
  line: Line,
  { method, params }: { method: string; params: unknown },
  now?: (result: any) => void,
): Promise<any> {
  const { name } = inbox;
  return new Promise((done, fail) => {
    if (inbox.isClosed) return fail(new Lost(`${name}: it has ended before ${method}`));
    const id = ++inbox.lastId;
    const late = (): void => fail(new Wrong(`${name}: no answer to ${method} within ${answerMs / 1000} s`));
    const timer = setTimeout(late, answerMs);
    inbox.answers.set(id, (answer) => {
      clearTimeout(timer);
      if (answer === undefined) return fail(new Lost(`${name}: it ended before the answer to ${method}`));
      if (answer.error?.code === -32010) return fail(new Lost(`${name}: ${answer.error.message}`));
      if (answer.error !== undefined) return fail(new Refused(answer.error));
      now?.(answer.result);
      done(answer.result);
    });
    line.send({ jsonrpc: "2.0", id, method, params, ...(line.auth === undefined ? {} : { auth: line.auth }) });
  });
}

async function nextOf(inbox: Inbox): Promise<any> {
  await waitUntil(inbox, "another message", () => inbox.others.length > 0);
  const message = inbox.others.shift();
  const { error } = [message].flat()[0] ?? {};
  if (error?.code === -32010 || message?.event === "lost")
    throw new Lost(`${inbox.name}: ${(error ?? message).message}`);
  return message;
}

function waitUntil(inbox: Inbox, what: string, isSo: () => boolean, timeoutMs = answerMs): Promise<void> {
  const { name, watchers } = inbox;
  return new Promise((done, fail) => {
    const late = (): void => finish(() => fail(new Wrong(`${name}: not within ${timeoutMs / 1000} s: ${what}`)));
    const timer = setTimeout(late, timeoutMs);
    const finish = (settle: () => void): void => {
      clearTimeout(timer);
      watchers.delete(look);
      settle();
    };
    const look = (): void => {
      if (isSo()) finish(done);
      else if (inbox.isClosed) finish(() => fail(new Lost(`${name}: it ended before ${what}`)));
    };
    watchers.add(look);
    look();
  });
}

function encode(framing: Line["framing"], message: unknown): Buffer | string {
  const body = JSON.stringify(message);
  if (framing === "lines") return `${body}\n`;
  const frame = Buffer.from(`    ${body}`);
  frame.writeUInt32BE(frame.length - 4);
  return frame;
}

function createDecoder(framing: Line["framing"], take: (message: any) => void): (chunk: Buffer) => void {
  const placeOf = framing === "lines" ? placeOfLine : placeOfFrame;
  let held: Buffer[] = [];
  let heldBytes = 0;
  let wanted = 1;
  return (chunk) => {
    held.push(chunk);
    heldBytes += chunk.length;
    if (heldBytes < wanted || (framing === "lines" && !chunk.includes(10))) return;
    const bytes = held.length === 1 ? chunk : Buffer.concat(held);
    let at = 0;
    let place = placeOf(bytes, at);
    for (; place.end <= bytes.length; place = placeOf(bytes, at)) {
      take(JSON.parse(bytes.toString("utf8", at + place.header, place.end)));
      at = place.end + place.trailer;
    }
    held = at < bytes.length ? [bytes.subarray(at)] : [];
    heldBytes = bytes.length - at;
    wanted = place.end - at; // a large frame is put together once
  };
}

/** Where the message at a place of some bytes ends; after all of them while that is not known. */
interface Place {
  header: number;
  end: number;
  trailer: number;
}

function placeOfLine(bytes: Buffer, at: number): Place {
  const end = bytes.indexOf(10, at);
  return { header: 0, end: end < 0 ? bytes.length + 1 : end, trailer: 1 };
}

function placeOfFrame(bytes: Buffer, at: number): Place {
  return { header: 4, end: at + 4 + (at + 4 <= bytes.length ? bytes.readUInt32BE(at) : 0), trailer: 0 };
}
