// time limit: 120 s
/**
 * Without /proc, as on macOS and FreeBSD: here an empty tmpfs over it, in a mount namespace of the test's own. All works but what needs it; there are
 * never two daemons, and nothing that may live is said to be dead.
 */

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Outcome, Site } from "./daemon.ts";
import {
  builtFile,
  builtWith,
  findRunning,
  frameOf,
  isAlive,
  messagesIn,
  request,
  sideBySide,
  stopWhen,
  until,
  withDirectory,
} from "./daemon.ts";

const without = suite("without /proc");
const isPossible = spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "none", "/proc"]).status === 0;
const test: (name: string, body: () => Promise<void>) => void = isPossible
  ? sideBySide(without, 3)
  : (name) => without.skip(`${name}: needs root`);

interface Place extends Site {
  /** Runs the built file there, with --socket. */
  inside(args: string[], stdin?: Buffer, env?: NodeJS.ProcessEnv): Promise<Outcome>;
  start(env?: NodeJS.ProcessEnv): Promise<{ pid: number; instance: string; how: string }>;
  call(method: string, params?: object): Promise<any>;
  /** Daemons of this place, as the kernel knows them. */
  daemons(): number[];
}

const withPlace =
  (run: (place: Place) => Promise<void>, times: Record<string, number> = {}) =>
  (): Promise<void> =>
    withDirectory(async (site) => {
      const away = mkdtempSync(join(tmpdir(), "holdfast-noproc-")); // a test may remove all that is in its directory
      const file = Object.keys(times).length > 0 ? builtWith(away, times) : builtFile;
      const script = "mount -t tmpfs none /proc && echo ready && exec sleep 1000";
      const holder = spawn("unshare", ["--mount", "--propagation", "private", "sh", "-c", script]);
      try {
        await new Promise((done) => holder.stdout.once("data", done));
        const words = ["nsenter", `--mount=/proc/${holder.pid}/ns/mnt`, process.execPath, file];
        const inside: Place["inside"] = (args, stdin = Buffer.alloc(0), env = {}) =>
          site.command([...words, ...args, "--socket", site.socket], { stdin, env });
        const start = async (env: NodeJS.ProcessEnv = {}) => {
          const serve = ["--serve", "--json", "--token-file", site.tokenFile];
          const { code, stdout, stderr } = await inside(serve, undefined, env);
          assert.is(code, 0, stderr);
          return JSON.parse(String(stdout));
        };
        const call = async (method: string, params: object = {}) => {
          const { code, stdout, stderr } = await inside(["--call", method, JSON.stringify(params)]);
          assert.is(code, 0, stderr);
          return JSON.parse(String(stdout));
        };
        const daemons = () => site.processes().filter((pid) => isAlive(pid) && isDaemon(pid));
        await run({ ...site, inside, start, call, daemons });
        for (const pid of daemons()) process.kill(pid, "SIGTERM");
        await until("all have ended", () => daemons().length === 0);
      } finally {
        holder.kill("SIGKILL");
        rmSync(away, { recursive: true });
      }
    });

function isDaemon(pid: number): boolean {
  return spawnSync("cat", [`/proc/${pid}/cmdline`]).stdout.includes("--launched");
}

test(
  "a daemon is started, joined, asked and stopped, and its record says why it ended",
  withPlace(async ({ start, inside, call, record, daemons }) => {
    const { pid, instance } = await start();
    assert.equal(daemons(), [pid]);
    const again = await start();
    assert.equal([again.pid, again.instance, again.how], [pid, instance, "joined"]);
    const status = await inside(["--status"]);
    assert.is(status.code, 0, status.stderr);
    assert.match(String(status.stdout), new RegExp(`pid ${pid}[^]*memory +unknown`));
    assert.is((await inside(["--doctor"])).code, 0);
    assert.is((await call("server.capabilities")).instanceId, instance);
    const spawned = await inside([
      "--call",
      "process.spawn",
      '{"id":"a","command":"sh","args":["-c","echo hi; exit 3"]}',
    ]);
    assert.equal([spawned.code, String(spawned.stdout)], [3, "hi\n"], spawned.stderr);
    const stopped = await inside(["--stop"]);
    assert.equal([stopped.code, String(stopped.stdout)], [0, "stopped 0\n"], stopped.stderr);
    assert.equal([record().ended.reason, daemons()], ["stopped", []]);
    assert.is(String((await inside(["--stop"])).stdout), "none 0\n");
  }),
);

test(
  "one whose process takes a while to end is gone when it is said to be stopped",
  withPlace(async ({ start, inside, directory, daemons }) => {
    const slow = join(directory, "slow.cjs");
    const wait = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 700)"; // its socket is closed by then
    writeFileSync(slow, `process.on("exit", () => process.argv.includes("--launched") && ${wait});`);
    await start({ NODE_OPTIONS: `--require ${slow}` });
    const { code, stdout, stderr } = await inside(["--stop"]);
    assert.equal([code, String(stdout), daemons()], [0, "stopped 0\n", []], stderr);
  }),
);

test(
  "a daemon is joined by its other name when its public one is removed, and makes it again",
  withPlace(async ({ start, inside, socket, token }) => {
    const { instance } = await start();
    unlinkSync(socket);
    assert.is((await start()).instance, instance);
    const { code, stdout } = await inside(["--bridge"], frameOf(request("server.capabilities", {}, token)));
    assert.equal([code, messagesIn(stdout)[0].result.instanceId], [0, instance]);
  }),
);

test(
  "there are no two daemons when the directory of the first is removed",
  withPlace(
    async ({ start, directory, socket, daemons, command }) => {
      const { pid, instance } = await start();
      // the token is in it, too
      for (let i = 0; i < 3; i++) {
        rmSync(`${directory}/given.token`);
        await command(["find", directory, "-mindepth", "1", "-delete"]);
        writeFileSync(`${directory}/given.token`, "a good token\n", { mode: 0o600 });
        const again = await start();
        assert.equal([again.pid, again.instance], [pid, instance]);
        assert.equal(daemons(), [pid], socket);
      }
    },
    { watchMs: 250, unseenMs: 3000 },
  ), // longer than a start takes to look
);

test(
  "ten starts at once make one daemon",
  withPlace(async ({ start, daemons }) => {
    const started = await Promise.all(Array.from({ length: 10 }, start));
    assert.is(new Set(started.map(({ instance }) => instance)).size, 1);
    assert.is(daemons().length, 1);
  }),
);

test(
  "a killed daemon is known to be dead, and a bridge starts it again",
  withPlace(async ({ start, inside, token, daemons }) => {
    const { pid, instance } = await start();
    process.kill(pid, "SIGKILL");
    await until("it is gone", () => !isAlive(pid));
    const { code, stdout, stderr } = await inside(["--bridge"], frameOf(request("server.capabilities", {}, token)));
    assert.is(code, 0, stderr);
    assert.is.not(messagesIn(stdout)[0].result.instanceId, instance);
    assert.is(daemons().length, 1);
  }),
);

test(
  "a bridge whose daemon dies before it answers goes on with another one, though there is a process of its pid",
  withPlace(async ({ start, inside, record, socket, token, daemons }) => {
    const { pid, instance } = await start();
    const other = spawn("sleep", ["1000"]); // in the place of a zombie that nobody has reaped yet
    try {
      await stopWhen(pid, () => true, "it stands still");
      writeFileSync(`${socket}.record`, JSON.stringify({ ...record(), pid: other.pid }));
      const bridge = inside(["--bridge"], frameOf(request("server.capabilities", {}, token)));
      const isConnected = () => readFileSync("/proc/net/unix", "latin1").split(record().socket.bound).length > 2;
      await until("it has connected", isConnected);
      process.kill(pid, "SIGKILL");
      const { code, stdout, stderr } = await bridge;
      assert.is(code, 0, stderr);
      assert.is.not(messagesIn(stdout)[0].result.instanceId, instance);
      assert.equal([isAlive(other.pid!), daemons().length], [true, 1]);
    } finally {
      other.kill("SIGKILL");
    }
  }),
);

test(
  "a pid that somebody else has now keeps nobody from starting, and nobody is signalled",
  withPlace(async ({ start, inside, socket, record, daemons }) => {
    const { pid, instance } = await start();
    process.kill(pid, "SIGKILL");
    await until("it is gone", () => !isAlive(pid));
    const other = spawn("sleep", ["1000"]);
    try {
      writeFileSync(`${socket}.record`, JSON.stringify({ ...record(), pid: other.pid }));
      assert.is.not((await start()).instance, instance);
      assert.is((await inside(["--stop"])).code, 0);
      assert.equal([isAlive(other.pid!), daemons()], [true, []]);
    } finally {
      other.kill("SIGKILL");
    }
  }),
);

test(
  "processes are signalled by group, and what lives is not said to have died",
  withPlace(async ({ start, call, inside }) => {
    await start();
    const script = "(trap '' TERM; echo $$; exec sleep 1000) & sleep 1000";
    const params = JSON.stringify({ id: "a", command: "sh", args: ["-c", script] });
    await inside(["--bridge"], frameOf(request("process.spawn", JSON.parse(params), "a good token")));
    const group = (await call("process.list")).processes[0].pid;
    const sleepers = (): number[] => findRunning("sleep 1000", "group", group);
    await until("both run", () => sleepers().length === 2);
    const answer = await call("process.killAndWait", { id: "a", timeoutMs: 300 });
    assert.equal(answer, { found: true, died: true, escalated: true });
    assert.equal(sleepers(), []);
  }),
);

without.run();
