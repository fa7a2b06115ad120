// time limit: 120 s
/** One daemon, the right one, on real hosts: a home that two of them share, revival from sessions of their own, and rescue by a join. */

import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, busyMs, faultRow, frameOf, messagesIn, outcomeOf, request, rounds, sideBySide } from "../daemon.ts";
import type { Host } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

requireHosts(8);

const goneMs = 3000;

const shared = suite("one daemon");
const lanes = sideBySide(shared, 3);
const fault = (done: string, promised: string, body: () => Promise<string>): void => {
  const row = faultRow(done, promised);
  lanes(`${done}: ${promised}`, async () => row(await body()));
};

const instanceIn = (text: string): string | undefined => /instance ([0-9a-f]{32})/.exec(text)?.[1];

/** Asks over a bridge, in a session of its own. */
async function ask(host: Host, method: string, params: unknown, token: string): Promise<any> {
  const bridged = await outcomeOf(host.spawnSsh("dev", "./server --bridge"), frameOf(request(method, params, token)));
  const answer = messagesIn(bridged.stdout).find(({ id }) => id === 1);
  assert.ok(answer?.result, `${bridged.stderr}${JSON.stringify(answer)}`);
  return answer.result;
}

fault(
  "two hosts that share a home directory, `--serve` on both, `--stop` on one",
  "a daemon each; the other's is left alone",
  async () => {
    const home = mkdtempSync(join(tmpdir(), "holdfast-home-"));
    chmodSync(home, 0o777); // of no user here; on the hosts it is theirs
    try {
      return await withHost({ killUserProcesses: false, binds: { "/home/dev/shared": home } }, (one) =>
        withHost({ killUserProcesses: false, binds: { "/home/dev/shared": home } }, async (two) => {
          const inHome = (command: string): string => `XDG_STATE_HOME=/home/dev/shared ./server ${command}`;
          const instances: (string | undefined)[] = [];
          for (const host of [one, two]) {
            await host.copy("dev", builtFile, "server");
            const started = await host.ssh("dev", inHome("--serve"));
            assert.is(started.code, 0, started.stderr);
            instances.push(instanceIn(started.stdout));
          }
          assert.is(new Set(instances).size, 2, "instances");
          const stopped = await one.ssh("dev", inHome("--stop"));
          assert.is(stopped.stdout, "stopped 0\n", stopped.stderr);
          assert.equal(
            [one, two].map((host) => host.processes("--launched").length),
            [0, 1],
          );
          const joined = await two.ssh("dev", inHome("--serve"));
          assert.is(instanceIn(joined.stdout), instances[1], joined.stderr);
          const again = await one.ssh("dev", inHome("--status --json"));
          assert.is(again.code, 69, "the first host's client has found the second's daemon");
          return "so";
        }),
      );
    } finally {
      rmSync(home, { recursive: true, force: true });
    }
  },
);

fault(
  "`--stop && --serve` in ssh sessions of their own, with a new token each, on a host that kills what stays in a session",
  "one process, one instance, every token good",
  () =>
    withHost({ killUserProcesses: true, users: ["dev+linger"], logind: ["UserStopDelaySec=1"] }, async (host) => {
      await host.copy("dev", builtFile, "server");
      const count = rounds(50, 3);
      const serve = (token: string): Promise<{ stdout: string; stderr: string; code: number | null }> =>
        host.ssh(
          "dev",
          `umask 077; echo ${token} > ${token}; ./server --stop && ./server --serve --token-file ${token}`,
        );
      const instance = instanceIn((await serve("t")).stdout);
      await ask(host, "process.spawn", { id: "a", command: "sleep", args: ["1234"] }, "t");
      const [work] = host.processes(/^sleep 1234$/);
      for (let round = 0; round < count; round++) {
        const served = await serve(`t${round}`);
        assert.match(served.stdout, /^stopped 1\n/, served.stderr);
        assert.is(instanceIn(served.stdout), instance, `round ${round}: ${served.stderr}`);
        assert.equal(await ask(host, "server.ping", {}, `t${round}`), { pong: true });
      }
      assert.is(host.processes(/^sleep 1234$/)[0]?.pid, work!.pid);
      assert.is(host.processes("--launched").length, 1);
      return `so in ${count} rounds`;
    }),
);

/** Starts a daemon that stays in its session, and keeps that open. @returns What it has said, too. */
async function startInSession(
  host: Host,
  environment = "",
): Promise<{ session: ReturnType<Host["spawnSsh"]>; first: string }> {
  await host.copy("dev", builtFile, "server");
  await host.ssh("dev", "umask 077; echo t > t");
  const session = host.spawnSsh("dev", `${environment} ./server --serve --lifetime detach --token-file t; cat`);
  const first = await new Promise<string>((done) =>
    session.stdout.once("data", (chunk: Buffer) => done(chunk.toString())),
  );
  return { session, first };
}

fault(
  "a daemon in a session that is about to end, and a `--serve --enable-linger` from another session",
  "it is moved as it is, with its processes and what they have left behind; all of it outlives both sessions",
  () =>
    withHost({ killUserProcesses: true, logind: ["UserStopDelaySec=1"] }, async (host) => {
      const { session, first } = await startInSession(host);
      assert.match(first, /detached in the session; survives logout: no\)/);
      // a child, a grandchild, and one that nobody has waited for
      await ask(
        host,
        "process.spawn",
        { id: "a", command: "sh", args: ["-c", "(sleep 1235 &); sleep 1236 & exec sleep 1234"] },
        "t",
      );
      const work = (): number[] =>
        host
          .processes(/^sleep 123[456]$/)
          .map(({ pid }) => pid)
          .sort();
      await until(() => work().length === 3, "three processes");
      const before = work();

      const joined = await host.ssh("dev", "./server --serve --enable-linger --token-file t");
      assert.is(joined.code, 0, joined.stderr);
      assert.match(joined.stdout, /under your user manager; survives logout: yes\)/, joined.stderr);
      assert.match(joined.stderr, /joined the daemon that was running/);
      assert.is(instanceIn(joined.stdout), instanceIn(first));
      session.kill("SIGKILL");
      await host.sleepUntilLoggedOut("dev");
      await new Promise((done) => setTimeout(done, goneMs));
      assert.is(host.processes("--launched").length, 1, "the daemon was killed");
      assert.equal(work(), before, "processes were killed");
      const { lifetime, instanceId } = await ask(host, "server.capabilities", {}, "t");
      assert.equal(
        [instanceId, lifetime.survivesLogout, lifetime.placement],
        [instanceIn(first), "yes", "user-manager"],
      );
      return "so; daemon, child, grandchild and orphan are alive 3 s after the last logout";
    }),
);

for (const [what, end] of [
  ["is killed, and a `--serve --enable-linger` from another session takes up its processes", "kill"],
  ["gives way to a `--serve --replace --enable-linger` from another session", "replace"],
] as const) {
  fault(
    `a daemon in a session that is about to end ${what}`,
    "the new one is in a scope, and what it has taken up is moved there: all of it outlives both sessions",
    () =>
      withHost({ killUserProcesses: true, logind: ["UserStopDelaySec=1"] }, async (host) => {
        const { session, first } = await startInSession(host);
        await ask(host, "process.spawn", { id: "a", command: "sleep", args: ["1234"] }, "t");
        const [work] = host.processes(/^sleep 1234$/);
        if (end === "kill") {
          process.kill(host.processes("--launched")[0]!.pid, "SIGKILL");
          await until(() => host.processes("--launched").length === 0, "the daemon to be gone");
        }
        const how = end === "kill" ? "" : "--replace";
        const started = await host.ssh("dev", `./server --serve --enable-linger --token-file t ${how}`);
        assert.is.not(instanceIn(started.stdout), instanceIn(first), started.stderr);
        assert.match(started.stdout, /under your user manager; survives logout: yes\)/, started.stderr);
        session.kill("SIGKILL");
        await host.sleepUntilLoggedOut("dev");
        await new Promise((done) => setTimeout(done, goneMs));
        assert.equal([host.processes("--launched").length, host.processes(/^sleep 1234$/)[0]?.pid], [1, work!.pid]);
        const [listed] = (await ask(host, "process.list", {}, "t")).processes;
        assert.equal([listed.id, "exitCode" in listed], ["a", false], JSON.stringify(listed));
        return "so";
      }),
  );
}

fault(
  "what a killed daemon has left in a session cannot be moved as the next one starts (no bus), and then a `--serve`",
  "a warning first; the `--serve` moves it, and it outlives the session",
  () =>
    withHost({ killUserProcesses: true, logind: ["UserStopDelaySec=1"], users: ["dev+linger"] }, async (host) => {
      const { session } = await startInSession(host, "HOLDFAST_WATCHDOG=off");
      await ask(host, "process.spawn", { id: "a", command: "sleep", args: ["1234"] }, "t");
      const [work] = host.processes(/^sleep 1234$/);
      const bus = `/run/user/${host.uid("dev")}/bus`;
      await host.root(`mv ${bus} ${bus}.away`);
      process.kill(host.processes("--launched")[0]!.pid, "SIGKILL");
      await until(() => host.processes("--launched").length === 0, "the daemon to be gone");
      const started = await host.ssh("dev", "./server --serve --token-file t");
      assert.match(
        started.stderr,
        /a process of an earlier daemon \(a\) could not be moved .*\[--help work-left-behind\]/,
      );
      await host.root(`mv ${bus}.away ${bus}`);
      const joined = await host.ssh("dev", "./server --serve --token-file t");
      assert.match(joined.stdout, /under your user manager; survives logout: yes\)/, joined.stderr);
      assert.not.match(joined.stderr, /warning/);
      session.kill("SIGKILL");
      await host.sleepUntilLoggedOut("dev");
      await new Promise((done) => setTimeout(done, goneMs));
      assert.is(host.processes(/^sleep 1234$/)[0]?.pid, work!.pid);
      return "so";
    }),
);

fault(
  "the same where the user has no bus of its own (dbus-user-session), over which a running daemon is moved",
  "it is not moved; the warning says why, and what mends it",
  () =>
    withHost(
      {
        killUserProcesses: true,
        logind: ["UserStopDelaySec=1"],
        pre: "rm $root/usr/lib/systemd/user/dbus.socket",
      },
      async (host) => {
        await host.copy("dev", builtFile, "server");
        const session = host.spawnSsh("dev", "./server --serve --lifetime detach; cat");
        const first = await new Promise<string>((done) =>
          session.stdout.once("data", (chunk: Buffer) => done(chunk.toString())),
        );
        const joined = await host.ssh("dev", "./server --serve --enable-linger");
        assert.is(instanceIn(joined.stdout), instanceIn(first), joined.stderr);
        assert.match(joined.stdout, /detached in the session; survives logout: no\)/);
        assert.match(joined.stderr, /could not be moved: there is no "\/run\/user\/\d+\/bus".*ends-with-session\]/);
        assert.match(joined.stderr, /hint: as an administrator: apt-get install dbus-user-session/);
        session.kill("SIGKILL");
        await until(() => host.processes("--launched").length === 0, "the daemon to be killed, as was said");
        return "so";
      },
    ),
);

fault(
  "a container is ended while a `--serve` in it is starting, then a `--serve` in a new one over the same volume",
  "started at once; nobody waits for a claim that no one holds",
  () =>
    withHost({}, async (host) => {
      await host.copy("dev", builtFile, "server");
      const socket = "/srv/volume/rpc.sock";
      await host.root("mkdir -m 700 /srv/volume; cp /home/dev/server /srv/volume/");
      const container = "unshare --pid --fork --mount-proc --kill-child=KILL sh -c";
      const server = `/srv/volume/server --serve --socket ${socket}`;
      // its first process ends as soon as the claim is there, and the kernel ends the others
      const killed = await host.root(
        `${container} '${server} & while ! [ -e ${socket}.claim ]; do :; done; kill -9 $!'`,
      );
      assert.is(host.processes("--serve").length, 0, killed.stderr);
      assert.is((await host.inside(["ls", `${socket}.claim`])).code, 0, "the claim was left");
      const started = await host.root(`${container} '${server}; /srv/volume/server --stop --socket ${socket}'`);
      assert.match(started.stdout, /^Remote server listening.*\nstopped 0\n$/s, started.stderr);
      assert.ok(started.ms < busyMs(10_000), `it took ${started.ms} ms`);
      // and a daemon that went with its container: by the next one, and from outside
      for (const again of [container, "sh -c"]) {
        const left = await host.root(`${container} '${server}; kill -9 $(pgrep -f -- --launched)'`);
        assert.match(left.stdout, /^Remote server listening/, left.stderr);
        const next = await host.root(`${again} '${server}; /srv/volume/server --stop --socket ${socket}'`);
        assert.match(next.stdout, /^Remote server listening.*\nstopped 0\n$/s, next.stderr);
      }
      return `so, after ${started.ms} ms`;
    }),
);

shared.run();
