// time limit: 240 s
/**
 * The reasons why there is no daemon, produced for real, and told apart; and the healing of those that may be healed. Two are told only from evidence
 * that is handed in (tests/reach.test.ts): `replaced`, whose successor has gone without a record, and `out-of-memory`.
 */

import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, frameOf, messagesIn, outcomeOf, request, sideBySide } from "../daemon.ts";
import type { Host, HostOptions, HostProcess } from "./host.ts";
import { maskedManager, requireHosts, shareHost, until, withHost } from "./host.ts";

requireHosts(17);

const quick = (options: HostOptions): HostOptions => ({
  killUserProcesses: true,
  ...options,
  logind: ["UserStopDelaySec=1", ...(options.logind ?? [])],
});
const socket = ".run/rpc.sock";

/** Starts a daemon in a session of its own, and waits until the user is logged out. */
async function serve(host: Host, user = "dev", args = ""): Promise<{ pid: number; instance: string }> {
  await host.copy(user, builtFile, "server");
  const started = await host.ssh(
    user,
    `umask 077; mkdir -p .run; echo t > token; export HOLDFAST_WATCHDOG=off; ./server --serve --socket ${socket} --token-file token --json ${args}`,
  );
  assert.is(started.code, 0, started.stderr);
  const { pid, instance } = JSON.parse(started.stdout);
  // where it ends with this session, it may be gone by now
  return { pid: daemonsOf(host, user).find(({ inside }) => inside === pid)?.pid ?? Number.NaN, instance };
}

/** The daemons of a user that run. */
const daemonsOf = (host: Host, user = "dev"): HostProcess[] =>
  host.processes("--launched").filter(({ uid }) => uid === host.uid(user));

interface Answer {
  code: number | null;
  stderr: string;
  /** The answer to the one request. */
  answer: any;
}

/** One request through --bridge, in native framing, from a session of its own. */
async function ask(host: Host, args = "", user = "dev", path = socket): Promise<Answer> {
  const { code, stderr, stdout } = await outcomeOf(
    host.spawnSsh(user, `./server --bridge --socket ${path} ${args}`),
    frameOf(request("server.capabilities", {}, "t", "an id")),
    30_000,
  );
  return { code, stderr, answer: messagesIn(stdout)[0] };
}

/** The reason stands in the answer to what the client asked, on stderr in words, and is followed by the command that mends it. */
function assertReason({ code, stderr, answer }: Answer, reason: string, words: RegExp, expectedCode = 69): void {
  assert.is(answer?.error?.data?.reason, reason, `${JSON.stringify(answer)} ${stderr}`);
  assert.is(answer.error.code, -32010);
  assert.is(answer.id, "an id");
  assert.match(answer.error.message, words);
  assert.ok(stderr.includes(answer.error.message), stderr);
  assert.match(stderr, /^holdfast: hint: .+/m);
  assert.ok(answer.error.data.hint.length > 5);
  assert.is(code, expectedCode);
}

/** A bridge that may start one does, and says why on stderr; the client gets its answer. */
async function assertHealed(host: Host, instance: string, words: RegExp, user = "dev"): Promise<void> {
  const { code, stderr, answer } = await ask(host, "", user);
  assert.match(answer?.result?.instanceId, /^[0-9a-f]{32}$/, stderr);
  assert.is.not(answer.result.instanceId, instance);
  assert.match(stderr, words);
  assert.is(code, 0);
}

const all = suite("--bridge tells why, and mends it:");
const reasons = sideBySide(all, 3);

/** Of the host that most of them share: a user each, and one who has no daemon. */
const plainUsers = ["new", "out", "job"];
const lingeringUsers = ["sam", "ben", "bob", "max", "sue", "kim", "lea", "ann"];
const shared = shareHost(
  all,
  quick({ users: ["eve", ...plainUsers, ...lingeringUsers.map((name) => `${name}+linger`)] }),
);
const plain = (): string => plainUsers.shift()!;
const lingering = (): string => lingeringUsers.shift()!;

reasons("never-started", async () => {
  const host = await shared();
  const user = plain();
  await host.copy(user, builtFile, "server");
  assertReason(await ask(host, "", user), "never-started", /no daemon has been started at/);
  assert.is(daemonsOf(host, user).length, 0);
});

reasons("stopped, by --stop: and then it is not started again", async () => {
  const host = await shared();
  const user = lingering();
  await serve(host, user);
  assert.is((await host.ssh(user, `./server --stop --socket ${socket}`)).stdout, "stopped 0\n");
  assertReason(await ask(host, "", user), "stopped", /was stopped on purpose at \d\d:\d\d:\d\d/);
  assert.is(daemonsOf(host, user).length, 0);
});

reasons("killed-at-logout, where the session's end kills it and no scope can be had", () =>
  withHost(quick({ pre: maskedManager }), async (host) => {
    const { instance } = await serve(host);
    await host.sleepUntilLoggedOut("dev");
    await until(() => daemonsOf(host).length === 0, "the daemon to be killed");
    assertReason(
      await ask(host, "--no-start"),
      "killed-at-logout",
      /ended by systemd-logind at \d\d:\d\d:\d\d \(\d+ s ago\), as the session ended/,
    );
    await assertHealed(host, instance, /as the session ended that it was started in: started it again/);
  }),
);

reasons("user-manager-stopped, without lingering", async () => {
  const host = await shared();
  const user = plain();
  const { instance } = await serve(host, user);
  await host.sleepUntilUserManagerEnded(user);
  await until(() => daemonsOf(host, user).length === 0, "the daemon to be ended");
  assertReason(
    await ask(host, "--no-start", user),
    "user-manager-stopped",
    /as systemd stopped the user manager after the last logout/,
  );
  await assertHealed(host, instance, /started it again/, user);
});

reasons("idle-stop, where logind ends a session with a terminal that is idle", () =>
  withHost(quick({ killUserProcesses: false, logind: ["StopIdleSessionSec=10"] }), async (host) => {
    const show = "loginctl show-user | grep StopIdleSessionUSec; loginctl show-session $XDG_SESSION_ID -p TTY";
    const known = await host.ssh("dev", `TERM= ${show}`, { sshArgs: ["-tt"] });
    if (!/^StopIdleSessionUSec=\d+s/m.test(known.stdout) || !/^TTY=pts/m.test(known.stdout)) return; // it reaches none here: see verdicts.test.ts
    await host.copy("dev", builtFile, "server");
    await host.ssh("dev", "umask 077; mkdir -p .run; echo t > token");
    host.spawnSsh("dev", `./server --serve --socket ${socket} --token-file token; sleep 100`, ["-tt"]);
    await until(() => daemonsOf(host).length === 1, "a daemon", 30_000);
    await until(() => daemonsOf(host).length === 0, "the daemon to be ended", 60_000);
    assertReason(
      await ask(host, "--no-start"),
      "idle-stop",
      /ended by systemd-logind at .*, as the session had been idle for too long/,
    );
    await assertHealed(host, "", /idle for too long that it was started in: started it again/);
  }),
);

reasons("unit-stopped, with the service that it was started by", async () => {
  const host = await shared();
  const user = plain();
  await host.copy(user, builtFile, "server");
  await host.ssh(user, "umask 077; mkdir -p .run; echo t > token");
  const path = `/home/${user}/${socket}`;
  const unit = `systemd-run --wait --pipe --quiet -p Type=oneshot -p User=${user} --unit=build.service`;
  const started = await host.root(
    `${unit} /home/${user}/server --serve --json --socket ${path} --token-file /home/${user}/token`,
  );
  assert.is(started.code, 0, started.stderr);
  await until(() => daemonsOf(host, user).length === 0, "the daemon to be ended");
  assertReason(
    await ask(host, "--no-start", user),
    "unit-stopped",
    /with the unit that it was in \(.* as build\.service ended\)/,
  );
  await assertHealed(host, JSON.parse(started.stdout).instance, /started it again/, user);
});

reasons("user-manager-ended, by somebody, where lingering is on; and a scope that is stopped was meant", async () => {
  const host = await shared();
  const user = lingering();
  const other = lingering();
  const { instance } = await serve(host, user);
  await host.sleepUntilLoggedOut(user);
  assert.is((await host.root(`systemctl restart user@${host.uid(user)}`)).code, 0);
  await until(() => daemonsOf(host, user).length === 0, "the daemon to be ended");
  const status = await host.ssh(user, `./server --status --socket ${socket}`);
  assert.match(status.stderr, /was ended at .*, as somebody stopped the user manager, not by a logout/);
  assert.not.match(status.stderr, /enable-linger/);
  assertReason(await ask(host, "--no-start", user), "user-manager-ended", /somebody stopped the user manager/);
  await assertHealed(host, instance, /started it again/, user);

  await serve(host, other);
  const show = `basename $(sed -n 's/^0:://p' /proc/$(pgrep -u ${other} -f -- [-]-launched)/cgroup)`;
  const stopped = await host.ssh(other, `systemctl --user stop $(${show})`);
  assert.is(stopped.code, 0, stopped.stderr);
  assertReason(await ask(host, "", other), "stopped", /was ended at .* as run-.*\.scope was stopped/);
});

reasons("host-shutdown: a host that is shut down in order, and booted again", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-shutdown-"));
  try {
    const options = quick({
      users: ["dev+linger"],
      disk: join(directory, "disk"),
      pre: "echo fixed-name >$root/etc/hostname",
    });
    const instance = await withHost(options, async (host) => {
      const started = await serve(host);
      await host.sleepUntilLoggedOut("dev");
      await host.powerOff();
      return started.instance;
    });
    await withHost(options, async (host) => {
      assertReason(await ask(host, "--no-start"), "host-shutdown", /was ended at .*, as the host was shut down/);
      await assertHealed(host, instance, /was shut down: started it again/);
    });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

reasons(
  "stopped, for timeout(1) and for a person with the signals of systemd: nothing of it was stopping",
  async () => {
    const host = await shared();
    const user = lingering();
    const { pid } = await serve(host, user);
    process.kill(pid, "SIGTERM");
    process.kill(pid, "SIGCONT");
    await until(() => daemonsOf(host, user).length === 0, "the daemon to be ended");
    assertReason(await ask(host, "", user), "stopped", /by SIGCONT, SIGTERM: by a person or a program/);
  },
);

reasons("and none of them for a host that was given another name: its daemon is found, and stopped", () =>
  withHost(quick({ users: ["dev+linger"] }), async (host) => {
    await host.root("hostname box");
    const { instance } = await serve(host);
    const inDefault = await host.ssh("dev", "./server --serve --json");
    await host.root("hostname box.lan");
    assert.is((await ask(host)).answer.result.instanceId, instance);
    const joined = await host.ssh("dev", "./server --serve --json");
    assert.is(JSON.parse(joined.stdout).instance, JSON.parse(inDefault.stdout).instance, joined.stderr);
    assert.is(daemonsOf(host).length, 2);
    for (const args of ["", `--socket ${socket}`])
      assert.is((await host.ssh("dev", `./server --stop ${args}`)).stdout, "stopped 0\n", args);
    const again = await host.ssh("dev", `./server --serve --socket ${socket}`);
    assert.is(again.code, 0, again.stderr);
    assert.is(daemonsOf(host).length, 1);
  }),
);

reasons("rebooted: a host booted twice on one disk", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-reboot-"));
  try {
    const options = quick({
      users: ["dev+linger"],
      disk: join(directory, "disk"),
      pre: "echo fixed-name >$root/etc/hostname",
    });
    const instance = await withHost(options, async (host) => {
      const started = await serve(host);
      process.kill(started.pid, "SIGKILL"); // as a power cut does: no last word
      await host.root("sync");
      await host.powerOff();
      return started.instance;
    });
    await withHost(options, async (host) => {
      assertReason(await ask(host, "--no-start"), "rebooted", /the host has been booted again since/);
      await assertHealed(host, instance, /booted again since: started it again/);
    });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

reasons("crashed, by kill -9; and eight bridges at once start one", async () => {
  const host = await shared();
  const user = lingering();
  const { pid } = await serve(host, user);
  process.kill(pid, "SIGKILL");
  await until(() => daemonsOf(host, user).length === 0, "the daemon to be gone");
  assertReason(await ask(host, "--no-start", user), "crashed", /gone without a word: killed by SIGKILL/);
  const answers = await Promise.all(Array.from({ length: 8 }, () => ask(host, "", user)));
  const instances = new Set(answers.map(({ answer, stderr }) => answer?.result?.instanceId ?? stderr));
  assert.is(instances.size, 1, [...instances].join("\n"));
  assert.match([...instances][0]!, /^[0-9a-f]{32}$/);
  assert.is(daemonsOf(host, user).length, 1);
});

reasons("not-answering, for a daemon that is stopped (SIGSTOP): it is neither killed nor replaced", async () => {
  const host = await shared();
  const user = lingering();
  const { pid, instance } = await serve(host, user);
  process.kill(pid, "SIGSTOP");
  const child = host.spawnSsh(user, `./server --bridge --socket ${socket}`);
  const output: Buffer[] = [];
  let stderr = "";
  child.stderr.on("data", (chunk) => (stderr += chunk));
  child.stdout.on("data", (chunk) => output.push(chunk));
  child.stdin.write(frameOf(request("server.capabilities", {}, "t", "an id")));
  const code = await new Promise<number | null>((done) => child.once("close", done));
  assertReason(
    { code, stderr, answer: messagesIn(Buffer.concat(output))[0] },
    "not-answering",
    /is not answering: it is not known to be dead, and was left alone/,
  );
  assert.equal(
    daemonsOf(host, user).map((found) => found.pid),
    [pid],
  );
  process.kill(pid, "SIGCONT");
  assert.is((await ask(host, "", user)).answer.result.instanceId, instance);
});

reasons("other-host, for the record of another host in a shared home", async () => {
  // An overlay for the second host: as over NFS, it sees the first one's files, and its socket refuses.
  const shared = mkdtempSync(join(tmpdir(), "holdfast-home-"));
  const overlay = `mkdir -p ${shared}/up ${shared}/work $root/home/dev/shared; mount -t overlay home -o lowerdir=${shared}/home,upperdir=${shared}/up,workdir=${shared}/work $root/home/dev/shared`;
  const named = (name: string) => `echo ${name} >$root/etc/hostname`;
  try {
    mkdirSync(join(shared, "home"), { mode: 0o700 });
    await withHost(
      quick({ users: ["dev+linger"], binds: { "/home/dev/shared": join(shared, "home") }, pre: named("alpha") }),
      async (alpha) => {
        const path = "shared/rpc.sock";
        await alpha.root("chown dev: /home/dev/shared");
        await alpha.copy("dev", builtFile, "server");
        assert.is(
          (await alpha.ssh("dev", `echo t > token; ./server --serve --socket ${path} --token-file token`)).code,
          0,
        );
        await withHost(quick({ users: ["dev+linger"], pre: `${named("beta")}; ${overlay}` }), async (beta) => {
          await beta.root("chown dev: /home/dev/shared; chmod 700 /home/dev/shared");
          await beta.copy("dev", builtFile, "server");
          assertReason(await ask(beta, "", "dev", path), "other-host", /was started on host "alpha", this is "beta"/);
          const refused = await beta.ssh("dev", `./server --serve --socket ${path}`);
          assert.match(
            refused.stderr,
            /its daemon was started on host "alpha", this is "beta"\nholdfast: hint: /,
            refused.stdout + refused.stderr,
          );
          assert.is(refused.code, 69);
          assert.match((await beta.ssh("dev", `./server --stop --socket ${path}`)).stdout, /^none 0$/m);
          assert.is(beta.processes("--launched").length, 0);
        });
        assert.is(alpha.processes("--launched").length, 1);
        assert.match((await ask(alpha, "", "dev", path)).answer.result.instanceId, /^[0-9a-f]{32}$/);
      },
    );
  } finally {
    rmSync(shared, { recursive: true, force: true });
  }
});

reasons("permission, for a directory of another user", async () => {
  const host = await shared();
  const user = lingering();
  await serve(host, user);
  await host.copy("eve", builtFile, "server");
  assertReason(
    await ask(host, "", "eve", `/home/${user}/.run/rpc.sock`),
    "permission",
    /may not be used: permission denied \(EACCES\)/,
    77,
  );
});

reasons("and to a client that is attached as it ends, by one message between frames", async () => {
  const host = await shared();
  const user = lingering();
  const { pid } = await serve(host, user);
  const attached = host.spawnSsh(user, `./server --bridge --socket ${socket}`);
  const output: Buffer[] = [];
  attached.stdout.on("data", (chunk) => output.push(chunk));
  attached.stdin.write(frameOf(request("server.ping", {}, "t")));
  await until(() => output.length > 0, "the first answer");
  process.kill(pid, "SIGTERM");
  const code = await new Promise((done) => attached.once("close", done));
  const [pong, lost, ...more] = messagesIn(Buffer.concat(output));
  assert.equal(pong.result, { pong: true });
  assert.equal([lost.type, lost.event, lost.reason, more.length], ["bridge", "lost", "stopped", 0]);
  assert.match(lost.message, /was ended at .* by SIGTERM: by a person or a program/);
  assert.is(code, 69);
});

reasons(
  "so that the three invocations end in a handshake where nothing can outlive its session; and --status counts what it outlived",
  () =>
    withHost(quick({ polkit: false, users: ["dev", "ann+linger"] }), async (host) => {
      const { instance } = await serve(host, "dev");
      await host.sleepUntilUserManagerEnded("dev");
      await assertHealed(host, instance, /started it again/);

      await serve(host, "ann");
      await host.sleepUntilLoggedOut("ann");
      await new Promise((done) => setTimeout(done, 8000)); // the daemon counts it 3 s after it was told
      const status = await host.ssh("ann", `./server --status --socket ${socket}`);
      assert.match(status.stdout, /^outlived +1 logout so far$/m);
      assert.match(status.stdout, /^survives logout yes$/m);
    }),
);

all.run();
