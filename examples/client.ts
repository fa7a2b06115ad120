// Runs a shell command on a host, prints its output, ends with its exit code; and goes on where it was when the connection is lost.
// With nothing but the protocol, as a client in any language would: fleet.ts beside it has the library.
//
//     node client.ts TOKEN-FILE 'make -j4' ssh host node holdfast.js --bridge        (before Node 24: build it with esbuild first)

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

/** A response, or a message of a stream. */
interface Message {
  [member: string]: unknown;
  result?: { found?: boolean; firstSeq?: number; instanceId?: string };
  error?: { message: string; data?: { hint?: string } };
}

const [tokenFile, script, connect, ...connectArgs] = process.argv.slice(2) as [string, string, string, ...string[]];
const token = readFileSync(tokenFile, "utf8").trim();
const id = randomUUID();
let instance: string | undefined; // of the daemon that has our process
let lastSeq = 0; // of the messages that we have seen
const maxNoise = 65_536; // what rc files print comes first; a frame begins with 0x00

/** Takes the frames out of what has come, and returns the rest. */
function takeFrames(bytes: Buffer, take: (message: Message) => void): Buffer {
  const end = bytes.length < 4 ? Number.POSITIVE_INFINITY : 4 + bytes.readUInt32BE();
  if (bytes.length < end) return bytes;
  take(JSON.parse(bytes.toString("utf8", 4, end)));
  return takeFrames(bytes.subarray(end), take);
}

function print({ stream, data, maxBytes }: Message): void {
  if (stream === "gap") console.error(`at most ${maxBytes} bytes were lost as the daemon was killed`);
  else process[stream as "stdout" | "stderr"].write(Buffer.from(String(data), "base64"));
}

/** Connects and takes the process up, or starts it. Resolves to its exit code, or undefined when the connection was lost. */
async function attempt(): Promise<number | undefined> {
  const bridge = spawn(connect, connectArgs, { stdio: ["pipe", "pipe", "inherit"] });
  const answers = new Map<unknown, (answer: Message) => void>();
  let bytes: Buffer = Buffer.alloc(0);
  let begun = false;
  const ended = new Promise<number | undefined>((exit, fail) => {
    const noFrame = (): void => fail(new Error(`no daemon answered, but "${bytes.subarray(0, maxNoise)}"`));
    const take = (message: Message): void => {
      if (message.type === "stream") lastSeq = Number(message.seq);
      if (message.type !== "stream") answers.get(message.id)?.(message);
      else if (message.stream === "exit") exit(Number(message.exitCode));
      else print(message);
    };
    bridge.on("error", fail).on("close", () => (begun || instance ? exit(undefined) : noFrame()));
    bridge.stdin.on("error", () => {}); // "close" follows
    bridge.stdout.on("data", (chunk: Buffer) => {
      bytes = Buffer.concat([bytes, chunk]);
      const start = begun ? 0 : bytes.subarray(0, maxNoise + 1).indexOf(0);
      begun = start >= 0;
      if (begun) bytes = takeFrames(bytes.subarray(start), take);
      else if (bytes.length > maxNoise) noFrame();
    });
  });
  const request = (method: string, params: object = {}) =>
    new Promise<NonNullable<Message["result"]>>((done, fail) => {
      const body = Buffer.from(JSON.stringify({ jsonrpc: "2.0", id: answers.size + 1, method, params, auth: token }));
      answers.set(answers.size + 1, ({ result = {}, error }) =>
        error ? fail(new Error(`${error.message} ${error.data?.hint ?? ""}`)) : done(result),
      );
      bridge.stdin.write(Buffer.concat([Buffer.from([0, body.length >> 16, body.length >> 8, body.length]), body]));
    });
  async function takeUp(): Promise<number | undefined> {
    const { instanceId } = await request("server.capabilities");
    const fromSeq = lastSeq; // messages may come along with the answer
    const { found, firstSeq = 0 } = await request("process.reattach", { id, fromSeq });
    if (!found && instance !== undefined && instance !== instanceId)
      throw new Error("the daemon is another one, and has not taken the process over");
    instance = instanceId;
    if (!found) await request("process.spawn", { id, command: "/bin/sh", args: ["-c", script] });
    else if (firstSeq > fromSeq + 1) console.error(`${firstSeq - fromSeq - 1} messages were dropped meanwhile`);
    return ended;
  }
  return Promise.race([takeUp(), ended]).finally(() => bridge.stdin.end());
}

process.on("uncaughtException", ({ message }) => {
  console.error(`error: ${message}`);
  process.exit(1);
});
for (process.exitCode = await attempt(); process.exitCode === undefined; process.exitCode = await attempt()) {
  console.error("connection lost");
  await new Promise((done) => setTimeout(done, 1000));
}
