/** Time to reattach and replay 16 MiB, beside reading the same from a file. */

import { createReadStream, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { program, token, withDaemon } from "../daemon.mjs";
import { sideBySide } from "../measure.mjs";
import { createDecoder, openClient } from "../wire.mjs";

const size = (16 << 20) - 65536; // the replay buffer holds 16 MiB of output, so that nothing of this is dropped

export const title = "Replay";

export function run({ rounds, progress }) {
  return withDaemon(async ({ socket, directory }) => {
    await fillBuffer(socket);
    await writeFiles(socket, directory);
    const there = await createRequire(import.meta.url)(program).connect({ socket, token });
    const tasks = tasksOf(there, directory);
    const found = await sideBySide(rounds(15), tasks, progress, { warmup: 3 });
    if (readFileSync(`${directory}/bytes`).length !== size) throw new Error("the file was cut");
    there.close();
    return { rows: rowsOf(found), notes: [] };
  });
}

/** A process that has said as much as is held of one, and has ended. */
async function fillBuffer(socket) {
  const client = await openClient(socket, token);
  const exited = new Promise((done) => {
    client.onMessage = ({ stream }) => stream === "exit" && done();
  });
  await client.request("process.spawn", { id: "a", command: "head", args: ["-c", String(size), "/dev/urandom"] });
  await exited;
  client.socket.destroy();
}

/** What the replay consists of, as frames and as bytes, in files. */
async function writeFiles(socket, directory) {
  const client = await openClient(socket, token);
  const frames = [];
  client.onBody = (body) => {
    const header = Buffer.alloc(4);
    header.writeUInt32BE(body.length);
    if (body.includes('"type":"stream"')) frames.push(header, Buffer.from(body));
    return false;
  };
  const bytes = await new Promise((done) => {
    const parts = [];
    client.onMessage = ({ stream, data }) =>
      stream === "exit" ? done(Buffer.concat(parts)) : parts.push(Buffer.from(data, "base64"));
    client.request("process.reattach", { id: "a", fromSeq: 0 });
  });
  client.socket.destroy();
  writeFileSync(`${directory}/frames`, Buffer.concat(frames));
  writeFileSync(`${directory}/bytes`, bytes);
  if (bytes.length !== size) throw new Error(`${bytes.length} bytes were replayed, not ${size}`);
}

function tasksOf(there, directory) {
  const timed = (action) => async () => {
    const begin = performance.now();
    await action();
    return performance.now() - begin;
  };
  return {
    reattach: timed(() => reattach(there)),
    frames: timed(() => decodeFile(`${directory}/frames`)),
    stream: timed(() => streamFile(`${directory}/bytes`)),
    bytes: timed(() => readFile(`${directory}/bytes`)),
  };
}

async function reattach(there) {
  let bytes = 0;
  const onOutput = ({ data }) => {
    bytes += data.length;
  };
  const process = await there.reattach("a", { onOutput });
  await process.exit;
  if (bytes !== size) throw new Error(`${bytes} bytes came, not ${size}`);
}

function decodeFile(path) {
  return new Promise((done) => {
    const take = receiver(done);
    const decode = createDecoder((body) => take(JSON.parse(body.toString())));
    createReadStream(path).on("data", decode);
  });
}

function streamFile(path) {
  return new Promise((done, fail) => {
    createReadStream(path).resume().on("error", fail).on("end", done);
  });
}

function rowsOf({ reattach, ...found }) {
  const peers = {
    frames: "the same frames from a file, decoded",
    stream: "the raw bytes from a file, as a stream",
    bytes: "the raw bytes from a file, by one `readFile()`",
  };
  const label = "reattach and replay 16 MiB";
  return Object.entries(peers).map(([name, peer]) => {
    return { label, unit: "ms", ours: reattach, peer, theirs: found[name], goal: { most: 3 } };
  });
}

/** Takes the messages of a process to its exit, and turns their data into bytes. */
function receiver(done) {
  let bytes = 0;
  return ({ stream, data }) => {
    if (stream !== "exit") {
      bytes += Buffer.from(data, "base64").length;
      return;
    }
    if (bytes !== size) throw new Error(`${bytes} bytes came, not ${size}`);
    done();
  };
}
