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

function createLine(
  kind: string,
  framing: Line["framing"],
  input: Readable,
  output: Writable,
  kill: () => void,
  bridge: ChildProcess | undefined,
): Line {
  const name = `${kind}, ${framing}`;
  const answers = new Map<number, (answer: any) => void>();
  const streams = new Map<string, (message: any) => void>();
  const others: any[] = [];
  const watchers = new Set<() => void>();
  let lastId = 0;
  let isClosed = false;

  const decode = createDecoder(framing, take);
  input.on("data", decode).on("error", () => {}); // "close" follows
  output.on("error", () => {});
  const closed = new Promise<void>((done) => {
    const end = (): void => {
      isClosed = true;
      for (const answer of answers.values()) answer(undefined);
      for (const watcher of [...watchers]) watcher();
      done();
    };
    if (bridge !== undefined) return void bridge.once("close", end).once("error", end);
    input.once("close", end);
    input.once("end", () => output.end()); // allowHalfOpen: the daemon has said all
  });

  function take(message: any): void {
    const answer = typeof message?.id === "number" ? answers.get(message.id) : undefined;
    const stream = streams.get(message?.processId);
    if (answer !== undefined) {
      answers.delete(message.id);
      answer(message);
    } else if (stream !== undefined) stream(message);
    else others.push(message);
    for (const watcher of [...watchers]) watcher();
  }

  const line: Line = {
    name,
    framing,
    bridge,
    words: "",
    auth: undefined,
    closed,
    get isClosed() {
      return isClosed;
    },
    request: (method, params = {}, now) =>
      new Promise((done, fail) => {
        if (isClosed) return fail(new Lost(`${name}: it has ended before ${method}`));
        const id = ++lastId;
        const timer = setTimeout(
          () => fail(new Wrong(`${name}: no answer to ${method} within ${answerMs / 1000} s`)),
          answerMs,
        );
        answers.set(id, (answer) => {
          clearTimeout(timer);
          if (answer === undefined) return fail(new Lost(`${name}: it ended before the answer to ${method}`));
          if (answer.error?.code === -32010) return fail(new Lost(`${name}: ${answer.error.message}`));
          if (answer.error !== undefined) return fail(new Refused(answer.error));
          now?.(answer.result);
          done(answer.result);
        });
        line.send({ jsonrpc: "2.0", id, method, params, ...(line.auth === undefined ? {} : { auth: line.auth }) });
      }),
    send: (message) => {
      const body = JSON.stringify(message);
      if (framing === "lines") return line.write(`${body}\n`);
      const frame = Buffer.from(`    ${body}`);
      frame.writeUInt32BE(frame.length - 4);
      line.write(frame);
    },
    write: (bytes) => void (output.writable && output.write(bytes)),
    next: async () => {
      await line.until("another message", () => others.length > 0);
      const message = others.shift();
      const { error } = [message].flat()[0] ?? {};
      if (error?.code === -32010 || message?.event === "lost") throw new Lost(`${name}: ${(error ?? message).message}`);
      return message;
    },
    onStream: (id, listener) => void streams.set(id, listener),
    until: (what, isSo, timeoutMs = answerMs) =>
      new Promise((done, fail) => {
        const timer = setTimeout(
          () => finish(() => fail(new Wrong(`${name}: not within ${timeoutMs / 1000} s: ${what}`))),
          timeoutMs,
        );
        const finish = (settle: () => void): void => {
          clearTimeout(timer);
          watchers.delete(look);
          settle();
        };
        const look = (): void => {
          if (isSo()) finish(done);
          else if (isClosed) finish(() => fail(new Lost(`${name}: it ended before ${what}`)));
        };
        watchers.add(look);
        look();
      }),
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

function createDecoder(framing: Line["framing"], take: (message: any) => void): (chunk: Buffer) => void {
  let held: Buffer[] = [];
  let heldBytes = 0;
  let wanted = framing === "native" ? 4 : 1;
  return (chunk) => {
    held.push(chunk);
    heldBytes += chunk.length;
    if (framing === "lines" ? !chunk.includes(10) : heldBytes < wanted) return;
    const bytes = held.length === 1 ? chunk : Buffer.concat(held);
    let at = 0;
    if (framing === "lines") {
      for (let end; (end = bytes.indexOf(10, at)) >= 0; at = end + 1) take(JSON.parse(bytes.toString("utf8", at, end)));
    } else {
      for (wanted = 4; at + 4 <= bytes.length; at += wanted, wanted = 4) {
        wanted = 4 + bytes.readUInt32BE(at);
        if (at + wanted > bytes.length) break;
        take(JSON.parse(bytes.toString("utf8", at + 4, at + wanted)));
      }
    }
    held = at < bytes.length ? [bytes.subarray(at)] : [];
    heldBytes = bytes.length - at;
  };
}
