// time limit: 240 s
/**
 * What ends a daemon beside a logout, each on a real host: idle sessions, user records, units that end, chroots. What does --serve say, and is it so?
 *
 * UserStopDelaySec=1 stands in for the 10 s of a default host, and StopIdleSessionSec=10 for the 10 minutes of a company's.
 */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, sideBySide } from "../daemon.ts";
import type { Host, Result } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";
import { checkWay, quick } from "./ways.ts";

requireHosts(10);

const serve = suite("--serve");
const verdicts = sideBySide(serve, 4);

const idleS = 10;
const idle = { killUserProcesses: false, logind: [`StopIdleSessionSec=${idleS}`] };

/** Whether this host's logind ends sessions that are idle, and knows the terminal of one over ssh: from 252 on, and where there is utmp. */
async function endsIdleSessions(host: Host): Promise<boolean> {
  const show = "loginctl show-user | grep StopIdleSessionUSec; loginctl show-session $XDG_SESSION_ID -p TTY";
  const { stdout } = await host.ssh("ann", `TERM= ${show}`, { sshArgs: ["-tt"] });
  return /^StopIdleSessionUSec=\d+s/m.test(stdout) && /^TTY=pts/m.test(stdout);
}

/** Starts a daemon in a session with a terminal, which is then left alone, and open: says what it said, and whether it lives after that. */
async function idleAway(
  host: Host,
  user: string,
  isToLive: boolean,
  args = "",
): Promise<{ said: string; lives: boolean }> {
  await host.copy(user, builtFile, "server");
  const socket = `/home/${user}/idle.sock`;
  const session = host.spawnSsh(user, `./server --serve --socket ${socket} ${args}; sleep 200`, ["-tt"]);
  let said = "";
  for (const stream of [session.stdout, session.stderr])
    stream.on("data", (chunk) => {
      said += chunk;
    });
  await until(() => /survives logout: [^\n]*\n/.test(said), "the word of --serve", 30_000).catch((error: Error) => {
    throw new Error(`${error.message}: ${said}`);
  });
  const isThere = (): boolean => host.processes(`--launched --socket ${socket}`).length > 0;
  if (isToLive)
    await new Promise((done) => setTimeout(done, (2 * idleS + 5) * 1000)); // logind looks when the time is over, and again
  else await until(() => !isThere(), "its end, as it is idle", 90_000);
  const lives = isThere();
  session.kill("SIGKILL");
  return { said, lives };
}

verdicts(
  "in a session with a terminal that is ended when it is idle, says so; lingering, it takes a scope and lives",
  () =>
    withHost(quick({ ...idle, users: ["dev", "eve", "ann+linger"] }), async (host) => {
      const applies = await endsIdleSessions(host);
      const [dev, eve, ann] = await Promise.all([
        idleAway(host, "dev", !applies),
        idleAway(host, "eve", true, "--enable-linger"),
        idleAway(host, "ann", true),
      ]);
      if (applies) {
        assert.match(dev.said, /detached in the session; survives logout: until this session has been idle for 10 s\)/);
        assert.match(dev.said, /\(StopIdleSessionSec=\).*ends-when-idle\]/);
        assert.match(dev.said, /: loginctl enable-linger dev\r\n/);
        for (const { said } of [eve, ann]) assert.match(said, /under your user manager; survives logout: yes\)/);
      } else {
        assert.match(dev.said, /detached in the session; survives logout: yes\)/);
      }
      assert.equal([dev.lives, eve.lives, ann.lives], [!applies, true, true], dev.said);
    }),
);

verdicts("in a session without a terminal is not idle, and survives", () =>
  withHost(quick({ ...idle }), (host) =>
    checkWay(host, {
      says: /detached in the session; survives logout: yes\)/,
      lives: true,
      after: () => new Promise((done) => setTimeout(done, idleS * 1000)),
    }),
  ),
);

/** Makes records of the user database for users, before the host boots. */
const recordsOf = (members: Record<string, string>): string =>
  Object.entries(members)
    .map(
      ([user, text]) => `
uid=$(grep '^${user}:' $root/etc/passwd | cut -d: -f3); mkdir -p $root/etc/userdb
printf '{"userName":"${user}","uid":%s,"gid":%s,"homeDirectory":"/home/${user}","shell":"/bin/bash",${text}}\\n' $uid $uid >$root/etc/userdb/${user}.user
ln -s ${user}.user $root/etc/userdb/$uid.user`,
    )
    .join("\n");

/** Only from 249 on does systemd look for records in files. */
async function readsRecords(host: Host): Promise<boolean> {
  const { stdout } = await host.root("systemd-run --version");
  return Number(/^systemd (\d+)/.exec(stdout)![1]) >= 249;
}

verdicts("takes the word of a user's record, where logind would leave a session alone", () =>
  withHost(
    quick({
      killUserProcesses: false,
      users: ["dev", "ann+linger", "eve", "bob+linger"],
      pre: recordsOf({
        dev: '"killProcesses":true',
        ann: '"killProcesses":true',
        eve: '"stopDelayUSec":2000000',
        bob: '"killProcesses":true',
      }),
    }),
    async (host) => {
      const reads = await readsRecords(host);
      await checkWay(host, {
        says: reads
          ? /under your user manager; survives logout: until about 1 s after your last session ends\)/
          : /detached in the session; survives logout: yes\)/,
        warns: reads ? /killProcesses=true in .*\n.*enable-linger dev/ : /^$/,
        lives: !reads,
      });
      await checkWay(host, { user: "ann", says: /survives logout: yes\)/, lives: true });
      await checkWay(host, { user: "eve", says: /detached in the session; survives logout: yes\)/, lives: true });
      await checkWay(host, {
        user: "bob",
        args: "--lifetime detach",
        says: reads ? /survives logout: no\)/ : /survives logout: yes\)/,
        warns: reads ? /killProcesses=true in .*the launch was not to use one/ : /^$/,
        lives: !reads,
      });
    },
  ),
);

verdicts("and where logind would kill: then staying is better than a scope", () =>
  withHost(quick({ users: ["dev", "ann"], pre: recordsOf({ dev: '"killProcesses":false' }) }), async (host) => {
    const reads = await readsRecords(host);
    await checkWay(host, {
      says: reads ? /detached in the session; survives logout: yes\)/ : /until about 1 s after/,
      warns: reads ? /^$/ : /enable-linger dev/,
      lives: reads,
    });
    await checkWay(host, { user: "ann", says: /until about 1 s after/, warns: /enable-linger ann/, lives: false });
  }),
);

/** In a service of the system that has ended when this returns. */
const inService =
  (user: string, properties = "") =>
  (host: Host, command: string): Promise<Result> =>
    host.root(
      `systemd-run --quiet --wait --pipe -p Type=oneshot -p User=${user} ${properties} /bin/sh -c '${command}'`,
    );

verdicts("in a service of the system ends with it, and says so; lingering, it takes a scope and lives", () =>
  withHost(quick({ users: ["dev", "ann+linger", "eve", "bob"] }), async (host) => {
    await checkWay(host, {
      run: inService("dev"),
      says: /in run-.*\.service; survives logout: until run-.*\.service ends\)/,
      warns:
        /KillMode=control-group\), and user dev is not lingering.*ends-with-unit\]\n.*enable-linger dev; or KillMode=process/,
      lives: false,
    });
    await checkWay(host, {
      user: "ann",
      run: inService("ann"),
      says: /under your user manager; survives logout: yes\)/,
      lives: true,
    });
    await checkWay(host, {
      user: "eve",
      run: inService("eve"),
      args: "--enable-linger",
      says: /under your user manager; survives logout: yes\)/,
      warns: /lingering was switched on for eve/,
      lives: true,
    });
    await checkWay(host, {
      user: "bob",
      run: inService("bob"),
      args: "--require-survival || [ $? = 78 ] && echo was 78",
      says: /was 78/,
      warns: /not sure to survive logout/,
      lives: false,
    });
  }),
);

verdicts("in a service with KillMode=process outlives it; but logind removes shared memory, and it says so", () =>
  withHost(quick({ users: ["dev", "ann+linger"] }), async (host) => {
    const share = "echo 1 >/dev/shm/$USER";
    for (const user of ["dev", "ann"]) await host.root(`su ${user} -c "${share.replace("$USER", user)}"`);
    await host.sleepUntilUserManagerEnded("dev"); // that of su
    await checkWay(host, {
      run: inService("dev", "-p KillMode=process"),
      says: /detached; survives logout: yes\)/,
      warns: /^holdfast: warning: .*RemoveIPC=yes.*ipc-removed\]\nholdfast: hint: loginctl enable-linger dev\n$/,
      lives: true,
    });
    await checkWay(host, {
      user: "ann",
      run: inService("ann", "-p KillMode=process"),
      says: /detached; survives logout: yes\)/,
      lives: true,
    });
    for (const user of ["dev", "ann"]) await host.ssh(user, "true");
    await host.sleepUntilUserManagerEnded("dev");
    await until(
      async () => (await host.inside(["ls", "/dev/shm"])).stdout === "ann\n",
      "what logind removes to be gone",
    );
  }),
);

verdicts("in a service of the user manager ends with it, and says so; lingering, it takes a scope and lives", () =>
  withHost(quick({ users: ["dev", "ann+linger"] }), async (host) => {
    const by = (user: string) => (_host: Host, command: string) =>
      host.ssh(user, `systemd-run --user --quiet --wait --pipe /bin/sh -c '${command}'`);
    await checkWay(host, {
      run: by("dev"),
      says: /in run-.*\.service under your user manager; survives logout: until run-.*\.service ends\)/,
      warns: /ends-with-unit\]\n/,
      lives: false,
    });
    await checkWay(host, {
      user: "ann",
      run: by("ann"),
      says: /in run-.*\.scope under your user manager; survives logout: yes\)/,
      lives: true,
    });
  }),
);

verdicts(
  "in a scope that is given a time ends with it, and says so; lingering, it takes one of its own and lives",
  () =>
    withHost(quick({ users: ["dev+linger", "ann+linger"] }), async (host) => {
      const by = (user: string) => (_host: Host, command: string) =>
        host.ssh(user, `systemd-run --user --scope --quiet -p RuntimeMaxSec=12 /bin/sh -c '${command}'`);
      const after = () => new Promise<void>((done) => setTimeout(done, 12_000));
      await checkWay(host, {
        run: by("dev"),
        after,
        says: /under your user manager; survives logout: yes\)/,
        lives: true,
      });
      await checkWay(host, {
        user: "ann",
        run: by("ann"),
        after,
        args: "--lifetime detach",
        says: /survives logout: until run-.*\.scope is 12 s old\)/,
        warns: /RuntimeMaxSec= is 12 s\).*ends-with-unit\]\n.*start it outside of run-.*\.scope/,
        lives: false,
      });
    }),
);

verdicts("in a mount namespace of a session, where systemd cannot be reached, does not know, and says so", async () => {
  const hide = "mount -t tmpfs none /run && exec setpriv --reuid dev --regid dev --clear-groups";
  const pre = "printf 'dev ALL=(ALL) NOPASSWD: ALL\\n' >$root/etc/sudoers.d/test";
  const run = (host: Host, command: string): Promise<Result> =>
    host.ssh("dev", `node=$(command -v node); sudo unshare -m sh -c "${hide} env HOME=/home/dev $node ${command}"`);
  for (const killUserProcesses of [true, false]) {
    await withHost(quick({ killUserProcesses, pre }), (host) =>
      checkWay(host, {
        run,
        says: /detached in the session; survives logout: unknown\)/,
        warns:
          /systemd cannot be reached from here.*may-end-with-session\]\n.*start it outside of this chroot or container/,
        lives: !killUserProcesses,
      }),
    );
  }
});

verdicts("says in --doctor what it would do, on one screen, and why", () =>
  withHost(quick({ ...idle, users: ["dev"], pre: recordsOf({ dev: '"killProcesses":true' }) }), async (host) => {
    await host.copy("dev", builtFile, "server");
    const { stdout } = await host.ssh("dev", "./server --doctor");
    const policy = (await readsRecords(host))
      ? /^ok +policy +killProcesses=true in .*: logind kills what stays in a session/m
      : /^ok +policy +KillUserProcesses=no .*: logind leaves what stays in a session alone/m;
    assert.match(stdout, policy, stdout);
    assert.ok(stdout.split("\n").length <= 24, stdout);
    const unit = await inService("dev")(host, "/home/dev/server --doctor");
    assert.match(unit.stdout, /^ok +where +in the system unit run-.*\.service$/m, unit.stdout + unit.stderr);
    assert.match(unit.stdout, /^warning +plan .*survives logout: until run-.*\.service ends: /m, unit.stdout);
    assert.ok(unit.stdout.split("\n").length <= 24, unit.stdout);
  }),
);

serve.run();
