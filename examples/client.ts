// Runs a shell command on a host, prints its output, ends with its exit code; and goes on where it was when the connection is lost.
//
//     node client.ts TOKEN-FILE 'make -j4' ssh host node holdfast.js --bridge        (before Node 24: build it with esbuild first)

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

const [tokenFile, script, connect, ...connectArgs] = process.argv.slice(2) as [string, string, string, ...string[]];
const token = readFileSync(tokenFile, "utf8").trim();
const id = randomUUID();
let instance: string | undefined; // of the daemon that has our process
let lastSeq = 0; // of the messages that we have seen

/** Connects and takes the process up, or starts it. Resolves to its exit code, or undefined when the connection was lost. */
async function attempt(): Promise<number | undefined> {
  const bridge = spawn(connect, connectArgs, { stdio: ["pipe", "pipe", "inherit"] });
  const answers = new Map<number, (answer: any) => void>();
  let bytes = Buffer.alloc(0);
  let begun = false;
  const ended = new Promise<number | undefined>((exit, fail) => {
    bridge
      .on("error", fail)
      .on("close", () => (begun || instance ? exit(undefined) : fail(new Error(`no daemon answered, but "${bytes}"`))));
    bridge.stdin.on("error", () => {}); // "close" follows
    bridge.stdout.on("data", (chunk: Buffer) => {
      bytes = Buffer.concat([bytes, chunk]);
      const start = begun ? 0 : bytes.subarray(0, 65_537).indexOf(0); // what rc files print comes first; a frame begins with 0x00
      if (start < 0)
        return void (bytes.length > 65_536 && fail(new Error(`no frame, but "${bytes.subarray(0, 65_536)}"`)));
      [bytes, begun] = [bytes.subarray(start), true];
      for (
        let end = 0;
        bytes.length >= 4 && bytes.length >= (end = 4 + bytes.readUInt32BE());
        bytes = bytes.subarray(end)
      ) {
        const message = JSON.parse(bytes.toString("utf8", 4, end));
        if (message.type !== "stream") answers.get(message.id)?.(message);
        else if ((lastSeq = message.seq) && message.stream === "exit") exit(message.exitCode);
        else process[message.stream as "stdout" | "stderr"].write(Buffer.from(message.data, "base64"));
      }
    });
  });
  const request = (method: string, params: object = {}) =>
    new Promise<any>((done, fail) => {
      const body = Buffer.from(JSON.stringify({ jsonrpc: "2.0", id: answers.size + 1, method, params, auth: token }));
      answers.set(answers.size + 1, ({ result, error }) =>
        error ? fail(new Error(`${error.message} ${error.data?.hint ?? ""}`)) : done(result),
      );
      bridge.stdin.write(Buffer.concat([Buffer.from([0, body.length >> 16, body.length >> 8, body.length]), body]));
    });
  async function takeUp(): Promise<number | undefined> {
    const { instanceId } = await request("server.capabilities");
    if (instance !== undefined && instance !== instanceId)
      throw new Error("the daemon is another one: the process is lost");
    instance = instanceId;
    const fromSeq = lastSeq; // messages may come along with the answer
    const { found, firstSeq } = await request("process.reattach", { id, fromSeq });
    if (!found) await request("process.spawn", { id, command: "/bin/sh", args: ["-c", script] });
    else if (firstSeq > fromSeq + 1) console.error(`${firstSeq - fromSeq - 1} messages were dropped meanwhile`);
    return ended;
  }
  return Promise.race([takeUp(), ended]).finally(() => bridge.stdin.end());
}

process.on("uncaughtException", ({ message }) => (console.error(`error: ${message}`), process.exit(1)));
while ((process.exitCode = await attempt()) === undefined) {
  console.error("connection lost");
  await new Promise((done) => setTimeout(done, 1000));
}
