/** What tests of the built file have in common: its path, and the wire spoken by hand, so that frame.ts is not its own judge. */

import { spawn } from "node:child_process";
import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { resolve } from "node:path";

export const builtFile = resolve("dist/holdfast.js");

/** One native frame: the length in four bytes, then the JSON. */
export function frameOf(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, body]);
}

/** All native frames in some bytes. Throws where they end inside one. */
export function messagesIn(bytes: Buffer): any[] {
  const messages: any[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + 4 + bytes.readUInt32BE(at);
    if (end > bytes.length) throw new Error(`The bytes end ${end - bytes.length} bytes before the end of a frame`);
    messages.push(JSON.parse(bytes.toString("utf8", at + 4, end)));
    at = end;
  }
  return messages;
}

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: Buffer;
  stderr: string;
  ms: number;
}

/** Gives a child its stdin, and waits for its end. */
export function outcomeOf(child: ChildProcessWithoutNullStreams, stdin: string | Buffer = "", timeoutMs = 20_000): Promise<Outcome> {
  const start = Date.now();
  const stdout: Buffer[] = [];
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk));
  child.stdin.on("error", () => {}); // it ended first
  child.stdin.end(stdin);
  const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
  return new Promise((done) => child.once("close", (code, signal) => {
    clearTimeout(timer);
    done({ code, signal, stdout: Buffer.concat(stdout), stderr, ms: Date.now() - start });
  }));
}

/** Runs the built file to its end. */
export function holdfast(args: string[], { stdin = "" as string | Buffer, env = {} as NodeJS.ProcessEnv, cwd = "/", timeoutMs = 20_000 } = {}): Promise<Outcome> {
  return outcomeOf(spawn(process.execPath, [builtFile, ...args], { env: { ...process.env, ...env }, cwd }), stdin, timeoutMs);
}

export const request = (method: string, params: unknown = {}, auth?: string, id: unknown = 1): Record<string, unknown> =>
  ({ jsonrpc: "2.0", id, method, params, ...(auth === undefined ? {} : { auth }) });

/**
 * Registers tests that run side by side, most of whose time is waiting: at most `limit` at once, in order, reported one after the other.
 *
 * @param test A uvu suite.
 */
export function sideBySide(test: (name: string, body: () => Promise<void>) => void, limit: number): (name: string, body: () => Promise<void>) => void {
  const free = Array.from({ length: limit }, () => Promise.resolve());
  return (name, body) => {
    const turn = free.shift()!; // a lane: each test of it begins when the one before has ended
    const run = turn.then(body);
    free.push(run.catch(() => {}));
    test(name, () => run);
  };
}
