/** lifetime.ts with plain values: every row of the table of places, with facts as they were measured on real hosts. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import type { BusAnswer, BusCall } from "../bus.ts";
import {
  chooseLaunch,
  describeVerdict,
  judgePlace,
  judgePolicy,
  judgeSignals,
  launchDaemon,
  parsePlace,
  placeOf,
  probeHost,
  realWorld,
  switchLingerOn,
} from "../lifetime.ts";
import type { Facts, Place, World } from "../lifetime.ts";
import { argumentsOf, livingProcesses } from "../record.ts";
import { eventually, sleep } from "./daemon.ts";
import * as assert from "uvu/assert";

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

parse("is not asked where systemd is not the init: the cgroups of another mean nothing", () => {
  const world = { exists: () => false, readFile: () => "0::/user.slice/user-1000.slice/session-3.scope\n" };
  assert.equal(placeOf("self", world), { kind: "none" });
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

/** A host whose services answer from a table, by property or method, and that notes what it is asked; what is not in the table is not known. */
function worldOf(answers: Record<string, unknown>, files: Record<string, string> = {}): World & { asked: string[] } {
  const asked: string[] = [];
  const all: Record<string, string> = {
    "/run/systemd/system": "",
    "/var/lib/systemd": "",
    "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
    ...files,
  };
  const answer = ({ service, object = "", method, values = [] }: BusCall): BusAnswer => {
    const name = method === "Get" ? String(values[1]) : method;
    asked.push(
      [
        method === "Get" ? String(values[0]).replace("org.freedesktop.", "") : service,
        object,
        name,
        ...(method === "Get" ? [] : [JSON.stringify(values)]),
      ]
        .filter((word) => word !== "")
        .join(" "),
    );
    return answers[name] === undefined ? { problem: "nobody is there" } : { value: answers[name] };
  };
  return {
    uid: 1000,
    user: "dev",
    asked,
    exists: (path) => path in all,
    readFile: (path) => all[path],
    ask: async (_whom, calls) => calls.map(answer),
  };
}

const settings = (kill: boolean) => ({
  KillUserProcesses: kill,
  KillOnlyUsers: [],
  KillExcludeUsers: [],
  UserStopDelayUSec: 10_000_000,
  Version: "252.39-1~deb12u2",
});
const probe = suite("probeHost()");

probe("measures a whole host", async () => {
  assert.equal(await probeHost(worldOf({ ...settings(true), Linger: true })), {
    ...factsOf({ linger: "yes" }),
    scope: "unknown",
  });
  assert.equal(await probeHost(worldOf({ ...settings(false), Linger: false, UserStopDelayUSec: 2 ** 64 })), {
    ...factsOf({ killed: "no", policy: "KillUserProcesses=no", stopDelayUs: "infinity" }),
    scope: "unknown",
  });
  assert.is(
    (await probeHost(worldOf({ ...settings(true), KillOnlyUsers: ["ann"] }))).policy,
    "KillOnlyUsers= has others, not dev",
  );
  assert.is(
    (await probeHost(worldOf({ ...settings(true), KillExcludeUsers: ["dev"] }))).policy,
    "KillExcludeUsers= has dev",
  );
});

probe("asks all at once, and for KillMode= of the unit that it is in", async () => {
  const world = worldOf(
    { ...settings(true), KillMode: "process" },
    { "/proc/self/cgroup": `0::/system.slice/${perConnection}\n` },
  );
  assert.is((await probeHost(world)).killMode, "process");
  assert.equal(world.asked, [
    "login1.Manager KillUserProcesses",
    "login1.Manager KillOnlyUsers",
    "login1.Manager KillExcludeUsers",
    "login1.Manager UserStopDelayUSec",
    "login1.User /user/_1000 Linger",
    "systemd1.Manager Version",
    "login1.User /user/_1000 Name",
    "systemd1.Service /unit/sshd_407_2d10_2e0_2e0_2e1_3a22_2d10_2e0_2e0_2e2_3a5000_2eservice KillMode",
  ]);
});

probe("does not know what nobody answers; of lingering a file tells", async () => {
  const { killed, policy: said, linger: on, systemdVersion, stopDelayUs } = await probeHost(worldOf({}));
  assert.equal(
    [killed, said, on, systemdVersion, stopDelayUs],
    ["unknown", "logind's settings cannot be read: nobody is there", "no", 0, 10_000_000],
  );
  assert.is((await probeHost(worldOf({}, { "/var/lib/systemd/linger/dev": "" }))).linger, "yes");
});

probe("takes the owner of the session, not our user, and that owner's policy", async () => {
  const world = worldOf(
    { ...settings(true), Name: "root" },
    { "/proc/self/cgroup": "0::/user.slice/user-0.slice/session-c1.scope\n" },
  );
  const { owner, killed } = await probeHost(world);
  assert.equal([owner, killed, world.asked.includes("login1.User /user/_0 Name")], ["root", "no", true]);
});

probe("of another's user manager asks whether that one lingers; without the name it does not know", async () => {
  const files = {
    "/proc/self/cgroup": "0::/user.slice/user-1001.slice/user@1001.service/app.slice/a.scope\n",
    "/var/lib/systemd/linger/ann": "",
  };
  const { owner, ownerLinger } = await probeHost(worldOf({ ...settings(true), Name: "ann" }, files));
  assert.equal([owner, ownerLinger], ["ann", "yes"]);
  assert.is((await probeHost(worldOf({ ...settings(true), Name: "eve" }, files))).ownerLinger, "no");
  const unknown = await probeHost(worldOf(settings(true), files));
  assert.equal([unknown.owner, unknown.ownerLinger], ["1001", "unknown"]);
});

probe("reads the version of systemd as distributions write it", async () => {
  const of = async (Version: string) => (await probeHost(worldOf({ Version }))).systemdVersion;
  assert.equal(
    [await of("252.39-1~deb12u2"), await of("v253.7-1.9.hs+fb.el9"), await of("262~rc1"), await of("devel")],
    [252, 253, 262, 0],
  );
});

probe("asks a scope for its KillMode= as one", async () => {
  const world = worldOf({ ...settings(true), KillMode: "control-group" }, { "/proc/self/cgroup": "0::/init.scope\n" });
  assert.is((await probeHost(world)).killMode, "control-group");
  assert.is(world.asked.at(-1), "systemd1.Scope /unit/init_2escope KillMode");
});

probe("tells why a scope cannot be made, in the words of who refused it, and what the user manager is", async () => {
  const world = worldOf({ ...settings(true), LoadState: "masked", ActiveState: "inactive" });
  const { scope: made, scopeProblem, manager } = await probeHost(world, { tryScope: true });
  assert.equal([made, scopeProblem, manager], ["no", "nobody is there", "masked"]);
  assert.is(world.asked.at(-1), "systemd1.Unit /unit/user_401000_2eservice ActiveState");
  const isLeft = () =>
    livingProcesses().some(({ pid, parent }) => parent === process.pid && argumentsOf(pid)[0] === "sleep");
  await eventually(() => !isLeft(), "the end of the process that the scope was tried around");
});

const linger = suite("switchLingerOn()");

linger("asks for our own user, without a password prompt, and only where it helps", async () => {
  const world = worldOf({ SetUserLinger: true });
  const facts = factsOf();
  await switchLingerOn(facts, world);
  assert.equal(world.asked, ["login1 SetUserLinger [1000,true,false]"]);
  assert.equal([facts.linger, facts.lingerSwitchedOn, chooseLaunch(facts).verdict.words], ["yes", true, "yes"]);
  for (const changes of [
    { linger: "yes" },
    { killed: "no" },
    { systemd: false, place: { kind: "none" } },
  ] as Partial<Facts>[]) {
    const other = worldOf({ SetUserLinger: true });
    await switchLingerOn(factsOf(changes), other);
    assert.equal(other.asked, [], JSON.stringify(changes));
  }
});

linger("keeps the refusal in its words", async () => {
  const facts = factsOf();
  await switchLingerOn(facts, worldOf({}));
  assert.equal([facts.linger, facts.lingerRefused, facts.lingerSwitchedOn], ["no", "nobody is there", undefined]);
});

const launch = suite("launchDaemon()");

interface Manager {
  /** How often it refuses first. */
  refusals: number;
  why?: string;
}

/** By a user manager that refuses so often, as it does while it is starting, and then moves the process. */
async function launchBy(
  { refusals, why = "connection refused" }: Manager,
  changes: Partial<Facts>,
  then = "",
): Promise<{ asked: string[]; facts: Facts; handed: Facts; name: string; pid: number }> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-launch-"));
  try {
    const asked: string[] = [];
    let name = "";
    const world: World = {
      ...realWorld(),
      exists: () => true,
      readFile: () =>
        `0::/user.slice/user-1000.slice/${name === "" ? "session-3.scope" : `user@1000.service/app.slice/${name}`}\n`,
      ask: async (whom, calls) =>
        calls.map(({ method, values }): BusAnswer => {
          if (whom === "system" || method !== "StartTransientUnit") return { problem: "not asked for" };
          asked.push((values![2] as [string, unknown][]).map(([property]) => property).join(" "));
          if (asked.length <= refusals) return { problem: why };
          name = values![0] as string;
          return { value: "/job/1" };
        }),
    };
    const facts = factsOf({ uid: process.getuid!(), scope: "unknown", ...changes });
    const command = [
      "/bin/sh",
      "-c",
      `cat <&3 >'${directory}/taken'; echo '{"ok":true,"pid":'$$',"instance":"i"}' >&4; ${then}`,
    ];
    const { instance, pid } = await launchDaemon(
      { command, handover: { token: "t" }, log: join(directory, "log") },
      facts,
      undefined,
      world,
    );
    assert.is(instance, "i");
    const handed = JSON.parse(readFileSync(join(directory, "taken"), "utf8")) as { token: string; facts: Facts };
    assert.is(handed.token, "t");
    return { asked, facts, handed: handed.facts, name, pid };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

for (const [lingering, refusals, tries, made] of [
  ["yes", 0, 1, true],
  ["no", 0, 1, true],
  ["yes", 3, 4, true],
  ["no", 1, 1, false],
] as const) {
  launch(
    `${made ? `makes the scope at try ${tries}` : "detaches"}, when the user manager refuses ${refusals} times, and lingering is ${lingering === "yes" ? "on" : "off"}`,
    async () => {
      const { asked, facts, handed, name } = await launchBy({ refusals }, { linger: lingering });
      assert.equal(
        [asked.length, facts.scope, facts.scopeProblem, name !== ""],
        [tries, made ? "yes" : "no", made ? undefined : "connection refused", made],
      );
      assert.equal(handed, facts, "the daemon is told what was found");
      if (made) assert.match(name, /^holdfast-\d+-\w+\.scope$/);
    },
  );
}

launch("detaches after a while, when the user manager of a lingering user only refuses", async () => {
  const { asked, facts } = await launchBy({ refusals: Infinity }, { linger: "yes" });
  assert.ok(asked.length > 3);
  assert.equal([facts.scope, facts.scopeProblem], ["no", "connection refused"]);
});

launch("leaves out what the user manager does not know: it refuses the call for it", async () => {
  const { asked, facts } = await launchBy(
    { refusals: 1, why: "Cannot set property OOMPolicy, or unknown property." },
    {},
  );
  assert.equal(asked, ["PIDs TimeoutStopUSec CollectMode OOMPolicy", "PIDs TimeoutStopUSec CollectMode"]);
  assert.equal([facts.scope, facts.scopeProblem], ["yes", undefined]);
});

launch("leaves nothing open: who has launched a daemon can end", async () => {
  const open = () =>
    process
      .getActiveResourcesInfo()
      .filter((kind) => /Pipe|Process/.test(kind))
      .sort();
  await sleep(200); // what others have left closes
  const before = open();
  const { pid } = await launchBy({ refusals: 0 }, {}, "exec sleep 30");
  try {
    await sleep(200);
    assert.equal(open(), before);
  } finally {
    process.kill(pid, "SIGKILL");
  }
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

for (const test of [parse, policy, choose, probe, linger, launch, signals]) test.run();
