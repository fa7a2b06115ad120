/**
 * What a person waits for: `--bridge` to its first answer and `--serve` to its line, over ssh to a booted host, beside `node -e 0` and `true` over the same ssh.
 *
 * And, for information, the same beside `node -e 0` on this machine and on a host, without ssh: what the program itself takes.
 */

import { fileURLToPath } from "node:url";
import { program, withDirectory } from "../daemon.mjs";
import { output, sideBySide } from "../measure.mjs";

const loop = fileURLToPath(new URL("start-loop.mjs", import.meta.url));
const socket = "run/rpc.sock";
const ping = '{"jsonrpc":"2.0","id":1,"method":"server.ping","auth":"secret"}\n';

export const title = "Start";

export async function run({ rounds, progress, host }) {
  const notes = typeof host === "string" ? [`over ssh, and on a booted host: not measured, ${host}`] : [];
  const rows = typeof host === "string" ? [] : await overSsh(host, rounds, progress);
  progress("on this machine, without systemd");
  const here = await withDirectory(async (directory) =>
    JSON.parse(await output(process.execPath, [loop, program, String(rounds(20)), directory, "--lifetime", "detach"])),
  );
  rows.push(
    row('`--serve` to "listening", detach, no ssh', here.serve, "`node -e 0`", here.node),
    row("`--bridge` to the first answer, no ssh", here.bridge, "`node -e 0`", here.node),
  );
  if (typeof host !== "string") rows.push(...(await onHosts(host, rounds, progress)));
  return { rows, notes };
}

/** On a host that kills, with lingering: the start goes into a scope. */
function overSsh(host, rounds, progress) {
  const options = { users: ["dev+linger"], killUserProcesses: true, ownKeyExchange: true };
  return host.withHost(options, async (machine) => {
    await machine.copy("dev", program, "holdfast.js");
    await checked(machine, "mkdir -m 700 run; umask 077; echo secret >token");
    const serve = `./holdfast.js --serve --socket ${socket} --token-file token`;
    const timed = async (command, options) => (await checked(machine, command, options)).ms;
    await checked(machine, serve);
    const tasks = {
      true: () => timed("true"),
      node: () => timed("node -e 0"),
      bridge: () => bridgeToAnswer(machine),
      serve: async () => {
        await checked(machine, `./holdfast.js --stop --now --socket ${socket}`);
        return timed(`node ${serve}`);
      },
    };
    const found = await sideBySide(rounds(40), tasks, progress, { warmup: 2 });
    const [node, login] = ["`ssh host node -e 0`", "`ssh host true`"];
    return [
      row("`ssh host node holdfast.js --bridge` to the first answer", found.bridge, node, found.node, { most: 1.1 }),
      row("`ssh host node holdfast.js --serve`, into a scope", found.serve, node, found.node, { most: 1.5 }),
      row("`ssh host node holdfast.js --bridge` to the first answer", found.bridge, login, found.true),
      row("`ssh host node holdfast.js --serve`, into a scope", found.serve, login, found.true),
      row(node, found.node, login, found.true),
    ];
  });
}

async function checked(machine, command, options) {
  const result = await machine.ssh("dev", command, options);
  if (result.code !== 0) throw new Error(`"${command}" on the host ended with ${result.code}: ${result.stderr}`);
  return result;
}

/** From the start of the ssh client to the whole answer; then it is ended. */
async function bridgeToAnswer(machine) {
  const begin = performance.now();
  const client = machine.spawnSsh("dev", `node holdfast.js --bridge --socket ${socket}`);
  const closed = new Promise((done) => client.once("close", done));
  client.stdin.write(ping);
  const ms = await new Promise((done, fail) => {
    let text = "";
    client.stdout.setEncoding("utf8").on("data", (chunk) => {
      text += chunk;
      if (text.endsWith("\n")) done(performance.now() - begin);
    });
    closed.then(() => fail(new Error(`the bridge ended with "${text}"`)));
  });
  client.stdin.end();
  await closed;
  return ms;
}

/** What the program takes without ssh, measured on the host itself. */
async function onHosts(host, rounds, progress) {
  const rows = [];
  for (const [killUserProcesses, words] of [
    [false, "detach, on a booted host, no ssh"],
    [true, "scope, on a booted host, no ssh"],
  ]) {
    progress(words);
    const there = await host.withHost({ users: ["dev+linger"], killUserProcesses }, async (machine) => {
      await machine.copy("dev", program, "holdfast.js");
      await machine.copy("dev", loop, "start-loop.mjs");
      const command = `mkdir -m 700 run && node start-loop.mjs ./holdfast.js ${rounds(15)} ./run`;
      return JSON.parse((await checked(machine, command, { timeoutMs: 240_000 })).stdout);
    });
    if (killUserProcesses !== / in \S+\.scope /.test(there.line))
      throw new Error(`not where it was to be: ${there.line}`);
    rows.push(row(`\`--serve\` to "listening", ${words}`, there.serve, "`node -e 0`", there.node));
  }
  return rows;
}

const row = (label, ours, peer, theirs, goal) => ({ label, unit: "ms", ours, peer, theirs, goal });
