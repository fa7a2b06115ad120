// time limit: 240 s; long
/** The clients of examples/, as they stand in the repository: over the bridge, behind noise, and when something goes wrong. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Outcome, TestDaemon } from "./daemon.ts";
import {
  builtFile,
  canMount,
  eventually,
  hasProgram,
  holdfast,
  outcomeOf,
  removeAll,
  sideBySide,
  until,
  withDaemon,
} from "./daemon.ts";

/** Node 20 does not run TypeScript: the types are stripped, nothing else is done to it. */
const typescript = resolve("node_modules/.cache/holdfast-example-client.mjs");
const built = build({
  entryPoints: ["examples/client.ts"],
  outfile: typescript,
  format: "esm",
  target: "node18",
  logLevel: "silent",
});

const clients: [string, string[]][] = [
  ["client.ts", [process.execPath, typescript]],
  ["client.py", ["python3", resolve("examples/client.py")]],
  ["client.sh", ["sh", resolve("examples/client.sh")]],
];

const bridgeOf = ({ socket }: TestDaemon): string[] => [process.execPath, builtFile, "--bridge", "--socket", socket];

async function run(
  [command, ...args]: string[],
  tokenFile: string,
  script: string,
  connect: string[],
): Promise<Outcome> {
  await built;
  return outcomeOf(spawn(command!, [...args, tokenFile, script, ...connect], { cwd: "/" }), "", 90_000);
}

/** Puts a shell's noise before a command's output. */
const behind = (noise: string, command: string[]): string[] => ["sh", "-c", `${noise}; exec "$@"`, "sh", ...command];

/** All 256 bytes many times over, so that no client can take them for text. */
const bytes = Buffer.from(Array.from({ length: 256 * 300 }, (_, index) => (index * 7 + (index >> 8)) & 255));

const examples = suite("examples/");
const test = sideBySide(examples, 2);
const testIf = (isPossible: boolean): typeof test => (isPossible ? test : (name) => examples.skip(name));

for (const [name, command] of clients) {
  const test = testIf(name !== "client.py" || hasProgram("python3"));
  test(`${name} has at most 100 lines`, async () => {
    assert.ok(readFileSync(join("examples", name), "utf8").trimEnd().split("\n").length <= 100);
  });

  test(`${name} prints a process's output byte for byte, on the streams that it came from, and ends with its code`, () =>
    withDaemon(async (daemon) => {
      const connect = bridgeOf(daemon);
      const file = join(daemon.directory, "bytes");
      writeFileSync(file, bytes);
      const mixed = await run(command, daemon.tokenFile, `cat '${file}'; echo "err \\"\t\\\\ ä" >&2\nexit 7`, connect);
      assert.ok(mixed.stdout.equals(bytes), `${mixed.stdout.length} bytes of ${bytes.length}: ${mixed.stderr}`);
      assert.equal([mixed.stderr, mixed.code], ['err "\t\\ ä\n', 7]);
      const killed = await run(command, daemon.tokenFile, "kill -TERM $$", connect);
      assert.equal([killed.stdout.toString(), killed.stderr, killed.code], ["", "", 128 + 15]);
    }));

  test(`${name} skips what a shell's rc files print before the first frame`, () =>
    withDaemon(async (daemon) => {
      const noisy = behind(
        "printf 'Welcome to {host}\\n\"[]\\n'; head -c 60000 /dev/zero | tr '\\0' 'x'; echo",
        bridgeOf(daemon),
      );
      const { stdout, stderr, code } = await run(command, daemon.tokenFile, "echo through", noisy);
      assert.equal([stdout.toString(), stderr, code], ["through\n", "", 0]);
    }));

  test(`${name} shows what came instead of a frame`, () =>
    withDaemon(async (daemon) => {
      for (const connect of [
        ["sh", "-c", "echo This account is not available; exit 1"],
        behind("echo This account is not available; yes '{' | head -c 70000", bridgeOf(daemon)),
      ]) {
        const { stdout, stderr, code } = await run(command, daemon.tokenFile, "echo through", connect);
        assert.equal([stdout.toString(), code], ["", 1], stderr);
        assert.match(stderr, /^error: no (daemon|frame).*This account is not available/s);
        assert.ok(stderr.length < 200_000, "not without end");
      }
    }));

  test(`${name} says so when the token is wrong, and when there is no daemon`, () =>
    withDaemon(async (daemon) => {
      const wrong = join(daemon.directory, "wrong");
      writeFileSync(wrong, "wrong\n");
      const refused = await run(command, wrong, "true", bridgeOf(daemon));
      assert.equal([refused.stdout.toString(), refused.code], ["", 1]);
      assert.match(refused.stderr, /Unauthorized: invalid or missing auth token/);
      const absent = await run(
        command,
        daemon.tokenFile,
        "true",
        bridgeOf({ ...daemon, socket: join(daemon.directory, "absent") }),
      );
      assert.is(absent.code, 1, absent.stderr);
      assert.match(absent.stderr, /--serve/, "the hint is shown");
    }));
}

testIf(hasProgram("socat"))("client.sh runs over socat, too", () =>
  withDaemon(async (daemon) => {
    const { stdout, stderr, code } = await run(clients[2]![1], daemon.tokenFile, "echo through; exit 3", [
      "socat",
      "-",
      `UNIX-CONNECT:${daemon.socket}`,
    ]);
    assert.equal([stdout.toString(), stderr, code], ["through\n", "", 3]);
  }),
);

/** A command that connects, and leaves its pid where a test finds it: what is killed is the bridge, not the client. */
const killable = (daemon: TestDaemon): { connect: string[]; kill: () => Promise<void> } => {
  const file = join(daemon.directory, "bridge.pid");
  return {
    connect: behind(`echo noise; echo $$ >'${file}'`, bridgeOf(daemon)),
    async kill() {
      await eventually(() => existsSync(file) && readFileSync(file, "utf8") !== "", "a bridge runs");
      const pid = Number(readFileSync(file, "utf8"));
      rmSync(file);
      process.kill(pid, "SIGKILL");
    },
  };
};

test("client.ts goes on where it was when its connection is lost, and each line is printed once", () =>
  withDaemon(async (daemon) => {
    const { connect, kill } = killable(daemon);
    const go = join(daemon.directory, "go"); // not over before the last kill
    const lines = Array.from({ length: 40 }, (_, index) => `line ${index}\n`).join("");
    const client = run(
      clients[0]![1],
      daemon.tokenFile,
      `i=0; while [ $i -lt 40 ]; do echo "line $i"; i=$((i+1)); sleep 0.1; done; until [ -e '${go}' ]; do sleep 0.1; done; exit 9`,
      connect,
    );
    await eventually(() => daemon.log().includes("[Process] Started"), "it has started");
    for (let round = 0; round < 2; round++) {
      await new Promise((done) => setTimeout(done, 500));
      await kill();
    }
    writeFileSync(go, "");
    const { stdout, stderr, code } = await client;
    assert.equal([stdout.toString(), code], [lines, 9]);
    assert.match(stderr, /^(connection lost\n)+$/);
  }));

test("client.ts goes on with the daemon that has taken its process over", () =>
  withDaemon(async (daemon) => {
    const { connect, kill } = killable(daemon);
    const go = join(daemon.directory, "go");
    const script = `echo begun; until [ -e ${go} ]; do sleep 0.1; done; echo done; exit 4`;
    const client = run(clients[0]![1], daemon.tokenFile, script, connect);
    const list = async (): Promise<string> =>
      (await holdfast(["--call", "process.list", "--socket", daemon.socket])).stdout.toString();
    await eventually(async () => /"lastSeq":1/.test(await list()), "it has begun");
    process.kill(daemon.pid, "SIGKILL");
    await kill().catch(() => {}); // it may have ended by itself
    // the bridge starts a daemon in the place of the dead one
    await eventually(async () => /"running":true/.test(await list()), "it was taken over", 30_000);
    writeFileSync(go, "");
    const { stdout, stderr, code } = await client;
    assert.equal([stdout.toString(), code], ["begun\ndone\n", 4], stderr);
  }));

/** A host for the examples that put holdfast on hosts: a home of its own, and a command that runs things there, as ssh would. */
async function withFakeHosts(use: (directory: string, ssh: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-fleet-"));
  const ssh = join(directory, "ssh");
  const script = `[ "$1" != nowhere ] || { echo "ssh: Could not resolve hostname nowhere" >&2; exit 255; }
mkdir -p "${directory}/$1"; cd "${directory}/$1" && exec env -u XDG_STATE_HOME HOME="${directory}/$1" sh -c "$2"`;
  writeFileSync(ssh, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  try {
    await use(directory, ssh);
  } finally {
    for (const host of ["one", "two"])
      await holdfast(["--stop", "--now"], { env: { HOME: join(directory, host), XDG_STATE_HOME: "" } });
    await removeAll(directory);
  }
}

test("fleet.ts runs a command on several hosts, and says which failed and why", () =>
  withFakeHosts(async (directory, ssh) => {
    const app = join(directory, "fleet.mjs");
    const alias = { holdfast: resolve("deploy.ts") };
    const options = { bundle: true, platform: "node", format: "esm", target: "node18", logLevel: "silent" } as const;
    await build({ ...options, alias, entryPoints: ["examples/fleet.ts"], outfile: app });
    const env = { ...process.env, SSH: ssh, HOLDFAST_FILE: builtFile };
    const command = "echo out; echo err >&2; basename $PWD; [ $(basename $PWD) = one ] || exit 3";
    const fleet = spawn(process.execPath, [app, command, "one", "two", "nowhere"], { env });
    const { stdout, stderr, code } = await outcomeOf(fleet, "", 60_000);
    assert.is(code, 1, stderr);
    assert.equal(stdout.toString().trim().split("\n").sort(), ["one: one", "one: out", "two: out", "two: two"]);
    assert.match(stderr, /^one: err$/m);
    assert.match(stderr, /^two: exit code 3$/m);
    assert.match(
      stderr,
      /^nowhere: Cannot deploy over ".*nowhere": it ended with exit code 255: ssh: Could not resolve/m,
    );
    assert.match(stderr, /^nowhere: hint: check the name/m);
  }));

testIf(canMount())("Dockerfile starts a daemon in a container with an init", () =>
  withFakeHosts(async (directory) => {
    const [, words] = /^CMD (.*)$/m.exec(readFileSync("examples/Dockerfile", "utf8"))!;
    const [name, ...args] = JSON.parse(words!) as string[];
    assert.is(name, "holdfast");
    mkdirSync(join(directory, "one"));
    // what docker's --init does: pid 1 starts it, and reaps
    const script = `'${builtFile}' ${args.join(" ")} & wait`;
    const env = { ...process.env, HOME: join(directory, "one"), XDG_STATE_HOME: "" };
    const container = spawn("unshare", ["--fork", "--pid", "--mount-proc", "--kill-child", "sh", "-c", script], {
      env,
    });
    try {
      const pid = await firstChildOf(container.pid!);
      const inside = (...words: string[]): Promise<Outcome> =>
        outcomeOf(spawn("nsenter", ["-t", pid, "-p", "-m", "--", builtFile, ...words], { env }), "", 30_000);
      await until("it answers", async () => (await inside("--call", "server.ping")).code === 0, 30_000);
      const params = JSON.stringify({ id: "a", command: "echo", args: ["hello"] });
      assert.is((await inside("--call", "process.spawn", params)).stdout.toString(), "hello\n");
      const ended = once(container, "exit");
      await inside("--stop"); // and with the daemon the container ends
      assert.equal(await ended, [0, null]);
    } finally {
      container.kill("SIGKILL");
    }
  }),
);

/** The pid on this machine of what is pid 1 there. */
async function firstChildOf(pid: number): Promise<string> {
  const path = `/proc/${pid}/task/${pid}/children`;
  await until("it has started", () => readFileSync(path, "utf8").trim() !== "");
  return readFileSync(path, "utf8").trim();
}

examples.run();
