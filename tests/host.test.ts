/** host.ts with plain values: places, what the tools of each version say, word for word, and what it comes to. */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { CommandResult, Place, World } from "../host.ts";
import {
  judgePolicy,
  parsePlace,
  parseSpan,
  parseUserRecord,
  placeOf,
  plainText,
  probeHost,
  readUserRecord,
  refusalOf,
  runCommand,
} from "../host.ts";
import { chooseLaunch, readUserState } from "../lifetime.ts";
import { factsOf, perConnection, scope, session } from "./facts.ts";

const parse = suite("parsePlace()");

const cgroups: [string, string, Place][] = [
  [
    "a session, unified",
    "0::/user.slice/user-1000.slice/session-3.scope\n",
    { kind: "session", owner: 1000, unit: "session-3.scope" },
  ],
  [
    "a session of a service's login",
    "0::/user.slice/user-1001.slice/session-c1.scope\n",
    { kind: "session", owner: 1001, unit: "session-c1.scope" },
  ],
  [
    "a session, hybrid",
    "9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n8:pids:/\n0::/user.slice/user-1000.slice/session-3.scope\n",
    session,
  ],
  ["a session, legacy", "9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n1:cpu:/\n0::/\n", session],
  ["a scope of the user manager", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r29.scope\n", scope],
  [
    "a scope, 257",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-p148-i97127.scope\n",
    { kind: "user-manager", owner: 1000, unit: "run-p148-i97127.scope" },
  ],
  [
    "a tmux pane",
    "0::/user.slice/user-1000.slice/user@1000.service/tmux-spawn-1f.scope\n",
    { kind: "user-manager", owner: 1000, unit: "tmux-spawn-1f.scope" },
  ],
  [
    "the user manager itself",
    "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n",
    { kind: "user-manager", owner: 1000, unit: "init.scope" },
  ],
  ["sshd without PAM", "0::/system.slice/ssh.service\n", { kind: "unit", unit: "ssh.service" }],
  [
    "sshd per connection",
    `0::/system.slice/system-sshd.slice/${perConnection}\n`,
    { kind: "unit", unit: perConnection },
  ],
  ["a container", "0::/\n", { kind: "none" }],
  ["a container, hybrid", "9:name=systemd:/\n8:pids:/\n0::/\n", { kind: "none" }],
  ["docker in the host's view", "0::/docker/4f2a\n", { kind: "none" }],
  [
    "a service of the user manager",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/build.service\n",
    { kind: "user-manager", owner: 1000, unit: "build.service" },
  ],
  [
    "the user manager's own group",
    "0::/user.slice/user-1000.slice/user@1000.service\n",
    { kind: "user-manager", owner: 1000, unit: "user@1000.service" },
  ],
  [
    "a Slurm job, unified",
    "0::/system.slice/slurmstepd.scope/job_4711/step_extern/user/task_special\n",
    { kind: "job", unit: "Slurm job 4711" },
  ],
  [
    "a Slurm job, legacy: a session that was put into it",
    "9:freezer:/slurm/uid_1000/job_4711/step_extern\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n",
    { kind: "job", unit: "Slurm job 4711" },
  ],
  ["a PBS job", "0::/pbs_jobs.service/jobid/12.head\n", { kind: "job", unit: "PBS job 12.head" }],
  ["no job: a user's own directory", "0::/user.slice/my-slurm.slice/x/job_1\n", { kind: "none" }],
  ["elogind's", "8:cpu:/\n1:name=elogind:/c3\n0::/\n", { kind: "elogind", unit: "session c3" }],
  ["nothing that is known", "", { kind: "unknown" }],
  [
    "a controller's path, which says nothing",
    "4:memory:/user.slice/user-1000.slice/session-3.scope\n0::/\n",
    { kind: "none" },
  ],
];
for (const [name, text, place] of cgroups) parse(`reads ${name}`, () => assert.equal(parsePlace(text), place));

parse("is elogind's on the unified hierarchy, where that knows the session", () => {
  const files: Record<string, string> = { "/proc/self/cgroup": "0::/3\n", "/run/systemd/sessions/3": "UID=1000\n" };
  assert.equal(placeOf("self", { readFile: (path) => files[path] }), { kind: "elogind", unit: "session 3" });
  delete files["/run/systemd/sessions/3"];
  assert.equal(placeOf("self", { readFile: (path) => files[path] }), { kind: "none" });
});

parse("comes first, whatever else can be seen from here: a chroot in a session ends with it", async () => {
  const cgroup = "0::/user.slice/user-1000.slice/session-3.scope\n";
  assert.equal(placeOf("self", { readFile: () => cgroup }), session);
  const facts = await probeHost(worldOf({}, { "/proc/self/cgroup": cgroup, "/run/systemd/system": undefined }));
  assert.equal(
    [facts.systemd, facts.place, facts.killed, facts.linger, facts.scope],
    [false, session, "unknown", "unknown", "no"],
  );
  assert.is(chooseLaunch(facts).verdict.words, "unknown");
});

/** What the tools of a version say, word for word (of show-user, what else it prints is left out). */
interface Version {
  version: number;
  /** systemd-run --version. */
  banner: string;
}

const done = (stdout: string): CommandResult => ({ code: 0, stdout, stderr: "" });
const refused = (stderr: string): CommandResult => ({ code: 1, stdout: "", stderr: `${stderr}\n` });

const versions: Version[] = [
  { version: 247, banner: "systemd 247 (247.3-7+deb11u5)\n+PAM +AUDIT\n" },
  { version: 252, banner: "systemd 252 (252.39-1~deb12u2)\n+PAM +AUDIT\n" },
  { version: 257, banner: "systemd 257 (257.13-1~deb13u1)\n+PAM +AUDIT\n" },
  { version: 262, banner: "systemd 262 (262-1)\n+PAM +AUDIT\n" },
];

const showPolicy = "loginctl --no-ask-password show-user --all";
const showUser = (uid: number): string =>
  `loginctl --no-ask-password show-user --property=Name --property=Linger ${uid}`;

const policySaid = (kill: string, { only = "", exclude = "", delay = "10s" } = {}): CommandResult =>
  done(
    `EnableWallMessages=yes\nWallMessage=\nKillOnlyUsers=${only}\nKillExcludeUsers=${exclude}\nKillUserProcesses=${kill}\n` +
      `UserStopDelayUSec=${delay}\nScheduledShutdown=[unprintable]\nRemoveIPC=yes\n`,
  );
const userSaid = (name: string, linger: string): CommandResult => done(`Name=${name}\nLinger=${linger}\n`);

/** A host whose tools answer from a table, by their command lines; what is not in it is not installed. It notes what it was asked. */
function worldOf(
  answers: Record<string, CommandResult>,
  files: Record<string, string | undefined> = {},
): World & { asked: string[] } {
  const asked: string[] = [];
  const all: Record<string, string | undefined> = {
    "/run/systemd/system": "",
    "/var/lib/systemd": "",
    "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
    ...files,
  };
  return {
    uid: 1000,
    user: "dev",
    asked,
    exists: (path) => all[path] !== undefined,
    readFile: (path) => all[path],
    run: async (command) => {
      asked.push(command.join(" "));
      return answers[command.join(" ")] ?? { code: null, stdout: "", stderr: "", problem: "is not installed" };
    },
  };
}

const unitProperties = "--property=KillMode --property=PartOf --property=BindsTo --property=RuntimeMaxUSec";

const host252 = (kill: string, linger = "no"): Record<string, CommandResult> => ({
  [showPolicy]: policySaid(kill),
  [showUser(1000)]: userSaid("dev", linger),
  "systemd-run --version": done(versions[1]!.banner),
});

const probe = suite("probeHost()");

for (const { version, banner } of versions) {
  probe(`measures a whole host of systemd ${version}`, async () => {
    const answers = { ...host252("yes", "yes"), "systemd-run --version": done(banner) };
    const facts = factsOf({ linger: "yes", systemdVersion: version, scope: "unknown", removesIpc: true });
    assert.equal(await probeHost(worldOf(answers)), facts);
  });
}

probe("reads the lists, and a stop delay, as loginctl writes them", async () => {
  const of = async (said: CommandResult) => probeHost(worldOf({ ...host252("no"), [showPolicy]: said }));
  assert.is((await of(policySaid("yes", { only: "ann bob" }))).policy, "KillOnlyUsers= has others, not dev");
  assert.is((await of(policySaid("yes", { exclude: "ann dev" }))).policy, "KillExcludeUsers= has dev");
  assert.is((await of(policySaid("no", { delay: "infinity" }))).stopDelayUs, "infinity");
  assert.is((await of(policySaid("no", { delay: "1min 3.500000s" }))).stopDelayUs, 63_500_000);
  assert.is((await of(policySaid("no", { delay: "soon" }))).stopDelayUs, 10_000_000);
});

probe("takes a name that is absent for unknown, and an empty value for empty", async () => {
  const said = done("KillUserProcesses=no\nKillExcludeUsers=\n");
  const facts = await probeHost(worldOf({ ...host252("no"), [showPolicy]: said }));
  assert.equal(
    [facts.killed, facts.policy],
    ["unknown", "logind's settings cannot be read: loginctl does not name all of them"],
  );
});

probe(
  "asks side by side, by name, never by what the environment says; and for KillMode= of the unit it is in",
  async () => {
    const show = `systemctl show ${unitProperties} ${perConnection}`;
    const world = worldOf(
      { ...host252("yes"), [show]: done("KillMode=process\n") },
      { "/proc/self/cgroup": `0::/system.slice/${perConnection}\n` },
    );
    assert.is((await probeHost(world)).killMode, "process");
    assert.equal(world.asked, [
      showPolicy,
      showUser(1000),
      "systemd-run --version",
      show,
      "userdbctl user --output=json 1000",
    ]);
  },
);

const showSession =
  "loginctl --no-ask-password show-session --property=Type --property=Class --property=Service --property=TTY --property=Leader --property=State 3";
const idlePolicy = (span: string): CommandResult => done(`${policySaid("no").stdout}StopIdleSessionUSec=${span}\n`);

/** StopIdleSessionUSec=, what show-session says, and after how many seconds the session is ended. */
const idles: [string, string, CommandResult, number | undefined][] = [
  ["a terminal", "10min", done("Type=tty\nTTY=pts/1\nService=sshd\n"), 600],
  ["a terminal, and no idle stop", "infinity", done("Type=tty\nTTY=pts/1\n"), undefined],
  ["no terminal", "10min", done("Type=tty\nTTY=\nService=sshd\n"), undefined],
  ["a desktop", "1min 17s", done("Type=wayland\nTTY=\n"), 77],
  ["what cannot be asked", "10min", refused("Failed to get session path: No session '3' known"), 600],
];
for (const [what, span, said, seconds] of idles) {
  probe(`knows when a session is ended for being idle: ${what}`, async () => {
    const answers = { ...host252("no"), [showPolicy]: idlePolicy(span), [showSession]: said };
    const { idleStopUs } = await probeHost(worldOf(answers));
    assert.is(idleStopUs, seconds === undefined ? undefined : seconds * 1e6);
  });
}

probe("takes a user's record before logind's settings: from a service, else from the files, from 249 on", async () => {
  const record = JSON.stringify({ userName: "dev", uid: 1000, killProcesses: true, stopDelayUSec: 3_000_000 });
  const files = { "/etc/userdb/1000.user": record };
  const byFile = await probeHost(worldOf(host252("no"), files));
  assert.equal(
    [byFile.killed, byFile.policy, byFile.stopDelayUs],
    ["yes", "killProcesses=true in /etc/userdb/1000.user", 3_000_000],
  );
  const old = { ...host252("no"), "systemd-run --version": done(versions[0]!.banner) };
  assert.is((await probeHost(worldOf(old, files))).killed, "no");
  const ask = "userdbctl user --output=json 1000";
  const answers = { ...host252("yes"), [ask]: done('{"userName":"dev","killProcesses":false}\n') };
  const byService = await probeHost(worldOf(answers, files));
  assert.equal([byService.killed, byService.policy], ["no", `killProcesses=false in what ${ask} prints`]);
  const homed = { ...host252("no"), [ask]: done('{"userName":"dev","storage":"luks"}\n') };
  assert.is((await probeHost(worldOf(homed))).homed, true);
});

probe("takes the owner's record for his session, and our own for our user manager's delay", async () => {
  const { killed, stopDelayUs } = await probeHost(
    worldOf(
      { ...host252("no"), [showUser(1001)]: userSaid("ann", "no") },
      {
        "/proc/self/cgroup": "0::/user.slice/user-1001.slice/session-c1.scope\n",
        "/etc/userdb/1001.user": '{"userName":"ann","killProcesses":true,"stopDelayUSec":1}',
        "/etc/userdb/1000.user": '{"userName":"dev","stopDelayUSec":2000000}',
      },
    ),
  );
  assert.equal([killed, stopDelayUs], ["yes", 2_000_000]);
});

probe("asks the user manager for the KillMode= of a service of its own, and what a scope is bound to", async () => {
  const of = (unit: string) => ({
    "/proc/self/cgroup": `0::/user.slice/user-1000.slice/user@1000.service/app.slice/${unit}\n`,
  });
  const show = `systemctl --user show ${unitProperties} build.service`;
  const world = worldOf({ ...host252("no"), [show]: done("KillMode=mixed\n") }, of("build.service"));
  assert.is((await probeHost(world)).killMode, "mixed");
  const scopeSaid = async (said: string) => {
    const answers = { ...host252("no"), [`systemctl --user show ${unitProperties} run-r1.scope`]: done(said) };
    return probeHost(worldOf(answers, of("run-r1.scope")));
  };
  const free = await scopeSaid("KillMode=control-group\nPartOf=\nBindsTo=\nRuntimeMaxUSec=infinity\n");
  assert.equal([free.killMode, free.bound], [undefined, undefined]);
  const part = await scopeSaid("PartOf=graphical-session.target\nBindsTo=a.service\nRuntimeMaxUSec=infinity\n");
  assert.equal(part.bound, { unit: "run-r1.scope", to: "graphical-session.target a.service" });
  const timed = await scopeSaid("PartOf=\nBindsTo=\nRuntimeMaxUSec=1h 30min\n");
  assert.equal(timed.bound, { unit: "run-r1.scope", to: "", afterUs: 5400e6 });
});

const maps: [string, string, string, boolean][] = [
  [
    "podman without root",
    "/run/.containerenv",
    "         0       1000          1\n         1     100000      65536\n",
    true,
  ],
  [
    "podman, keep-id",
    "/run/.containerenv",
    "         0          1       1000\n      1000          0          1\n",
    true,
  ],
  ["podman with root", "/run/.containerenv", "         0          0 4294967295\n", false],
  ["docker without root", "/.dockerenv", "         0       1000          1\n         1     100000      65536\n", true],
  ["docker with root", "/.dockerenv", "         0          0 4294967295\n", false],
  ["docker with a range of users", "/.dockerenv", "         0     100000      65536\n", false],
  ["no container", "/etc/passwd", "         0       1000          1\n", false],
];
for (const [what, mark, map, expected] of maps) {
  probe(`knows a container that a user runs: ${what}`, async () => {
    const files = { "/proc/self/cgroup": "0::/\n", "/run/systemd/system": undefined, "/proc/self/uid_map": map };
    assert.is((await probeHost(worldOf({}, { ...files, [mark]: "" }))).rootless ?? false, expected);
  });
}

probe("knows WSL by its kernel, and elogind by its cgroup", async () => {
  const kernel = { "/proc/sys/kernel/osrelease": "5.15.90.1-microsoft-standard-WSL2\n" };
  assert.is((await probeHost(worldOf(host252("no"), kernel))).wsl, true);
  const files = { "/proc/self/cgroup": "1:name=elogind:/3\n", "/run/systemd/system": undefined };
  const elogind = await probeHost(worldOf(host252("yes"), files));
  assert.equal([elogind.killed, elogind.scope, elogind.scopeProblem], ["yes", "no", "elogind has no user managers"]);
});

/** In the words of the tools, of each version that has its own. */
const refusals: [string, CommandResult, string][] = [
  ["no loginctl", { code: null, stdout: "", stderr: "", problem: "is not installed" }, "loginctl is not installed"],
  [
    "a logind that hangs",
    { code: null, stdout: "", stderr: "", problem: "did not answer within 2000 ms" },
    "loginctl did not answer within 2000 ms",
  ],
  [
    "no system bus, 252",
    refused("Failed to connect to bus: Connection refused"),
    "Failed to connect to bus: Connection refused",
  ],
  [
    "no system bus, 257",
    refused("Failed to connect to system scope bus via local transport: Connection refused"),
    "Failed to connect to system scope bus via local transport: Connection refused",
  ],
  [
    "not booted with systemd",
    refused(
      "System has not been booted with systemd as init system (PID 1). Can't operate.\nFailed to connect to bus: Host is down",
    ),
    "System has not been booted with systemd as init system (PID 1). Can't operate.; Failed to connect to bus: Host is down",
  ],
  ["silence", { code: 1, stdout: "", stderr: "" }, "loginctl ended with exit code 1, and said nothing"],
];
for (const [name, result, words] of refusals) {
  probe(`does not know the policy, and says why: ${name}`, async () => {
    const { killed, policy: said } = await probeHost(worldOf({ ...host252("yes"), [showPolicy]: result }));
    assert.equal([killed, said], ["unknown", `logind's settings cannot be read: ${words}`]);
  });
}

probe("takes a file for lingering, where logind does not know the user: neither logged in nor lingering", async () => {
  const answers = {
    ...host252("yes"),
    [showUser(1000)]: refused("Failed to get user: User ID 1000 is not logged in or lingering"),
  };
  assert.is((await probeHost(worldOf(answers))).linger, "no");
  assert.is((await probeHost(worldOf(answers, { "/var/lib/systemd/linger/dev": "" }))).linger, "yes");
  assert.is((await probeHost(worldOf(answers, { "/var/lib/systemd": undefined }))).linger, "unknown");
});

probe("knows without systemd-run that there is no scope; one that does not answer in time says nothing", async () => {
  const of = (result: CommandResult) => probeHost(worldOf({ ...host252("yes"), "systemd-run --version": result }));
  const absent = await of({ code: null, stdout: "", stderr: "", problem: "is not installed" });
  assert.equal([absent.scope, absent.scopeProblem, absent.systemdVersion], ["no", "systemd-run is not installed", 0]);
  const late = await of({ code: null, stdout: "", stderr: "", problem: "did not answer within 2000 ms" });
  assert.equal([late.scope, late.scopeProblem, late.systemdVersion], ["unknown", undefined, 0]);
});

probe("takes the owner of the session, not our user, and that owner's policy", async () => {
  const world = worldOf(
    { ...host252("yes"), [showUser(0)]: userSaid("root", "no") },
    { "/proc/self/cgroup": "0::/user.slice/user-0.slice/session-c1.scope\n" },
  );
  const { owner, killed } = await probeHost(world);
  assert.equal([owner, killed], ["root", "no"]);
});

probe("of another's user manager asks whether that one lingers; without the name it does not know", async () => {
  const files = { "/proc/self/cgroup": "0::/user.slice/user-1001.slice/user@1001.service/app.slice/a.scope\n" };
  const of = (answers: Record<string, CommandResult>) => probeHost(worldOf({ ...host252("yes"), ...answers }, files));
  const ann = await of({ [showUser(1001)]: userSaid("ann", "yes") });
  assert.equal([ann.owner, ann.ownerLinger], ["ann", "yes"]);
  assert.is((await of({ [showUser(1001)]: userSaid("eve", "no") })).ownerLinger, "no");
  const unknown = await of({});
  assert.equal([unknown.owner, unknown.ownerLinger], ["1001", "unknown"]);
});

probe("reads the version of systemd as distributions write it", async () => {
  const of = async (banner: string) =>
    (await probeHost(worldOf({ ...host252("yes"), "systemd-run --version": done(banner) }))).systemdVersion;
  assert.equal(
    [
      await of("systemd 252 (252.39-1~deb12u2)\n"),
      await of("systemd 253 (v253.7-1.9.hs+fb.el9)\n"),
      await of("systemd 262~rc1 (262~rc1)\n"),
      await of("systemd devel\n"),
    ],
    [252, 253, 262, 0],
  );
});

probe("tells why a scope cannot be made, in the words of who refused it, and what the user manager is", async () => {
  const world = worldOf({
    ...host252("yes"),
    "systemd-run --user --scope --quiet --collect -- true": refused(
      "Failed to connect to bus: No such file or directory",
    ),
    "systemctl show --property=LoadState --property=ActiveState user@1000.service": done(
      "LoadState=masked\nActiveState=inactive\n",
    ),
  });
  const { scope: made, scopeProblem, manager } = await probeHost(world, { tryScope: true });
  assert.equal([made, scopeProblem, manager], ["no", "Failed to connect to bus: No such file or directory", "masked"]);
});

const tools = suite("runCommand()");

tools("gives exit code and both outputs, in English, without colours, with nothing to read from", async () => {
  const script = "printf '\\033[0;1;31m%s\\033[0m' \"$LC_ALL\"; cat; echo no >&2; exit 7";
  assert.equal(await runCommand(["sh", "-c", script], 5000), { code: 7, stdout: "C", stderr: "no\n" });
});

tools("tells of what is not there, does not end in time, or is killed", async () => {
  assert.is((await runCommand(["/no/such"], 5000)).problem, "is not installed");
  assert.is((await runCommand(["sleep", "60"], 100)).problem, "did not answer within 100 ms");
  assert.is((await runCommand(["sh", "-c", "kill -9 $$"], 5000)).problem, "was ended by SIGKILL");
  // what it has started may hold its pipes
  assert.is(
    (await runCommand(["sh", "-c", "sleep 60 & echo $! >&2; wait"], 100)).problem,
    "did not answer within 100 ms",
  );
});

tools("takes the colours of systemd 247 out of what it says", () => {
  assert.is(
    plainText("\x1b[0;1;31mFailed to look up user 4711: No such process\x1b[0m"),
    "Failed to look up user 4711: No such process",
  );
  assert.is(refusalOf(["loginctl"], { code: 1, stdout: "", stderr: " a \n b\n" }), "a; b");
  assert.is(refusalOf(["loginctl"], { code: 0, stdout: "", stderr: "a warning" }), undefined);
});

const policy = suite("judgePolicy()");

/** KillUserProcesses, KillOnlyUsers, KillExcludeUsers; then whether dev, u2 and root are killed. Seven configurations, measured on 252 and 262. */
const policies: [boolean, string[], string[], string][] = [
  [false, [], [], "no no no"],
  [true, [], [], "yes yes no"],
  [true, [], ["dev"], "no yes yes"],
  [false, ["dev"], [], "yes no no"],
  [true, ["dev"], [], "yes no no"],
  [true, ["dev"], ["dev"], "no no no"],
  [false, ["root"], ["u2"], "no no yes"],
];
for (const [killUserProcesses, only, exclude, expected] of policies) {
  policy(`agrees with logind on kill=${killUserProcesses} only=[${only}] exclude=[${exclude}]`, () => {
    const judge = (name: string, uid: number) => judgePolicy({ killUserProcesses, only, exclude }, name, uid)[0];
    assert.is(`${judge("dev", 1000)} ${judge("u2", 1001)} ${judge("root", 0)}`, expected);
  });
}
policy("does not know without the settings, and says why there are none", () =>
  assert.equal(judgePolicy({ problem: "no answer" }, "dev", 1000), [
    "unknown",
    "logind's settings cannot be read: no answer",
  ]),
);

policy("takes the word of a user's record before all of them", () => {
  for (const killProcesses of [true, false]) {
    const record = { killProcesses, isHomed: false, source: "/etc/userdb/1000.user" };
    const said = `killProcesses=${killProcesses} in /etc/userdb/1000.user`;
    const expected = [killProcesses ? "yes" : "no", said];
    for (const killUserProcesses of [true, false])
      assert.equal(judgePolicy({ killUserProcesses, exclude: ["dev"], record }, "dev", 1000), expected);
    assert.equal(judgePolicy({ problem: "no answer", record }, "dev", 1000), expected);
  }
  const silent = { isHomed: false, source: "/etc/userdb/1000.user" };
  assert.is(judgePolicy({ killUserProcesses: true, record: silent }, "dev", 1000)[1], "KillUserProcesses=yes");
});

const spans = suite("parseSpan()");

spans("reads spans of time as systemd writes them", () => {
  const rows: [string | undefined, number | "infinity" | undefined][] = [
    ["0", 0],
    ["9s", 9e6],
    ["1min 17s", 77e6],
    ["1min 3.500000s", 63.5e6],
    ["45ms", 45e3],
    ["120us", 120],
    ["1h 30min", 5400e6],
    ["1month 2d", (2_629_800 + 172_800) * 1e6],
    ["infinity", "infinity"],
    ["", undefined],
    ["9", undefined],
    ["1 s", undefined],
    ["5parsec", undefined],
    ["5constructor", undefined],
    [undefined, undefined],
  ];
  for (const [text, span] of rows) assert.is(parseSpan(text), span, text);
});

const records = suite("parseUserRecord()");

const machine = "0123456789abcdef0123456789abcdef";
const filesOf = (files: Record<string, string> = {}) => ({
  readFile: (path: string): string | undefined => ({ "/etc/machine-id": `${machine}\n`, ...files })[path],
});

const recordTexts: [string, string | undefined, object | undefined][] = [
  [
    "all that matters",
    '{"userName":"dev","killProcesses":true,"stopDelayUSec":5000000}',
    { killProcesses: true, stopDelayUs: 5e6 },
  ],
  ["what is none of ours", '{"userName":"dev","shell":"/bin/sh"}', {}],
  ["infinity", '{"userName":"dev","stopDelayUSec":18446744073709551615}', { stopDelayUs: "infinity" }],
  ["values of other types", '{"userName":"dev","killProcesses":"yes","stopDelayUSec":-1}', {}],
  [
    "a section for this machine",
    `{"userName":"dev","killProcesses":true,"perMachine":[{"matchMachineId":"${machine}","killProcesses":false}]}`,
    { killProcesses: false },
  ],
  [
    "a section for some machines",
    `{"userName":"dev","perMachine":[{"matchMachineId":["1","${machine}"],"killProcesses":false}]}`,
    { killProcesses: false },
  ],
  [
    "a section for another machine",
    '{"userName":"dev","perMachine":[{"matchMachineId":"1","killProcesses":false}]}',
    {},
  ],
  [
    "a home of systemd-homed",
    `{"userName":"dev","status":{"${machine}":{"service":"io.systemd.Home"}}}`,
    { isHomed: true },
  ],
  ["an encrypted home", '{"userName":"dev","storage":"luks"}', { isHomed: true }],
  ["a plain home", '{"userName":"dev","storage":"classic"}', {}],
  ["words before it", 'Warning: x\n{"userName":"dev"}', {}],
  ["nothing", undefined, undefined],
  ["an empty file", "", undefined],
  ["what is no record", "[1]", undefined],
  ["a record of nobody", "{}", undefined],
  ["half of one", '{"userName":"dev","kill', undefined],
  ["odd sections", '{"userName":"dev","perMachine":7,"status":[]}', {}],
];
for (const [what, text, expected] of recordTexts) {
  records(`reads ${what}`, () =>
    assert.equal(parseUserRecord(text, "f", filesOf()), expected && { isHomed: false, source: "f", ...expected }),
  );
}

records("is looked for by number, in the order in which systemd does", () => {
  const text = (killProcesses: boolean): string => JSON.stringify({ userName: "dev", killProcesses });
  const of = (files: Record<string, string>) => readUserRecord(1000, filesOf(files));
  assert.is(
    of({ "/usr/lib/userdb/1000.user": text(true), "/etc/userdb/1000.user": text(false) })?.killProcesses,
    false,
  );
  assert.is(of({ "/run/userdb/1000.user": text(true) })?.source, "/run/userdb/1000.user");
  assert.is(of({ "/run/host/userdb/1000.user": text(true) })?.killProcesses, true);
  assert.is(of({ "/etc/userdb/1001.user": text(true) }), undefined);
});

records("and what logind keeps of a user says who is logged in", () => {
  const of = (text: string | undefined) => readUserState(1000, { readFile: () => text });
  assert.equal(of("NAME=dev\nSTATE=active\nSESSIONS=3 c4\n"), { state: "active", sessions: ["3", "c4"] });
  assert.equal(of("STATE=lingering\nSESSIONS=\n"), { state: "lingering", sessions: [] });
  assert.equal(of(undefined), { state: undefined, sessions: [] });
});

for (const test of [parse, probe, tools, policy, spans, records]) test.run();
