// time limit: 180 s
/** --doctor on six kinds of host: what it prints, and that each remedy, run as it is printed, mends what it is printed for. */

import { spawn } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile, outcomeOf, sideBySide } from "../daemon.ts";
import type { Host, HostOptions, Result } from "./host.ts";
import { maskedManager, requireHosts, withHost } from "./host.ts";

requireHosts(6);

interface Finding {
  state: string;
  name: string;
  evidence: string;
  remedy?: string;
  administrator?: boolean;
}

interface Evidence {
  command: string;
  code: number | null;
  stdout: string;
  stderr: string;
}

const quick = (options: HostOptions): HostOptions => ({
  killUserProcesses: true,
  ...options,
  logind: ["UserStopDelaySec=1", ...(options.logind ?? [])],
});

/** What changes from host to host is replaced; each line begins with its state. */
const words = (stdout: string): string[] =>
  stdout
    .trimEnd()
    .split("\n")
    .map((line) =>
      line
        .replace(/session-\w+\.scope/, "session-N.scope")
        .replace(/Node [\d.]+.*/, "Node V")
        .replace(/version \d+$/, "version V")
        .replace(/\d+ [kMG]?B free/, "N free")
        .replace(/ +/g, " "),
    );

/** The doctor's screen and its findings, each in a session of its own. */
async function examine(
  host: Host,
  user = "dev",
  args = "",
): Promise<{ screen: Result; findings: Record<string, Finding>; evidence: Evidence[] }> {
  const screen = await host.ssh(user, `./server --doctor ${args}`);
  assert.ok(screen.stdout.split("\n").length <= 24, "it fits a screen");
  assert.not.match(screen.stdout, "\x1b");
  const json = JSON.parse((await host.ssh(user, `./server --doctor --json ${args}`)).stdout.replace(/^[^{]*/, ""));
  const findings = Object.fromEntries(json.findings.map((finding: Finding) => [finding.name, finding]));
  return { screen, findings, evidence: json.evidence };
}

/** Runs the remedy as printed: by the user, or by root where it says so. */
async function mend(host: Host, screen: Result): Promise<void> {
  const [, administrator, command] = /^ +mend(, as an administrator)?: (.*)$/m.exec(screen.stdout) ?? [];
  assert.ok(command, screen.stdout);
  const mended = await (administrator === undefined ? host.ssh("dev", command!) : host.root(command!));
  assert.is(mended.code, 0, `${command}: ${mended.stderr}`);
}

const doctor = suite("--doctor");
const hosts = sideBySide(doctor, 3);

hosts("finds nothing wrong with a healthy host", () =>
  withHost(quick({ users: ["dev+linger"] }), async (host) => {
    await host.copy("dev", builtFile, "server");
    const { screen } = await examine(host);
    assert.is(screen.code, 0);
    assert.is(screen.stderr, "");
    const directory = `/home/dev/.local/state/holdfast/${(await host.ssh("dev", "hostname")).stdout.trim()}`;
    const lines = words(screen.stdout);
    assert.equal(
      lines.filter((line) => !/^(ok (limits|policy)|\w+ terminals) /.test(line)),
      [
        "ok runtime Node V",
        "ok systemd version V",
        "ok where in a session of dev (session-N.scope)",
        "ok linger on for dev",
        "ok manager the user manager makes scopes",
        "ok plan --serve would detach into a scope of its own; survives logout: yes",
        `ok directory ${directory}: to be made in "/home/dev", local file system, N free`,
        `ok socket ${directory}/rpc.sock: ${directory.length + 9} of at most 107 bytes`,
        "ok daemon none has been started yet",
        "ok processes outlive the daemon: the next one takes them up",
        "ok shell /bin/bash says nothing of its own before a command",
      ],
    );
    assert.match(
      lines.find((line) => line.startsWith("ok policy"))!,
      /^ok policy KillUserProcesses=yes \(set in .*\/etc\/systemd\/logind\.conf\.d\/.*\): logind kills what stays in a session$/,
    );
    // script of Debian 11 stops when what is typed is not read
    const engine = process.env.HOLDFAST_TEST_SUITE === "bullseye" ? "python3" : "script";
    assert.is(
      lines.find((line) => /^\w+ terminals/.test(line)),
      `ok terminals are made by /usr/bin/${engine}`,
    );
    assert.match(
      lines.find((line) => line.startsWith("ok limits"))!,
      /^ok limits \d+ open files, .* processes, \d+ inotify watches, \d+ instances$/,
    );

    assert.is((await host.ssh("dev", "./server --serve")).code, 0);
    const { findings, evidence } = await examine(host);
    assert.match(
      findings.daemon!.evidence,
      /^pid \d+, version .*, up \d+ s, in run-.*\.scope under your user manager; survives logout: yes$/,
    );
    assert.match(findings.directory!.evidence, /: user \d+, mode 700, local file system/);

    // what was run can be run again, and says the same
    const policy = evidence.find(({ command }) => command.startsWith("loginctl"))!;
    const again = await host.ssh("dev", `LC_ALL=C ${policy.command}`);
    const settings = (stdout: string): string[] =>
      stdout.split("\n").filter((line) => /^(Kill|User|Remove)/.test(line));
    assert.is(again.code, policy.code);
    assert.equal(settings(again.stdout), settings(policy.stdout));
    assert.ok(settings(policy.stdout).includes("KillUserProcesses=yes"));
    assert.ok(evidence.some(({ command }) => command === "systemd-run --user --scope --quiet --collect -- true"));
  }),
);

hosts("names the command for a host that kills, and a user who does not linger", () =>
  withHost(quick({ users: ["dev", "ann"] }), async (host) => {
    await host.copy("dev", builtFile, "server");
    const { screen, findings } = await examine(host);
    assert.is(screen.code, 0);
    assert.match(findings.linger!.evidence, "off for dev, who may switch it on");
    const hanging = "mkdir ~/bin && printf '#!/bin/sh\\nexec sleep 100\\n' >~/bin/pkcheck && chmod +x ~/bin/pkcheck";
    const unsure = await host.ssh("dev", `${hanging} && PATH=~/bin:$PATH ./server --doctor`);
    assert.match(unsure.stdout, /linger +off for dev, who may or may not switch it on/);
    assert.equal(
      [findings.plan!.state, findings.plan!.remedy, findings.plan!.administrator],
      ["warning", "loginctl enable-linger dev", undefined],
    );
    assert.match(
      findings.plan!.evidence,
      /survives logout: until about 1 s after your last session ends: logind kills what stays in your sessions/,
    );
    await mend(host, screen);
    assert.match((await examine(host)).findings.plan!.evidence, /survives logout: yes$/);
  }),
);

hosts("sends to an administrator where polkit does not let the user, or the user manager is masked", async () => {
  await withHost(quick({ polkit: false }), async (host) => {
    await host.copy("dev", builtFile, "server");
    const { screen, findings } = await examine(host);
    assert.equal([findings.plan!.remedy, findings.plan!.administrator], ["loginctl enable-linger dev", true]);
    await mend(host, screen);
    assert.match((await examine(host)).findings.plan!.evidence, /survives logout: yes$/);
  });
  await withHost(quick({ pre: maskedManager }), async (host) => {
    await host.copy("dev", builtFile, "server");
    const { screen, findings } = await examine(host);
    assert.is(screen.code, 1, "its daemon would end with the session");
    assert.match(findings.manager!.evidence, /\(user@\d+\.service is masked\)$/);
    assert.equal([findings.plan!.state, findings.plan!.administrator], ["failure", true]);
    await mend(host, screen);
    const mended = await examine(host);
    assert.match(mended.findings.policy!.evidence, /^KillExcludeUsers= has dev/);
    assert.match(
      mended.findings.plan!.evidence,
      /survives logout: yes(; a restart of systemd-logind after it would end it, unless dev lingers)?$/,
    );
  });
});

hosts("is content where there is no systemd", async () => {
  const container = 'mount -t tmpfs none /run && exec "$0" "$@"';
  const { code, stdout } = await outcomeOf(
    spawn("unshare", [
      "--mount",
      "--cgroup",
      "--pid",
      "--fork",
      "--mount-proc",
      "sh",
      "-c",
      container,
      process.execPath,
      builtFile,
      "--doctor",
    ]),
  );
  assert.is(code, 0);
  const lines = words(String(stdout));
  assert.equal(lines.slice(1, 4), [
    "ok systemd this host was not booted with systemd: nothing ends a daemon at logout",
    "ok where in no unit of systemd",
    "ok plan --serve would detach, and stay where it is; survives logout: yes",
  ]);
});

hosts("shows the words of a noisy .bashrc, and which file they are from", () =>
  withHost(quick({ users: ["dev+linger"] }), async (host) => {
    await host.copy("dev", builtFile, "server");
    await host.ssh("dev", `sed -i '1i echo Welcome, "$USER"!' .bashrc`);
    const { screen, findings } = await examine(host);
    assert.is(findings.directory!.state, "ok");
    assert.is(screen.code, 1);
    assert.match(
      findings.shell!.evidence,
      String.raw`says 14 bytes before a command, which corrupt a stream: "Welcome, dev!\n", from /home/dev/.bashrc`,
    );
    await mend(host, screen);
    const mended = await examine(host);
    assert.is(mended.findings.shell!.state, "ok");
    assert.is(mended.screen.code, 0);
    // what quota(1) says of a user over a limit
    await host.root(
      `printf '#!/bin/sh\n[ "$1" = -q ] && echo "In block grace period on /dev/sda1"' >/usr/local/bin/quota; chmod 755 /usr/local/bin/quota`,
    );
    // it is given 2 s, which may be too little on a busy machine
    let evidence = "";
    for (let i = 0; i < 5 && !evidence.includes("quota"); i++)
      ({ evidence } = (await examine(host)).findings.directory!);
    assert.match(evidence, /free, but over quota: In block grace period on \/dev\/sda1$/);
  }),
);

hosts("finds another place for a read-only home", () =>
  withHost(quick({ users: ["dev+linger"] }), async (host) => {
    await host.copy("dev", builtFile, "server");
    assert.is((await host.root("mount --bind /home/dev /home/dev && mount -o remount,bind,ro /home/dev")).code, 0);
    const { screen, findings } = await examine(host);
    assert.is(screen.code, 1);
    assert.match(findings.directory!.evidence, /cannot write in "\/home\/dev": read-only file system \(EROFS\)/);
    await mend(host, screen);
    const { findings: mended } = await examine(host, "dev", `--socket /tmp/holdfast-${host.uid("dev")}/rpc.sock`);
    assert.match(mended.daemon!.evidence, /survives logout: yes$/);
    assert.is(mended.directory!.state, "ok");
  }),
);

doctor.run();
