/**
 * Starts programs one after the other and times them: `node start-loop.mjs PROGRAM ROUNDS DIRECTORY [--lifetime scope]`, on a test host too.
 *
 * A small process, so that its own fork is quick. Prints JSON: milliseconds of each round of `node -e 0` to its end, of `--serve` to its line "listening",
 * and of `--bridge` to the first answer through it.
 */

import { spawn, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";

const [program, rounds, directory, ...lifetime] = process.argv.slice(2);
const socket = `${directory}/s`;
const body = '{"jsonrpc":"2.0","id":1,"method":"server.ping","auth":"secret"}';
const ping = Buffer.concat([Buffer.from([0, 0, 0, body.length]), Buffer.from(body)]);
writeFileSync(`${directory}/token`, "secret", { mode: 0o600 });

const found = { node: [], serve: [], bridge: [], line: "" };
for (let round = -2; round < Number(rounds); round++) {
  const steps = [node, serveAndBridge];
  for (const step of round % 2 === 0 ? steps : steps.reverse()) await step(round >= 0);
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[Kstart: round ${round + 1} of ${rounds}`);
}
console.log(JSON.stringify(found));

async function node(counts) {
  const ms = await timed(["-e", "0"], (child, done) => child.on("exit", done));
  if (counts) found.node.push(ms);
}

async function serveAndBridge(counts) {
  spawnSync(process.execPath, [program, "--stop", "--now", "--socket", socket]);
  const served = await timed(
    [program, "--serve", "--socket", socket, "--token-file", `${directory}/token`, ...lifetime],
    (child, done) => {
      let text = "";
      child.stdout.on("data", (chunk) => {
        text += chunk;
        if (!text.includes("\n")) return;
        found.line = text.trim();
        done();
      });
    },
  );
  const bridged = await timed([program, "--bridge", "--socket", socket], (child, done) => {
    child.stdin.write(ping);
    let bytes = Buffer.alloc(0);
    child.stdout.on("data", (chunk) => {
      bytes = Buffer.concat([bytes, chunk]);
      if (bytes.length < 4 || bytes.length < 4 + bytes.readUInt32BE()) return;
      if (!bytes.includes("pong")) throw new Error(`not a pong: ${bytes}`);
      done();
      child.stdin.end();
    });
  });
  spawnSync(process.execPath, [program, "--stop", "--now", "--socket", socket]);
  if (!counts) return;
  found.serve.push(served);
  found.bridge.push(bridged);
}

/** From before the fork until `watch` says so; then waits for the end of the process. */
async function timed(args, watch) {
  const begin = performance.now();
  const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise((done) => child.on("exit", done));
  const ms = await new Promise((done, fail) => {
    watch(child, () => done(performance.now() - begin));
    child.on("exit", () => setTimeout(fail, 100, new Error(`${args.join(" ")} said nothing`)));
  });
  await ended;
  return ms;
}
