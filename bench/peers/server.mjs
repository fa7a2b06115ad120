/** One of the servers beside holdfast, on a Unix socket: `node server.mjs vscode-jsonrpc|grpc-js|jayson SOCKET`. Each answers a ping with a pong. */

import { createServer } from "node:net";
import { fileURLToPath } from "node:url";

const [kind, path] = process.argv.slice(2);
const kinds = {
  async "vscode-jsonrpc"() {
    const { createMessageConnection, SocketMessageReader, SocketMessageWriter } = await import("vscode-jsonrpc/node");
    await listening(
      createServer((socket) => {
        const connection = createMessageConnection(new SocketMessageReader(socket), new SocketMessageWriter(socket));
        connection.onRequest("server.ping", () => ({ pong: true }));
        connection.listen();
      }),
    );
  },
  async "grpc-js"() {
    const grpc = await import("@grpc/grpc-js");
    const { loadSync } = await import("@grpc/proto-loader");
    const { Server } = grpc.loadPackageDefinition(loadSync(fileURLToPath(new URL("ping.proto", import.meta.url))));
    const server = new grpc.Server();
    server.addService(Server.service, { ping: (_call, answer) => answer(null, { pong: true }) });
    await new Promise((done, fail) =>
      server.bindAsync(`unix:${path}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error ? fail(error) : done(),
      ),
    );
  },
  async jayson() {
    const { default: jayson } = await import("jayson");
    await listening(jayson.server({ "server.ping": (_args, done) => done(null, { pong: true }) }).tcp());
  },
};

await kinds[kind]();
process.send("ready");
process.on("disconnect", () => process.exit());

function listening(server) {
  return new Promise((done) => server.listen(path, done));
}
