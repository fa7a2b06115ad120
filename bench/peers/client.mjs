/**
 * Load for one server: `node client.mjs KIND SOCKET [TOKEN]`. Told `{ inFlight, ms }` by its parent, it answers with round trips per second, after 20 % of
 * the time for warming up.
 *
 * Each has the client of its own library over one connection, but jayson: its client connects anew for each request, so it gets one that does not.
 */

import { createRequire } from "node:module";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { program } from "../daemon.mjs";

const [kind, path, token] = process.argv.slice(2);
const payload = { text: "x".repeat(64) };
const holdfast = async (options) => {
  const connection = await createRequire(import.meta.url)(program).connect({ ...options, token });
  return () => connection.request("server.ping", payload);
};
const kinds = {
  holdfast: () => holdfast({ socket: path }),
  "holdfast bridge": () =>
    holdfast({ command: [process.execPath, program, "--bridge", "--no-start", "--socket", path] }),
  async "vscode-jsonrpc"() {
    const { createMessageConnection, SocketMessageReader, SocketMessageWriter } = await import("vscode-jsonrpc/node");
    const socket = await connected();
    const connection = createMessageConnection(new SocketMessageReader(socket), new SocketMessageWriter(socket));
    connection.listen();
    return () => connection.sendRequest("server.ping", payload);
  },
  async "grpc-js"() {
    const grpc = await import("@grpc/grpc-js");
    const { loadSync } = await import("@grpc/proto-loader");
    const { Server } = grpc.loadPackageDefinition(loadSync(fileURLToPath(new URL("ping.proto", import.meta.url))));
    const client = new Server(`unix:${path}`, grpc.credentials.createInsecure());
    return () =>
      new Promise((done, fail) => client.ping(payload, (error, answer) => (error ? fail(error) : done(answer))));
  },
  async jayson() {
    const socket = await connected();
    const waiting = new Map();
    let lastId = 0;
    let rest = "";
    socket.setEncoding("utf8").on("data", (chunk) => {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop();
      for (const { id, result } of lines.map((line) => JSON.parse(line))) {
        waiting.get(id)(result);
        waiting.delete(id);
      }
    });
    return () =>
      new Promise((done) => {
        waiting.set(++lastId, done);
        socket.write(`${JSON.stringify({ jsonrpc: "2.0", id: lastId, method: "server.ping", params: payload })}\n`);
      });
  },
};

const ping = await kinds[kind]();
if ((await ping()).pong !== true) throw new Error(`${kind} does not answer a ping with a pong`);
process.on("message", async ({ inFlight, ms }) => {
  await load(inFlight, ms * 0.2);
  process.send(await load(inFlight, ms * 0.8));
});
process.on("disconnect", () => process.exit());
process.send("ready");

async function load(inFlight, ms) {
  const begin = performance.now();
  let count = 0;
  const one = async () => {
    while (performance.now() - begin < ms) {
      await ping();
      count++;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, one));
  return (count / (performance.now() - begin)) * 1000;
}

async function connected() {
  const socket = connect(path);
  await new Promise((done, fail) => socket.once("connect", done).once("error", fail));
  return socket;
}
