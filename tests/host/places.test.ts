// time limit: 240 s
/**
 * The odd ways in, each on a real host: where does the daemon land, what does --serve say of it, and is it so?
 *
 * UserStopDelaySec=1 stands in for the 10 s of a default host, so that what ends with the user manager has ended after 3.
 */

import { readdirSync, readlinkSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { safely } from "../../failure.ts";
import { builtFile, frameOf, messagesIn, outcomeOf, request, rounds, sideBySide } from "../daemon.ts";
import type { Host } from "./host.ts";
import { maskedManager, requireHosts, shareHost, until, withHost } from "./host.ts";
import { checkWay, quick } from "./ways.ts";

requireHosts(17);

const serve = suite("--serve");
const places = sideBySide(serve, 4);

/** For those of them that need nothing of a host but users of their own. */
const lingeringUsers = ["sub", "var", "xdg", "odd", "hang", "sue", "liv", "eve"];
const shared = shareHost(
  serve,
  quick({
    users: [...lingeringUsers.map((name) => `${name}+linger`), "sam", "die", "req", "dan", "ann"],
    pre: "echo 'dan ALL=(ALL) NOPASSWD: ALL' >$root/etc/sudoers.d/test",
  }),
);

places(
  "takes its token from a process substitution, returns at once, holds nothing of its caller's, and is there for the next session",
  async () => {
    const host = await shared();
    await host.copy("sub", builtFile, "server");
    const started = await host.ssh(
      "sub",
      `exec 9>held; readlink /proc/$$/fd/*; ./server --serve --socket /tmp/v.sock --token-file <(echo t)`,
    );
    assert.is(started.code, 0, started.stderr);
    assert.match(started.stdout, /Remote server listening on \/tmp\/v\.sock .*survives logout: yes/);
    const [daemon] = host.processes("--launched --socket /tmp/v.sock");
    const callers = started.stdout.split("\n").filter((line) => /^(pipe|socket):|\/held$/.test(line));
    assert.ok(callers.length >= 4, `its caller has ${callers}`);
    const held = readdirSync(`/proc/${daemon!.pid}/fd`)
      .sort((a, b) => Number(a) - Number(b))
      .map((fd) => safely(() => readlinkSync(`/proc/${daemon!.pid}/fd/${fd}`)) ?? ""); // one that is just being closed
    assert.equal(
      held.filter((target) => callers.includes(target)),
      [],
    );
    assert.equal(
      held.slice(0, 3).map((target) => target.replace(/.*\//, "")),
      ["null", held[1]!.replace(/.*\//, ""), held[1]!.replace(/.*\//, "")],
    );
    assert.match(held[1]!, /\/\.local\/state\/holdfast\/host-\d+\/v\.sock-[0-9a-f]{12}\.log$/);

    await host.sleepUntilLoggedOut("sub");
    const bridged = await host.ssh("sub", "./server --bridge --socket /tmp/v.sock < /dev/null");
    assert.equal([bridged.code, bridged.stdout, bridged.stderr], [0, "", ""]);
    const asked = await outcomeOf(
      host.spawnSsh("sub", "./server --bridge --socket /tmp/v.sock"),
      frameOf(request("server.ping", {}, "t")),
    );
    assert.equal(messagesIn(asked.stdout), [{ jsonrpc: "2.0", id: 1, result: { pong: true } }]);
    assert.is(host.processes("--bridge").length, 0);
  },
);

places("from sshd without PAM lives in its service, and survives logout", () =>
  withHost(quick({ sshd: ["UsePAM no"] }), (host) =>
    checkWay(host, {
      says: /detached; survives logout: yes\)|detached in ssh\.service.*survives logout: yes\)/,
      warns: /^holdfast: warning: .*RemoveIPC=yes.*ipc-removed\]\nholdfast: hint: loginctl enable-linger dev\n$/,
      lives: true,
    }),
  ),
);

const perConnection = `
printf '[Unit]\\nDescription=one sshd per connection\\n[Socket]\\nListenStream=2222\\nAccept=yes\\n' >$root/etc/systemd/system/sshd-each.socket
printf '[Unit]\\nDescription=an ssh connection\\n[Service]\\nExecStart=-/usr/sbin/sshd -i -o UsePAM=no\\nStandardInput=socket\\n' >$root/etc/systemd/system/sshd-each@.service
mkdir -p $root/etc/systemd/system/sockets.target.wants; ln -s ../sshd-each.socket $root/etc/systemd/system/sockets.target.wants/
`;
places(
  "from a service per connection, as dropbear and sshd@ are, ends with it, says so; and leaves it for a scope when lingering",
  () =>
    withHost(quick({ users: ["dev", "ann+linger", "eve"], pre: perConnection }), async (host) => {
      const by = (user: string) => (_host: Host, command: string) =>
        host.ssh(user, command, { sshArgs: ["-p", "2222"] });
      await checkWay(host, {
        run: by("dev"),
        says: /in sshd-each@.*survives logout: no\)/,
        warns: /KillMode=control-group.*\n.*enable-linger dev/,
        lives: false,
      });
      await checkWay(host, {
        user: "ann",
        run: by("ann"),
        says: /under your user manager; survives logout: yes\)/,
        lives: true,
      });
      await checkWay(host, {
        user: "eve",
        run: by("eve"),
        args: "--enable-linger",
        says: /under your user manager; survives logout: yes\)/,
        warns: /disable-linger eve/,
        lives: true,
      });
    }),
);

places("needs no bus of the user's (dbus-user-session): the user manager has a socket of its own", () =>
  withHost(quick({ users: ["dev+linger", "ann"], pre: "rm $root/usr/lib/systemd/user/dbus.socket" }), async (host) => {
    await checkWay(host, { says: /under your user manager; survives logout: yes\)/, lives: true });
    await checkWay(host, {
      user: "ann",
      args: "--enable-linger",
      says: /under your user manager; survives logout: yes\)/,
      warns: /disable-linger ann/,
      lives: true,
    });
  }),
);

places("without systemd-run has no scope: it ends with its session, and says so", () =>
  withHost(quick({ users: ["dev+linger"], pre: "rm $root/usr/bin/systemd-run" }), (host) =>
    checkWay(host, {
      says: /detached in the session; survives logout: no\)/,
      warns: /no scope could be made to leave it: systemd-run is not installed/,
      lives: false,
    }),
  ),
);

places("without loginctl does not know, and stays where it survives a default host; lingering, it takes a scope", () =>
  withHost(
    quick({ killUserProcesses: false, users: ["dev", "ann+linger", "eve"], pre: "rm $root/usr/bin/loginctl" }),
    async (host) => {
      const unknown = /settings cannot be read: loginctl is not installed/;
      await checkWay(host, {
        says: /detached in the session; survives logout: unknown\)/,
        warns: unknown,
        lives: true,
      });
      await checkWay(host, { user: "ann", says: /under your user manager; survives logout: yes\)/, lives: true });
      await checkWay(host, {
        user: "eve",
        args: "--enable-linger",
        says: /survives logout: unknown\)/,
        warns: unknown,
        lives: true,
      });
    },
  ),
);

places("without a user manager ends with its session, and says so", () =>
  withHost(quick({ users: ["dev+linger"], pre: maskedManager }), (host) =>
    checkWay(host, {
      says: /detached in the session; survives logout: no\)/,
      warns: /no scope could be made to leave it: Failed to connect to .*bus.*: No such file or directory/,
      lives: false,
    }),
  ),
);

places(
  "with a logind that does not answer does not know, says so, and stays where it survives a default host; lingering, it takes a scope",
  async () => {
    const pre = "printf '%s ALL=(ALL) NOPASSWD: ALL\\n' dev ann >$root/etc/sudoers.d/test";
    const signal = (name: string): string => `sudo systemctl kill -s ${name} systemd-logind`;
    const by = (user: string) => (host: Host, command: string) =>
      host.ssh(user, `${signal("STOP")}; ${command}; code=$?; ${signal("CONT")}; exit $code`);
    await withHost(quick({ killUserProcesses: false, users: ["dev", "ann+linger"], pre }), async (host) => {
      await checkWay(host, {
        run: by("dev"),
        says: /detached in the session; survives logout: unknown\)/,
        warns: /settings cannot be read: .* did not answer within 2000 ms/,
        lives: true,
      });
      await checkWay(host, {
        user: "ann",
        run: by("ann"),
        says: /under your user manager; survives logout: yes\)/,
        lives: true,
      });
    });
    await withHost(quick({ pre }), (host) =>
      checkWay(host, {
        run: by("dev"),
        says: /survives logout: unknown\)/,
        warns: /may end with this session/,
        lives: false,
      }),
    );
  },
);

places("knows KillExcludeUsers= and KillOnlyUsers=", async () => {
  await withHost(quick({ users: ["dev", "ann"], logind: ["KillExcludeUsers=dev"] }), async (host) => {
    await checkWay(host, { says: /detached in the session; survives logout: yes\)/, lives: true });
    await checkWay(host, { user: "ann", says: /until about 1 s after/, warns: /KillUserProcesses=yes/, lives: false });
  });
  await withHost(
    quick({ killUserProcesses: false, users: ["dev", "ann"], logind: ["KillOnlyUsers=dev"] }),
    async (host) => {
      await checkWay(host, { says: /until about 1 s after/, warns: /KillOnlyUsers= has dev/, lives: false });
      await checkWay(host, { user: "ann", says: /detached in the session; survives logout: yes\)/, lives: true });
    },
  );
});

places("counts a stop delay of infinity as lingering", () =>
  withHost({ killUserProcesses: true, logind: ["UserStopDelaySec=infinity"] }, (host) =>
    checkWay(host, { says: /under your user manager; survives logout: yes\)/, lives: true }),
  ),
);

places("keeps a $ in its arguments, which systemd would expand from 258 on", async () => {
  const host = await shared();
  await host.copy("var", builtFile, "server");
  const path = `/home/var/.run$HOME/$$/a$${"{USER}"}b.sock`;
  const started = await host.ssh("var", `./server --serve --socket '${path}'`);
  assert.match(started.stdout, /under your user manager; survives logout: yes\)/, started.stderr);
  assert.is(host.processes(`--launched --socket ${path}`).length, 1);
  assert.is((await host.ssh("var", `./server --stop --socket '${path}'`)).stdout, "stopped 0\n");
});

places("finds its user manager without XDG_RUNTIME_DIR, and with another's", async () => {
  const host = await shared();
  const by = (user: string, env: string) => (_host: Host, command: string) => host.ssh(user, `env ${env} ${command}`);
  await checkWay(host, {
    user: "xdg",
    run: by("xdg", "-u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS"),
    says: /survives logout: yes\)/,
    lives: true,
  });
  await checkWay(host, {
    user: "odd",
    run: by("odd", "XDG_RUNTIME_DIR=/run/user/$(id -u xdg)"),
    says: /survives logout: yes\)/,
    lives: true,
  });
});

places(
  "with a user manager that does not answer (SIGSTOP) is not held up: it ends with its session, and says so",
  async () => {
    const host = await shared();
    let manager = 0;
    await checkWay(host, {
      user: "hang",
      says: /detached in the session; survives logout: no\)/,
      warns: /no scope could be made to leave it: systemd-run did not answer within 5 s/,
      lives: false,
      before: async () => {
        await host.ssh("hang", "true"); // which waits until it has started
        manager = host.processes("systemd --user").find(({ uid }) => uid === host.uid("hang"))!.pid;
        process.kill(manager, "SIGSTOP");
      },
      after: async () => void process.kill(manager, "SIGCONT"),
    });
  },
);

places(
  "in a login made by a system service (su - user, as Tailscale SSH does) is in a session like any other",
  async () => {
    const host = await shared();
    const by = (user: string) => (_host: Host, command: string) =>
      host.root(`systemd-run --quiet --wait --pipe su - ${user} -c '${command}'`);
    await checkWay(host, {
      user: "sue",
      run: by("sue"),
      says: /under your user manager; survives logout: yes\)/,
      lives: true,
    });
    await checkWay(host, {
      user: "sam",
      run: by("sam"),
      says: /until about 1 s after/,
      warns: /enable-linger sam/,
      lives: false,
    });
  },
);

places("by sudo in another user's session shares that session's fate, and names both", async () => {
  const host = await shared();
  const by = (user: string) => async (_host: Host, command: string) => {
    const result = await host.ssh("dan", `sudo -u ${user} "$(command -v node)" ${command}`);
    await host.sleepUntilLoggedOut("dan");
    return result;
  };
  await checkWay(host, {
    user: "ann",
    run: by("ann"),
    says: /in a session of dan; survives logout: no\)/,
    warns: /session of dan .*\n.*enable-linger ann/,
    lives: false,
  });
  await checkWay(host, {
    user: "eve",
    run: by("eve"),
    says: /under your user manager; survives logout: yes\)/,
    lives: true,
  });
});

places("obeys --lifetime and --require-survival, and says what it means", async () => {
  const host = await shared();
  await checkWay(host, {
    user: "liv",
    args: "--lifetime detach",
    says: /detached in the session; survives logout: no\)/,
    warns: /the launch was not to use one/,
    lives: false,
  });
  await checkWay(host, {
    user: "die",
    args: "--lifetime scope || [ $? = 1 ]",
    says: /until about 1 s/,
    warns: /enable-linger die/,
    lives: false,
  });
  await checkWay(host, {
    user: "req",
    args: "--require-survival || [ $? = 78 ] && echo was 78",
    says: /was 78/,
    warns: /not sure to survive logout/,
    lives: false,
  });
});

const bridges = suite("--bridge");
const clientRounds = rounds(20, 1); // of ten

bridges(
  `ends with its channel: ${clientRounds * 10} ssh clients killed with -9 leave no process, and the daemon's descriptors as before`,
  () =>
    withHost(quick({ killUserProcesses: false }), async (host) => {
      await host.copy("dev", builtFile, "server");
      assert.is((await host.ssh("dev", "./server --serve --token-file <(echo t)")).code, 0);
      await new Promise((done) => setTimeout(done, 500)); // the launcher's own connection is closed
      const [daemon] = host.processes("--launched --socket");
      const descriptors = () => readdirSync(`/proc/${daemon!.pid}/fd`).length;
      const before = descriptors();
      for (let round = 0; round < clientRounds; round++) {
        const clients = Array.from({ length: 10 }, () => host.spawnSsh("dev", "./server --bridge"));
        await Promise.all(
          clients.map(
            (client) =>
              new Promise((done) => {
                client.stdout.once("data", done);
                client.stdin.write(frameOf(request("server.ping", {}, "t")));
              }),
          ),
        );
        for (const client of clients) client.kill("SIGKILL");
      }
      await until(
        () => host.processes("--bridge").length === 0 && descriptors() <= before, // fewer, where the connection of --serve was closed late
        `no bridge and ${before} descriptors`,
        30_000,
      ).catch((error) => {
        throw new Error(`${error.message}: ${host.processes("--bridge").length} bridges, ${descriptors()} descriptors`);
      });
    }),
);

serve.run();
bridges.run();
