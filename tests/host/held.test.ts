// time limit: 240 s
/**
 * Work on a host that kills at logout: what --serve promises of it, over the death of its daemon and of every session.
 *
 * Each step is in an ssh session of its own, and between them nobody is logged in.
 */

import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Wire } from "../daemon.ts";
import { builtFile, createWire, filesIn, sideBySide, stopWhen } from "../daemon.ts";
import type { Host, HostProcess } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

requireHosts(5);

const socket = ".run/rpc.sock";
/** UserStopDelaySec= is 10 s: what ends with the user manager is gone by then. */
const loggedOutMs = 14_000;
const serve = `./server --stop --socket ${socket} && ./server --serve --socket ${socket} --token-file token`;
/** A numbered line each 200 ms; it ends when it is told to. */
const script =
  'i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done & read -r line; kill $!; echo "read $line"; exit 7';

const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** What the holders, the keepers and the processes of a user are, by their words. */
const heldOf = (host: Host): HostProcess[] => host.processes(/\.held\/|read -r line/);

async function install(host: Host): Promise<void> {
  await host.copy("dev", builtFile, "server");
  assert.is((await host.ssh("dev", "umask 077; mkdir .run; echo t > token")).code, 0);
}

/** Talks to the daemon in a session of its own, which ends with it. */
async function withBridge<T>(host: Host, use: (wire: Wire, said: () => string) => Promise<T>): Promise<T> {
  const client = host.spawnSsh("dev", `./server --bridge --socket ${socket}`);
  let stderr = "";
  client.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  const ended = new Promise((done) => client.once("close", done));
  try {
    return await use(createWire(client.stdout, client.stdin, "t"), () => stderr);
  } finally {
    client.stdin.end();
    await ended;
  }
}

const spawnJob = (host: Host): Promise<number> =>
  withBridge(host, async (wire) => {
    const { pid } = await wire.request("process.spawn", { id: "job", command: "sh", args: ["-c", script] });
    await wire.message(({ stream }) => stream === "stdout");
    return pid;
  });

/** @returns The job's lines, up to its end, which this client asks for. */
async function finishJob(wire: Wire): Promise<{ lines: string[]; exit: any; found: any }> {
  const found = await wire.request("process.reattach", { id: "job", fromSeq: 0 });
  if (found.running) await wire.request("process.stdin", { id: "job", data: Buffer.from("now\n").toString("base64") });
  const exit = await wire.message(({ stream }) => stream === "exit");
  const chunks = wire.messages
    .filter(({ stream }) => stream === "stdout")
    .map(({ data }) => Buffer.from(data, "base64"));
  return { lines: Buffer.concat(chunks).toString().trimEnd().split("\n"), exit, found };
}

async function killDaemon(host: Host): Promise<void> {
  const [daemon, ...others] = host.processes("--launched");
  assert.equal(others, []);
  process.kill(daemon!.pid, "SIGKILL");
  await until(() => host.processes("--launched").every(({ pid }) => pid !== daemon!.pid), "the daemon to be dead");
}

/** In a moment when all that was read is safe: then nothing may be missing. */
async function stopWhenSafe(host: Host): Promise<void> {
  const [daemon] = host.processes("--launched");
  const held = host.file(`/home/dev/${socket}.held`);
  const pipes = filesIn(held)
    .filter((name) => existsSync(join(held, name, "about")))
    .map((name) => join(held, name, "out"));
  assert.is(pipes.length, 1);
  await stopWhen(daemon!.pid, () => pipes.every((pipe) => statSync(pipe).atimeMs === 0), "what was read is safe");
}

const all = suite("Work on a host that kills at logout:");
const held = sideBySide(all, 3);

held("lives where lingering is on, over the last logout and its daemon's death, and nothing of it is missing", () =>
  withHost({ killUserProcesses: true, users: ["dev+linger"] }, async (host) => {
    await install(host);
    const started = await host.ssh("dev", serve);
    assert.match(started.stdout, /survives logout: yes\)/, started.stderr);
    const pid = await spawnJob(host);
    await host.sleepUntilLoggedOut("dev");
    assert.ok(
      heldOf(host).every(({ cgroup }) => /\/user@\d+\.service\//.test(cgroup)),
      JSON.stringify(heldOf(host)),
    );
    await stopWhenSafe(host);
    await killDaemon(host);
    const start = performance.now();
    await until(() => host.processes("--launched").length === 1, "the daemon to be back, though nobody is there");
    console.log(`\nFIGURES back ${Math.round(performance.now() - start)} ms after kill -9, with nobody logged in`);
    await sleep(loggedOutMs);
    assert.is(host.sessions("dev").filter(({ state }) => state !== "closing").length, 0);
    assert.ok(host.isAlive(pid), "the job lives");
    await withBridge(host, async (wire) => {
      const [job] = (await wire.request("process.list")).processes;
      assert.equal([job.id, job.pid, job.running], ["job", pid, true]);
      const { lines, exit } = await finishJob(wire);
      assert.is(lines.pop(), "read now");
      const gaps = wire.messages.filter(({ stream }) => stream === "gap");
      assert.equal(gaps, []);
      assert.equal(
        lines,
        lines.map((_, at) => String(at + 1)),
      );
      assert.ok(lines.length > loggedOutMs / 1000, `${lines.length} lines`); // five a second; fewer on a busy machine
      assert.is(exit.exitCode, 7);
    });
    assert.match((await host.ssh("dev", `./server --stop --socket ${socket}`)).stdout, /^stopped 0$/m);
    await until(() => heldOf(host).length === 0, "all to be gone");
  }),
);

held(
  "ends with the user manager where lingering is off: nothing is left, and what it had said is told, and why it ended",
  () =>
    withHost({ killUserProcesses: true, logind: ["UserStopDelaySec=1"] }, async (host) => {
      await install(host);
      const started = await host.ssh("dev", serve);
      assert.match(started.stdout, /survives logout: until about 1 s after your last session ends\)/, started.stderr);
      const pid = await spawnJob(host);
      await host.sleepUntilUserManagerEnded("dev");
      await until(() => !host.isAlive(pid) && heldOf(host).length === 0, "all to be gone");
      await withBridge(host, async (wire, said) => {
        const { lines, exit, found } = await finishJob(wire);
        assert.is(found.running, false);
        assert.is(lines[0], "1");
        assert.ok(exit.signal !== undefined || exit.unknown !== undefined, JSON.stringify(exit));
        // sshd may pass on what comes on stdout first
        await until(() => /as systemd stopped the user manager after the last logout/.test(said()), "the reason");
      });
    }),
);

held("is moved to where its next daemon is, out of a session that would take it along", () =>
  withHost({ killUserProcesses: true, users: ["dev+linger"] }, async (host) => {
    await install(host);
    const session = host.spawnSsh("dev", `${serve} --lifetime detach; cat`);
    const said = await new Promise((done) => session.stdout.once("data", (chunk) => done(String(chunk))));
    assert.match(String(said), /none 0/);
    await until(() => existsSync(host.file(`/home/dev/${socket}`)), "its daemon to have its name");
    const pid = await spawnJob(host);
    assert.ok(
      heldOf(host).every(({ cgroup }) => /\/session-/.test(cgroup)),
      JSON.stringify(heldOf(host)),
    );
    await killDaemon(host);
    const status = await withBridge(host, (wire) => wire.request("server.status"));
    const isMoved = () => heldOf(host).every(({ cgroup }) => /\/user@\d+\.service\//.test(cgroup));
    await until(isMoved, "its work to be where the daemon is");
    assert.is(status.processes[0].pid, pid);
    session.stdin.end();
    await host.sleepUntilLoggedOut("dev");
    await sleep(2000);
    assert.ok(host.isAlive(pid), "the job lives");
    await withBridge(host, async (wire) => {
      assert.is((await wire.request("server.capabilities")).lifetime.words, "yes");
      assert.is((await finishJob(wire)).exit.exitCode, 7);
    });
  }),
);

held("whose daemon is killed five times in a row has it back three times; then log and --doctor say why no more", () =>
  withHost({ killUserProcesses: true, users: ["dev+linger"] }, async (host) => {
    await install(host);
    assert.is((await host.ssh("dev", serve)).code, 0);
    const flood = { id: "flood", command: "seq", args: ["-f", "%015.0f", "1", "99999999999"] };
    const { pid } = await withBridge(host, (wire) => wire.request("process.spawn", flood));
    await host.sleepUntilLoggedOut("dev");
    const returns: number[] = [];
    for (let kill = 1; kill <= 5 && host.processes("--launched").length > 0; kill++) {
      await until(() => {
        const [watchdog, ...others] = host.processes("--revive"); // what has just brought it back has that word, too
        return others.length === 0 && watchdog?.command.includes("HOLDFAST_WORD") === true;
      }, "one to watch over it");
      await killDaemon(host);
      const start = performance.now();
      const isBack = (): boolean => host.processes("--launched").length > 0;
      if (kill > 3) await until(() => host.processes("--revive").length === 0, "nobody to watch any more");
      else await until(isBack, "it to be back");
      if (isBack()) returns.push(Math.round(performance.now() - start));
    }
    console.log(`\nFIGURES back ${returns.join(", ")} ms after each kill -9`);
    assert.is(returns.length, 3);
    assert.ok(host.isAlive(pid), "the flood goes on");
    const read = await host.ssh("dev", `cat .run/*.log; ./server --doctor --socket ${socket}`);
    assert.match(read.stdout, /\[Watchdog\] The daemon is dead again, after 3 returns within 60 s/);
    assert.match(read.stdout, /had come back by itself 3 times within a minute: it does so no more/);
    await withBridge(host, async (wire) => {
      const [job] = (await wire.request("process.list")).processes;
      assert.equal([job.pid, job.running], [pid, true], "a bridge starts one all the same");
    });
    assert.is((await host.ssh("dev", `./server --stop --now --socket ${socket}`)).code, 0);
  }),
);

const pidOf = (host: Host): Promise<number> =>
  withBridge(host, async (wire) => (await wire.request("server.status")).pid);

held("under a systemd unit is left to that: a bridge that comes first waits for it, or gives way to it", () =>
  withHost({ killUserProcesses: true, users: ["dev+linger"] }, async (host) => {
    await install(host);
    const run = async (command: string): Promise<string> => {
      const { code, stdout, stderr } = await host.ssh("dev", `export XDG_RUNTIME_DIR=/run/user/$(id -u); ${command}`);
      assert.is(code, 0, `${command}: ${stdout}${stderr}`);
      return stdout;
    };
    const unit = ".config/systemd/user/holdfast.service";
    const restarting = (seconds: number) =>
      run(`sed -i 's/^RestartSec=.*/RestartSec=${seconds}/' ${unit}; systemctl --user daemon-reload`);
    const show = (name: string) => run(`systemctl --user show holdfast -p ${name} --value`).then((text) => text.trim());
    await run("chmod 755 server; mkdir -p .config/systemd/user");
    await host.copy("dev", "examples/holdfast.service", unit);
    const command = `%h/server --serve --lifetime foreground --socket %h/${socket} --token-file %h/token`;
    await run(`sed -i 's|^ExecStart=.*|ExecStart=${command}|' ${unit}`);
    await restarting(0.1);
    await run("systemctl --user start holdfast");
    await until(async () => (await run("ls .run")).includes("rpc.sock"), "it listens");
    const job = await spawnJob(host);
    for (const [round, seconds] of [0.1, 0.1, 8].entries()) {
      await restarting(seconds);
      const [daemon] = host.processes("--lifetime foreground");
      process.kill(daemon!.pid, "SIGKILL");
      const answered = await pidOf(host);
      if (seconds < 1) assert.is(String(answered), await show("MainPID"), "the unit's own has answered");
      else assert.not.ok(host.processes("--lifetime foreground").some(({ inside }) => inside === answered));
      // one that gives way closes its connections
      const answering = () => pidOf(host).catch(({ message }) => message);
      await until(async () => String(await answering()) === (await show("MainPID")), "the unit's own", 30_000);
      assert.equal([await show("ActiveState"), await show("NRestarts")], ["active", String(round + 1)]);
      await until(() => host.processes("--launched").length === 0, "no other to be left");
      assert.ok(host.isAlive(job), "the job lives");
    }
    await withBridge(host, async (wire) => {
      const { lines, exit } = await finishJob(wire);
      assert.is(lines.pop(), "read now");
      assert.is(exit.exitCode, 7);
    });
    await run("systemctl --user stop holdfast");
    await until(() => heldOf(host).length === 0, "all to be gone");
  }),
);

all.run();
