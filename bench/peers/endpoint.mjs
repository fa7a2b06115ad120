/** What a relay leads to: `node endpoint.mjs SOCKET source|sink BYTES`. A source sends frames of 64 KiB as soon as it is connected to; a sink counts. */

import { createServer } from "node:net";
import { frameOf } from "../wire.mjs";

const [path, mode, bytes] = process.argv.slice(2);
const frame = frameOf(65536, (data) => ({ type: "stream", processId: "a", stream: "stdout", seq: 1, data }));
const block = Buffer.concat(Array(64).fill(frame));

createServer({ allowHalfOpen: true, highWaterMark: 1 << 20 }, (socket) => {
  socket.on("error", () => {});
  if (mode === "source") send(socket);
  else count(socket);
}).listen(path, () => process.send("ready"));
process.on("disconnect", () => process.exit());

function send(socket) {
  let left = Number(bytes);
  const more = () => {
    while (left > 0) {
      const piece = block.subarray(0, Math.min(left, block.length));
      left -= piece.length;
      if (!socket.write(piece)) return socket.once("drain", more);
    }
    socket.end();
  };
  more();
  socket.resume();
}

function count(socket) {
  let left = Number(bytes);
  socket.on("data", (chunk) => {
    left -= chunk.length;
    if (left === 0) process.send("all");
  });
  socket.on("end", () => socket.end());
}
