/** One client among others: `node other.mjs ping|take|list SOCKET TOKEN …`. Ends when its parent disconnects. */

import { openClient } from "../wire.mjs";

const [kind, socket, token, what] = process.argv.slice(2);
const client = await openClient(socket, token);
process.on("disconnect", () => process.exit());

if (kind === "ping") {
  const times = [];
  process.once("message", () => process.send(times));
  process.send("ready");
  for (;;) {
    const begin = performance.now();
    await client.request("server.ping");
    times.push(performance.now() - begin);
    await new Promise((done) => setTimeout(done, 2));
  }
} else if (kind === "take") {
  client.onBody = (body) => body.length > 1000; // not parsed: this client is to take, not to work
  client.onMessage = ({ stream }) => stream === "exit" && process.send("all");
  await client.request("process.spawn", { id: "head", command: "head", args: ["-c", what, "/dev/zero"] });
} else {
  client.onBody = (body) => {
    if (body.length < 1000) return false;
    client.listed();
    return true;
  };
  for (;;) {
    void client.request("files.list", { path: what });
    await new Promise((done) => (client.listed = done));
  }
}
