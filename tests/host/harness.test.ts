// time limit: 240 s
/**
 * The hosts that the other tests rely on: that they are real, that they are what was asked for, and that they leave nothing.
 *
 * What systemd does to processes is tested here with `sleep` alone, so that a surprise in another file is not the host's.
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { busyMs, statOf } from "../daemon.ts";
import type { Host } from "./host.ts";
import { bootHost, readIfThere, requireHosts, shareHost, until, withHost } from "./host.ts";

if (process.env.HARNESS_TEST_BOOTS !== undefined) await bootAndWait();
requireHosts(19);

const background = "</dev/null >/dev/null 2>&1 &";

const logins = suite("host.ssh()");
const policies = suite("a host's policy");
const shared = shareHost(policies, { killUserProcesses: true, users: ["dev", "tom", "ann", "eve", "bob"] });

logins("runs a command in a session of its own, with its output, exit code and stdin", async () => {
  const host = await shared();
  const command = "id -un; grep ^0:: /proc/self/cgroup; cat >&2; exit 3";
  const both = await Promise.all([1, 2].map(() => host.ssh("dev", command, { stdin: "words" })));
  for (const { code, stdout, stderr } of both) {
    assert.match(stdout, /^dev\n0::\/user\.slice\/user-\d+\.slice\/session-\w+\.scope\n$/);
    assert.is(stderr, "words");
    assert.is(code, 3);
  }
  assert.is.not(both[0]?.stdout, both[1]?.stdout);
  assert.match((await host.root("id -u; hostname")).stdout, /^0\nhost-\d+\n$/);
  assert.match((await host.ssh("dev", "node --version")).stdout, /^v\d+/);
});

logins("kills the client when its time is up, which ends the session", async () => {
  const host = await shared();
  const { code, signal, timedOut } = await host.ssh("tom", "sleep 1001", { timeoutMs: 1000 });
  assert.equal([code, signal, timedOut], [null, "SIGKILL", true]);
  await host.sleepUntilLoggedOut("tom");
  assert.is(host.processes("sleep 1001").length, 0);
});

logins("counts a daemon once, also while what it has forked is not another program yet", async () => {
  const host = await shared();
  const child = host.spawnSsh("eve", "exec bash -c '(read line); exit 5' bash --launched"); // a subshell has its shell's arguments
  const daemons = () => host.processes("bash --launched");
  const doubles = () => readIfThere(`/proc/${daemons()[0]?.pid}/task/${daemons()[0]?.pid}/children`).trim();
  await until(() => /^\d+$/.test(doubles()), "it has forked");
  assert.equal([daemons().length, readIfThere(`/proc/${doubles()}/cmdline`).endsWith("\0--launched\0")], [1, true]);
  child.stdin.end();
  assert.equal(await once(child, "close"), [5, null]);
});

logins("has a twin, spawnSsh(), with the caller's streams, and copy() brings files", async () => {
  const host = await shared();
  const child = host.spawnSsh("ann", "cat");
  child.stdin.write("ping\n");
  assert.is(String((await once(child.stdout, "data"))[0]), "ping\n");
  assert.is(host.sessions("ann").length, 1);
  child.stdin.end();
  assert.equal(await once(child, "close"), [0, null]);

  await host.copy("ann", "package.json", "copy of it");
  assert.is((await host.ssh("ann", "cat 'copy of it'")).stdout, readFileSync("package.json", "utf8"));
});

policies("kills what a user left behind at logout, even after setsid, with KillUserProcesses=yes", async () => {
  const host = await shared();
  assert.is((await host.ssh("eve", `setsid sleep 1001 ${background}`)).code, 0);
  await host.sleepUntilLoggedOut("eve");
  assert.is(host.processes("sleep 1001").length, 0);
});

policies("lets it live with KillUserProcesses=no", () =>
  withHost({ killUserProcesses: false }, async (host) => {
    assert.is((await host.ssh("dev", `setsid sleep 1001 ${background}`)).code, 0);
    await host.sleepUntilLoggedOut("dev");
    const [found, ...others] = host.processes(/^sleep 1001$/);
    assert.is(others.length, 0);
    assert.is(found?.uid, host.uid("dev"));
    assert.match(found?.cgroup ?? "", /^\/user\.slice\/user-\d+\.slice\/session-\w+\.scope$/);
    assert.ok(host.isAlive(found?.inside as number));
    await host.inside(["kill", String(found?.inside)]);
    await until(() => !host.isAlive(found?.inside as number), "the process to end");
  }),
);

policies("can be changed while it runs", () =>
  withHost({ killUserProcesses: false, users: ["ann", "bob"] }, async (host) => {
    for (const [user, kill] of [
      ["ann", true],
      ["bob", false],
    ] as const) {
      await host.setKillUserProcesses(kill);
      await host.ssh(user, `setsid sleep 1001 ${background}`);
      await host.sleepUntilLoggedOut(user);
      assert.is(host.processes("sleep 1001").length, kill ? 0 : 1);
    }
  }),
);

policies("ends a user's scopes soon after the last logout, but not those of a user who lingers", () =>
  withHost({ logind: ["UserStopDelaySec=1"], killUserProcesses: true, users: ["ann", "bob+linger"] }, async (host) => {
    await host.addUser("eve", { linger: true });
    const scoped = "systemd-run --user --scope --quiet sh -c 'touch up; exec sleep 1001'";
    const start = `setsid ${scoped} ${background} until [ -e up ]; do sleep 0.05; done`;
    for (const user of ["bob", "eve", "ann"]) {
      // ann last: by the time hers ends, theirs would have
      assert.is((await host.ssh(user, start)).code, 0);
      await host.sleepUntilLoggedOut(user);
    }
    await host.sleepUntilUserManagerEnded("ann");
    assert.equal(
      host
        .processes(/^sleep 1001$/)
        .map(({ uid }) => uid)
        .sort(), // they come by pid, and pids begin anew
      [host.uid("bob"), host.uid("eve")].sort(),
    );
    assert.ok(host.hasUserManager("bob"));
  }),
);

policies("allows users to enable linger for themselves when polkit is there", async () => {
  const host = await shared();
  const { code, stderr } = await host.ssh("bob", "loginctl enable-linger bob");
  assert.equal([code, stderr], [0, ""]);
  assert.ok(existsSync(host.file("/var/lib/systemd/linger/bob")));
});

policies("denies it when polkit is not", () =>
  withHost({ polkit: false }, async (host) => {
    const { code, stderr } = await host.ssh("dev", "loginctl enable-linger dev");
    assert.is(code, 1);
    assert.match(stderr, /^(\x1b\[[0-9;]*m)?Could not enable linger: Access denied(\x1b\[0m)?\n$/); // 247 colours it even into a pipe
    assert.is((await host.root("loginctl enable-linger dev")).code, 0);
  }),
);

policies("is sshd's too: without PAM a login has no session", () =>
  withHost({ sshd: ["UsePAM no"] }, async (host) => {
    assert.match((await host.ssh("dev", "grep ^0:: /proc/self/cgroup")).stdout, /^0::\/system\.slice\/ssh\.service\n$/);
    assert.is(host.sessions("dev").length, 0);
  }),
);

const files = suite("a host's files");

files("are its own, as are its processes and network, when two run at once; what is bound is shared", () =>
  withDirectory((directory) =>
    withHost({ binds: { "/home/shared": directory } }, (one) =>
      withHost({ binds: { "/home/shared": directory } }, async (other) => {
        await one.ssh("dev", `echo one >~/name; setsid sleep 1001 ${background}`);
        await one.root("hostname >/home/shared/name");
        assert.is(one.processes("sleep 1001").length, 1);
        assert.is(other.processes("sleep 1001").length, 0);
        assert.not(existsSync(other.file("/home/dev/name")));
        assert.not(existsSync("/home/dev/name"));
        assert.is(
          (await other.ssh("dev", "cat /home/shared/name")).stdout,
          readFileSync(one.file("/etc/hostname"), "utf8"),
        );
        assert.is.not((await other.root("hostname")).stdout, (await one.root("hostname")).stdout);
        assert.is.not(
          (await other.root("readlink /proc/self/ns/net")).stdout,
          (await one.root("readlink /proc/self/ns/net")).stdout,
        );
      }),
    ),
  ),
);

files("can be prepared before the boot, and a disk keeps them for the next one", () =>
  withDirectory(async (directory) => {
    const identity = "cat /etc/machine-id /etc/hostname; cat /proc/sys/kernel/random/boot_id";
    const options = { disk: `${directory}/disk.img`, pre: 'echo prepared >"$root/etc/prepared"' };
    const [first, bootId] = await withHost(options, async (host) => {
      assert.is(readFileSync(host.file("/etc/prepared"), "utf8"), "prepared\n");
      await host.ssh("dev", "echo kept >kept");
      const words = (await host.root(identity)).stdout.trim().split("\n");
      await host.powerOff();
      return [words, words.pop()];
    });
    await withHost(options, async (host) => {
      const words = (await host.root(identity)).stdout.trim().split("\n");
      assert.is.not(words.pop(), bootId);
      assert.equal(words, first);
      assert.is((await host.ssh("dev", "cat kept")).stdout, "kept\n");
    });
  }),
);

const ends = suite("a host's end");

ends("comes with withHost(), also when that throws, and leaves nothing", async () => {
  let remains: () => string[] = () => ["never booted"];
  const thrown = new Error("thrown in a test");
  try {
    await withHost({ polkit: false }, async (host) => {
      remains = lookFor(host);
      assert.ok(remains().length > 3, `seen while it runs: ${remains()}`);
      await host.ssh("dev", `trap '' TERM; setsid sleep 1001 ${background}`);
      host.spawnSsh("dev", "sleep 1001");
      throw thrown;
    });
    assert.unreachable();
  } catch (error) {
    assert.is(error, thrown);
  }
  assert.equal(remains(), []);
});

ends("comes with a poweroff of its own, and leaves nothing", async () => {
  const host = await bootHost({});
  const remains = lookFor(host);
  await host.root("systemctl poweroff");
  await host.ended;
  assert.equal(remains(), []);
});

ends("comes at once, even while it shuts down and a process holds that up, and leaves nothing", async () => {
  const host = await bootHost({});
  const remains = lookFor(host);
  const stubborn = "sh -c 'trap : TERM HUP; touch up; while :; do sleep 1; done'"; // a session's end comes with both signals
  await host.ssh("dev", `setsid ${stubborn} ${background} until [ -e up ]; do sleep 0.05; done`);
  const off = host.powerOff();
  await until(() => host.processes("sshd: ").length === 0, "sshd to be stopped");
  const start = Date.now();
  await host.end();
  assert.ok(Date.now() - start < busyMs(5000), "it waited for the process");
  await off;
  assert.equal(remains(), []);
});

ends("comes with the process that booted it, killed by -9, and leaves nothing", async () => {
  const env = { ...process.env, HARNESS_TEST_BOOTS: "1" };
  const booter = spawn(process.execPath, [process.argv[1] as string], { env, stdio: ["ignore", "pipe", "inherit"] });
  const host = JSON.parse(String((await once(booter.stdout, "data"))[0]));
  const remains = lookFor(host);
  assert.ok(remains().length > 3);
  booter.kill("SIGKILL");
  await until(() => remains().length === 0, `nothing to be left of the host: ${remains()}`);
});

ends("comes with the script that made it, killed by -9, and the next start sweeps", async () => {
  const host = await bootHost({});
  const remains = lookFor(host);
  process.kill(scriptOf(host), "SIGKILL");
  await host.end();
  await until(() => remains().every((trace) => !/^process|^mount/.test(trace)), "its processes to end");
  mkdirSync(host.directory, { recursive: true }); // it is left; but the start of another file's host may have swept it by now
  await withHost({}, async () => assert.equal(remains(), []));
});

ends("comes with its nspawn, killed by -9, and leaves nothing", async () => {
  const host = await bootHost({});
  const remains = lookFor(host);
  process.kill(parentOf(host.init), "SIGKILL");
  await host.end();
  assert.equal(remains(), []);
});

for (const tests of [logins, policies, files, ends]) tests.run();

/** Gives a function that names what there is of a host on this machine: processes, mounts, cgroups, directories. */
function lookFor(host: Pick<Host, "init" | "directory">): () => string[] {
  const name = `holdfast-host-${scriptOf(host)}`;
  const startOf = (pid: number | string): string | undefined => statOf(pid)?.[19]; // a pid may soon be another's
  const pids = [host.init, parentOf(host.init), parentOf(parentOf(host.init)), scriptOf(host)];
  const starts = new Map(pids.map((pid) => [String(pid), startOf(pid)]));
  return () => {
    const running = readdirSync("/proc").filter((pid) => /^\d+$/.test(pid) && isRunning(pid));
    const mounts = readFileSync("/proc/mounts", "utf8").split("\n");
    return [
      ...running
        .filter((pid) => (starts.has(pid) && starts.get(pid) === startOf(pid)) || hasCgroup(pid, name))
        .map((pid) => `process ${pid}`),
      ...mounts.filter((line) => line.includes(host.directory)).map((line) => `mount ${line}`),
      ...["", "/unified", "/systemd"].map((part) => `/sys/fs/cgroup${part}/${name}`).filter(existsSync),
      ...[host.directory, `/run/systemd/nspawn/propagate/${name}`].filter(existsSync),
    ];
  };
}

const scriptOf = (host: Pick<Host, "directory">): number => Number(host.directory.split("/").pop());
const parentOf = (pid: number): number => Number(/^PPid:\s(\d+)/m.exec(readIfThere(`/proc/${pid}/status`))?.[1]);
const hasCgroup = (pid: string, name: string): boolean => readIfThere(`/proc/${pid}/cgroup`).includes(`/${name}/`);
/** Not a zombie: those wait for this machine's init, which may be slow. */
const isRunning = (pid: string): boolean => /^State:\s[^ZX]/m.test(readIfThere(`/proc/${pid}/status`));

async function withDirectory(use: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(`${tmpdir()}/holdfast-`);
  try {
    chmodSync(directory, 0o755); // for the users of the hosts
    await use(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** What this file does when a test of its own starts it, to be killed. */
async function bootAndWait(): Promise<never> {
  const { init, directory } = await bootHost({});
  console.log(JSON.stringify({ init, directory }));
  return new Promise(() => {});
}
