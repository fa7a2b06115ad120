/** lifetime.ts with plain values: every row of the table of places, with facts as they were measured on real hosts. */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { CommandResult, Facts, Place, World } from "../lifetime.ts";
import {
  chooseLaunch,
  describeVerdict,
  judgePlace,
  judgePolicy,
  judgeSignals,
  parsePlace,
  parseSpan,
  placeOf,
  plainText,
  probeHost,
  refusalOf,
  runCommand,
  switchLingerOn,
} from "../lifetime.ts";

const session: Place = { kind: "session", owner: 1000, unit: "session-3.scope" };
const scope: Place = { kind: "user-manager", owner: 1000, unit: "run-r29.scope" };
const perConnection = "sshd@7-10.0.0.1:22-10.0.0.2:5000.service";

const factsOf = (changes: Partial<Facts> = {}): Facts => ({
  uid: 1000,
  user: "dev",
  systemd: true,
  systemdVersion: 252,
  place: session,
  killed: "yes",
  policy: "KillUserProcesses=yes",
  stopDelayUs: 10_000_000,
  linger: "no",
  scope: "yes",
  ...changes,
});

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
  ["nothing that is known", "", { kind: "unknown" }],
  [
    "a controller's path, which says nothing",
    "4:memory:/user.slice/user-1000.slice/session-3.scope\n0::/\n",
    { kind: "none" },
  ],
];
for (const [name, text, place] of cgroups) parse(`reads ${name}`, () => assert.equal(parsePlace(text), place));

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

const choose = suite("chooseLaunch()");

/** What is given, which launch, what --serve says of it, and its warnings. */
const rows: [string, Partial<Facts>, "detach" | "scope", string, string[]][] = [
  ["session, not killed, no linger: not a scope", { killed: "no" }, "detach", "yes", []],
  ["session, not killed, linger", { killed: "no", linger: "yes" }, "detach", "yes", []],
  ["session, killed, linger", { linger: "yes" }, "scope", "yes", []],
  ["session, killed, stop delay infinite", { stopDelayUs: "infinity" }, "scope", "yes", []],
  [
    "session, killed, no linger",
    {},
    "scope",
    "until about 10 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "session, killed, no linger, stop delay 1 s",
    { stopDelayUs: 1_000_000 },
    "scope",
    "until about 1 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "session, killed, linger refused",
    { lingerRefused: "Access denied" },
    "scope",
    "until about 10 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "session, killed, linger, no scope",
    { linger: "yes", scope: "no", scopeProblem: "it hangs" },
    "detach",
    "no",
    ["ends-with-session"],
  ],
  ["session, killed, no linger, no scope", { scope: "no" }, "detach", "no", ["ends-with-session"]],
  ["session, unknown, no linger", { killed: "unknown" }, "detach", "unknown", ["may-end-with-session"]],
  ["session, unknown, linger", { killed: "unknown", linger: "yes" }, "scope", "yes", []],
  [
    "session, unknown, linger unknown",
    { killed: "unknown", linger: "unknown" },
    "detach",
    "unknown",
    ["may-end-with-session"],
  ],
  ["session, killed, linger unknown", { linger: "unknown" }, "scope", "unknown", ["may-end-with-session"]],
  [
    "another's session, killed, no manager of ours",
    { place: { ...session, owner: 1001 }, owner: "ann", scope: "no" },
    "detach",
    "no",
    ["ends-with-session"],
  ],
  [
    "another's session, killed, we linger",
    { place: { ...session, owner: 1001 }, owner: "ann", linger: "yes" },
    "scope",
    "yes",
    [],
  ],
  ["user manager, linger", { place: scope, linger: "yes" }, "detach", "yes", []],
  [
    "user manager, no linger",
    { place: scope, killed: "no", policy: "KillUserProcesses=no" },
    "detach",
    "until about 10 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "another's user manager, lingering",
    { place: { ...scope, owner: 1001 }, owner: "ann", ownerLinger: "yes", scope: "no" },
    "detach",
    "yes",
    [],
  ],
  [
    "another's user manager, not lingering",
    { place: { ...scope, owner: 1001 }, owner: "ann", ownerLinger: "no", linger: "yes", scope: "no" },
    "detach",
    "until about 10 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "sshd without PAM",
    { place: { kind: "unit", unit: "ssh.service" }, killMode: "process", scope: "no" },
    "detach",
    "yes",
    [],
  ],
  [
    "cron",
    { place: { kind: "unit", unit: "cron.service" }, killMode: "control-group", scope: "no" },
    "detach",
    "yes",
    [],
  ],
  [
    "sshd per connection, no linger",
    { place: { kind: "unit", unit: perConnection }, killMode: "control-group", scope: "no" },
    "detach",
    "no",
    ["ends-with-connection"],
  ],
  [
    "sshd per connection, linger",
    { place: { kind: "unit", unit: perConnection }, killMode: "control-group", linger: "yes" },
    "scope",
    "yes",
    [],
  ],
  [
    "sshd per connection, KillMode=process",
    { place: { kind: "unit", unit: perConnection }, killMode: "process", scope: "no" },
    "detach",
    "yes",
    [],
  ],
  ["no systemd", { systemd: false, place: { kind: "none" }, scope: "no" }, "detach", "yes", []],
  ["systemd 255, linger", { linger: "yes", systemdVersion: 255 }, "scope", "yes", ["lingering-unreliable"]],
  ["systemd 257, linger", { linger: "yes", systemdVersion: 257 }, "scope", "yes", []],
];
for (const [name, changes, launch, words, warnings] of rows) {
  choose(`takes the right place: ${name}`, () => {
    const choice = chooseLaunch(factsOf(changes));
    assert.is(choice.launch, launch);
    assert.is(choice.verdict.words, words);
    assert.equal(
      choice.verdict.warnings.map((warning) => warning.name),
      warnings,
    );
    for (const { message, hint } of choice.verdict.warnings) assert.ok(message.length > 20 && hint.length > 10);
  });
}

choose("names cause and command in its warnings", () => {
  const warningOf = (changes: Partial<Facts>) => chooseLaunch(factsOf(changes)).verdict.warnings[0]!;
  assert.match(warningOf({}).message, /KillUserProcesses=yes.*dev is not lingering/);
  assert.is(warningOf({}).hint, "loginctl enable-linger dev");
  assert.match(warningOf({ lingerRefused: "Access denied" }).message, /could not be switched on: Access denied/);
  assert.match(
    warningOf({ lingerRefused: "Access denied" }).hint,
    /^ask an administrator for: loginctl enable-linger dev$/,
  );
  assert.match(
    warningOf({ scope: "no", scopeProblem: "it hangs" }).message,
    /no scope could be made to leave it: it hangs/,
  );
  assert.is(
    warningOf({ scope: "no", scopeProblem: "no bus", manager: "inactive" }).hint,
    "loginctl enable-linger dev",
    "lingering starts what is merely not there",
  );
  for (const changes of [{ manager: "masked" }, { manager: "active", linger: "yes" }] as Partial<Facts>[]) {
    assert.match(
      warningOf({ scope: "no", owner: "ann", ...changes }).hint,
      /^as an administrator: .*KillExcludeUsers=root ann\\n/,
      JSON.stringify(changes),
    );
  }
});

choose("names the unit whose stop would end it, unless that unit leaves its processes alone", () => {
  const where = (killMode: string) => judgePlace({ kind: "unit", unit: "cron.service" }, factsOf({ killMode })).where;
  assert.match(where("control-group"), /cron\.service/);
  assert.not.match(where("process"), /cron\.service/);
});

choose("is described in full for server.capabilities", () => {
  assert.equal(describeVerdict(judgePlace(scope, factsOf({ linger: "yes" }))), {
    placement: "user-manager",
    unit: "run-r29.scope",
    survivesLogout: "yes",
    words: "yes",
    where: "in run-r29.scope under your user manager",
    warnings: [],
  });
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

const host252 = (kill: string, linger = "no"): Record<string, CommandResult> => ({
  [showPolicy]: policySaid(kill),
  [showUser(1000)]: userSaid("dev", linger),
  "systemd-run --version": done(versions[1]!.banner),
});

const probe = suite("probeHost()");

for (const { version, banner } of versions) {
  probe(`measures a whole host of systemd ${version}`, async () => {
    const answers = { ...host252("yes", "yes"), "systemd-run --version": done(banner) };
    const facts = factsOf({ linger: "yes", systemdVersion: version, scope: "unknown" });
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
    const show = `systemctl show --property=KillMode ${perConnection}`;
    const world = worldOf(
      { ...host252("yes"), [show]: done("KillMode=process\n") },
      { "/proc/self/cgroup": `0::/system.slice/${perConnection}\n` },
    );
    assert.is((await probeHost(world)).killMode, "process");
    assert.equal(world.asked, [showPolicy, showUser(1000), "systemd-run --version", show]);
  },
);

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

const linger = suite("switchLingerOn()");
const enable = "loginctl --no-ask-password enable-linger dev";

linger("asks for our own user by name, without a password prompt, and only where it helps", async () => {
  const world = worldOf({ [enable]: done("") });
  const facts = factsOf();
  await switchLingerOn(facts, world);
  assert.equal(world.asked, [enable]);
  assert.equal([facts.linger, facts.lingerSwitchedOn, chooseLaunch(facts).verdict.words], ["yes", true, "yes"]);
  for (const changes of [
    { linger: "yes" },
    { killed: "no" },
    { systemd: false, place: { kind: "none" } },
  ] as Partial<Facts>[]) {
    const other = worldOf({ [enable]: done("") });
    await switchLingerOn(factsOf(changes), other);
    assert.equal(other.asked, [], JSON.stringify(changes));
  }
});

for (const words of ["Access denied", "Interactive authentication required.", "No such device or address"]) {
  linger(`keeps the refusal in its words: ${words}`, async () => {
    const facts = factsOf();
    await switchLingerOn(facts, worldOf({ [enable]: refused(`Could not enable linger: ${words}`) }));
    assert.equal([facts.linger, facts.lingerRefused, facts.lingerSwitchedOn], ["no", words, undefined]);
  });
}

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

tools("reads spans of time as systemd writes them", () => {
  const spans: [string | undefined, number | "infinity" | undefined][] = [
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
  for (const [text, span] of spans) assert.is(parseSpan(text), span, text);
});

const signals = suite("judgeSignals()");
for (const [seen, reason] of [
  [["SIGTERM"], "terminated"],
  [["SIGINT"], "terminated"],
  [["SIGTERM", "SIGHUP"], "terminated"],
  [["SIGTERM", "SIGCONT"], "user-manager-stopped"],
  [["SIGHUP", "SIGCONT", "SIGTERM"], "killed-at-logout"],
] as const) {
  signals(`takes ${seen.join(" + ")} for ${reason}`, () => {
    const judged = judgeSignals(new Set(seen));
    assert.is(judged.reason, reason);
    for (const signal of seen) assert.match(judged.detail, signal);
  });
}

for (const test of [parse, policy, choose, probe, linger, tools, signals]) test.run();
