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
    const first = await openClient(socket, token);
    const exited = new Promise((done) => (first.onMessage = ({ stream }) => stream === "exit" && done()));
    await first.request("process.spawn", { id: "a", command: "head", args: ["-c", String(size), "/dev/urandom"] });
    await exited;
    first.socket.destroy();

    const client = await openClient(socket, token);
    const frames = [];
    const there = await createRequire(import.meta.url)(program).connect({ socket, token });
    const reattach = async () => {
      let bytes = 0;
      const process = await there.reattach("a", { onOutput: ({ data }) => (bytes += data.length) });
      await process.exit;
      if (bytes !== size) throw new Error(`${bytes} bytes came, not ${size}`);
    };
    const bytesOf = await new Promise((done) => {
      const parts = [];
      client.onBody = (body) => {
        const header = Buffer.alloc(4);
        header.writeUInt32BE(body.length);
        if (body.includes('"type":"stream"')) frames.push(header, Buffer.from(body));
        return false;
      };
      client.onMessage = ({ stream, data }) =>
        stream === "exit" ? done(Buffer.concat(parts)) : parts.push(Buffer.from(data, "base64"));
      client.request("process.reattach", { id: "a", fromSeq: 0 });
    });
    client.onBody = () => false;
    writeFileSync(`${directory}/frames`, Buffer.concat(frames));
    writeFileSync(`${directory}/bytes`, bytesOf);
    if (bytesOf.length !== size) throw new Error(`${bytesOf.length} bytes were replayed, not ${size}`);

    const timed = (action) => async () => {
      const begin = performance.now();
      await action();
      return performance.now() - begin;
    };
    const found = await sideBySide(
      rounds(15),
      {
        reattach: timed(reattach),
        frames: timed(
          () =>
            new Promise((done) => {
              const take = receiver(done);
              createReadStream(`${directory}/frames`).on(
                "data",
                createDecoder((body) => take(JSON.parse(body.toString()))),
              );
            }),
        ),
        stream: timed(
          () =>
            new Promise((done, fail) =>
              createReadStream(`${directory}/bytes`)
                .on("data", () => {})
                .on("error", fail)
                .on("end", done),
            ),
        ),
        bytes: timed(() => readFile(`${directory}/bytes`)),
      },
      progress,
      { warmup: 3 },
    );
    if (readFileSync(`${directory}/bytes`).length !== size) throw new Error("the file was cut");
    client.socket.destroy();
    there.close();
    return {
      rows: [
        {
          label: "reattach and replay 16 MiB",
          unit: "ms",
          ours: found.reattach,
          peer: "the same frames from a file, decoded",
          theirs: found.frames,
          goal: { most: 3 },
        },
        {
          label: "reattach and replay 16 MiB",
          unit: "ms",
          ours: found.reattach,
          peer: "the raw bytes from a file, as a stream",
          theirs: found.stream,
          goal: { most: 3 },
        },
        {
          label: "reattach and replay 16 MiB",
          unit: "ms",
          ours: found.reattach,
          peer: "the raw bytes from a file, by one `readFile()`",
          theirs: found.bytes,
          goal: { most: 3 },
        },
      ],
      notes: [],
    };
  });
}

/** Takes the messages of a process to its exit, and turns their data into bytes. */
function receiver(done) {
  let bytes = 0;
  return ({ stream, data }) => {
    if (stream !== "exit") return void (bytes += Buffer.from(data, "base64").length);
    if (bytes !== size) throw new Error(`${bytes} bytes came, not ${size}`);
    done();
  };
}
