/** lifetime.ts with plain values: every row of the table of places, with facts as they were measured on real hosts; and who ended a daemon. */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { CommandResult, Facts, Place, World } from "../host.ts";
import { chooseLaunch, describeVerdict, judgeEnd, judgePlace, readOomKills, switchLingerOn } from "../lifetime.ts";
import type { EndReason } from "../record.ts";
import { factsOf, perConnection, scope, session } from "./facts.ts";

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
    "a service of the system, no linger",
    { place: { kind: "unit", unit: "deploy.service" }, killMode: "control-group" },
    "detach",
    "until deploy.service ends",
    ["ends-with-unit"],
  ],
  [
    "a service of the system, linger",
    { place: { kind: "unit", unit: "deploy.service" }, killMode: "mixed", linger: "yes" },
    "scope",
    "yes",
    [],
  ],
  [
    "a service of the system, linger, no scope",
    { place: { kind: "unit", unit: "deploy.service" }, killMode: "control-group", linger: "yes", scope: "no" },
    "detach",
    "until deploy.service ends",
    ["ends-with-unit"],
  ],
  [
    "a service of the system that leaves its processes",
    { place: { kind: "unit", unit: "deploy.service" }, killMode: "process" },
    "detach",
    "yes",
    [],
  ],
  [
    "a service of the system, KillMode= unknown",
    { place: { kind: "unit", unit: "deploy.service" }, scope: "no" },
    "detach",
    "unknown",
    ["ends-with-unit"],
  ],
  [
    "a scope of the system",
    { place: { kind: "unit", unit: "docker-4f2a.scope" }, killMode: "control-group" },
    "detach",
    "yes",
    [],
  ],
  [
    "a service of the user manager, no linger",
    { place: { ...scope, unit: "build.service" }, killMode: "control-group" },
    "detach",
    "until build.service ends",
    ["ends-with-unit", "ends-after-last-logout"],
  ],
  [
    "a service of the user manager, linger",
    { place: { ...scope, unit: "build.service" }, killMode: "control-group", linger: "yes" },
    "scope",
    "yes",
    [],
  ],
  [
    "a service of the user manager that leaves its processes, no linger",
    { place: { ...scope, unit: "build.service" }, killMode: "process" },
    "detach",
    "until about 10 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "a session with a terminal, not killed, idle stop, linger",
    { killed: "no", idleStopUs: 600e6, linger: "yes" },
    "scope",
    "yes",
    [],
  ],
  [
    "a session with a terminal, not killed, idle stop, no linger",
    { killed: "no", idleStopUs: 600e6 },
    "detach",
    "until this session has been idle for 10 min",
    ["ends-when-idle"],
  ],
  [
    "a session with a terminal, killed, idle stop, no linger",
    { idleStopUs: 600e6 },
    "scope",
    "until about 10 s after your last session ends",
    ["ends-after-last-logout"],
  ],
  [
    "a session with a terminal, unknown, idle stop, no linger",
    { killed: "unknown", idleStopUs: 15e6 },
    "detach",
    "until this session has been idle for 15 s",
    ["ends-when-idle", "may-end-with-session"],
  ],
  [
    "sshd without PAM, RemoveIPC",
    { place: { kind: "unit", unit: "ssh.service" }, killMode: "process", removesIpc: true },
    "detach",
    "yes",
    ["ipc-removed"],
  ],
  [
    "sshd without PAM, RemoveIPC, root",
    { uid: 0, place: { kind: "unit", unit: "ssh.service" }, killMode: "process", removesIpc: true },
    "detach",
    "yes",
    [],
  ],
  [
    "sshd without PAM, RemoveIPC, linger",
    { linger: "yes", place: { kind: "unit", unit: "ssh.service" }, killMode: "process", removesIpc: true },
    "detach",
    "yes",
    [],
  ],
  [
    "a batch job, linger: it is not left",
    { place: { kind: "job", unit: "Slurm job 7" }, linger: "yes" },
    "detach",
    "until Slurm job 7 ends",
    ["ends-with-job"],
  ],
  [
    "elogind, killed",
    { systemd: false, scope: "no", place: { kind: "elogind", unit: "session 3" } },
    "detach",
    "no",
    ["ends-with-session"],
  ],
  [
    "elogind, not killed",
    { systemd: false, scope: "no", killed: "no", place: { kind: "elogind", unit: "session 3" } },
    "detach",
    "yes",
    [],
  ],
  [
    "a scope that is part of the desktop, linger",
    { place: scope, linger: "yes", bound: { unit: scope.unit, to: "graphical-session.target" } },
    "scope",
    "yes",
    [],
  ],
  [
    "a scope that has a time, linger, no scope",
    { place: scope, linger: "yes", scope: "no", bound: { unit: scope.unit, to: "", afterUs: 3600e6 } },
    "detach",
    "until run-r29.scope is 60 min old",
    ["ends-with-unit"],
  ],
  [
    "a scope, linger, where another one has a time",
    { place: scope, linger: "yes", bound: { unit: "run-r28.scope", to: "", afterUs: 3600e6 } },
    "detach",
    "yes",
    [],
  ],
  [
    "a rootless container",
    { rootless: true, systemd: false, scope: "no", place: { kind: "none" } },
    "detach",
    "unknown",
    ["ends-with-container"],
  ],
  [
    "WSL, not killed",
    { wsl: true, killed: "no" },
    "detach",
    "until WSL stops this distribution, seconds after its last window is closed",
    ["ends-with-wsl"],
  ],
  [
    "WSL, no systemd",
    { wsl: true, systemd: false, scope: "no", place: { kind: "none" } },
    "detach",
    "until WSL stops this distribution, seconds after its last window is closed",
    ["ends-with-wsl"],
  ],
  ["systemd-homed, not killed", { homed: true, killed: "no" }, "detach", "unknown", ["home-is-locked"]],
  ["systemd-homed, killed, linger", { homed: true, linger: "yes" }, "scope", "unknown", ["home-is-locked"]],
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

choose("advises what helps in that very case", () => {
  const hintOf = (changes: Partial<Facts>): string => chooseLaunch(factsOf(changes)).verdict.warnings[0]!.hint;
  const service: Place = { kind: "unit", unit: "deploy.service" };
  const exclude = /^as an administrator: .*KillExcludeUsers=root dev/;
  const hints: [string, Partial<Facts>, RegExp][] = [
    ["no user's bus", { scope: "no", lacksBus: true }, /^as an administrator: apt-get install dbus-user-session$/],
    ["a chroot", { systemd: false, killed: "unknown", scope: "no" }, /^start it outside of this chroot or container/],
    [
      "elogind",
      { systemd: false, scope: "no", place: { kind: "elogind", unit: "session 3" } },
      /\/etc\/elogind\/.*loginctl reload$/,
    ],
    ["systemd-homed: lingering is not advised", { homed: true }, exclude],
    ["idle", { killed: "no", idleStopUs: 6e8 }, /^loginctl enable-linger dev$/],
    ["idle, no scope", { killed: "no", idleStopUs: 6e8, scope: "no" }, /^start it without a terminal/],
    [
      "a unit",
      { place: service, killMode: "control-group" },
      /^loginctl enable-linger dev; or KillMode=process .* deploy\.service$/,
    ],
    [
      "a unit, lingering",
      { place: service, killMode: "control-group", linger: "yes", scope: "no" },
      /^KillMode=process in .* deploy\.service$/,
    ],
  ];
  for (const [name, changes, expected] of hints) assert.match(hintOf(changes), expected, name);
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

/** A host whose tools answer from a table, by their command lines; what is not in it is not installed. It notes what it was asked. */
function worldOf(answers: Record<string, CommandResult>): World & { asked: string[] } {
  const asked: string[] = [];
  return {
    uid: 1000,
    user: "dev",
    asked,
    exists: () => true,
    readFile: () => undefined,
    run: async (command) => {
      asked.push(command.join(" "));
      return answers[command.join(" ")] ?? { code: null, stdout: "", stderr: "", problem: "is not installed" };
    },
  };
}

const done = (stdout: string): CommandResult => ({ code: 0, stdout, stderr: "" });
const refused = (stderr: string): CommandResult => ({ code: 1, stdout: "", stderr: `${stderr}\n` });

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

const userService: Place = { kind: "user-manager", owner: 1000, unit: "build.service" };
const unit: Place = { kind: "unit", unit: "deploy.service" };

interface Moment {
  /** The daemon is what the unit runs. */
  isMain?: boolean;
  /** `systemctl is-system-running`. */
  host?: string;
  /** ActiveState= by unit. */
  states?: Record<string, string>;
  lingers?: boolean;
  /** logind's file of the user. */
  user?: string;
  /** systemctl does not answer in time. */
  silent?: boolean;
}

const worldAt = ({
  isMain = false,
  host = "running",
  states = {},
  lingers = false,
  user = "STATE=closing\n",
  silent = false,
}: Moment): World => ({
  uid: 1000,
  user: "dev",
  exists: (path) => lingers && path === "/var/lib/systemd/linger/dev",
  readFile: (path) => (path === "/run/systemd/users/1000" ? user : undefined),
  run: async (command) => {
    if (silent) return { code: null, stdout: "", stderr: "" };
    if (command.includes("is-system-running")) return { code: 1, stdout: `${host}\n`, stderr: "" };
    const pid = isMain ? process.pid : 1;
    return { code: 0, stdout: `MainPID=${pid}\nActiveState=${states[command.at(-1)!] ?? "active"}\n`, stderr: "" };
  },
});

const end = suite("judgeEnd()");
const byLogind = ["SIGHUP", "SIGCONT", "SIGTERM"];
const bySystemd = ["SIGTERM", "SIGCONT"];
const managerStops = { "user@1000.service": "deactivating", "run-r29.scope": "deactivating" };

const signalRows: [string, string[], Place, Partial<Facts>, Moment, EndReason, RegExp][] = [
  ["kill", ["SIGTERM"], session, {}, {}, "terminated", /^SIGTERM: by a person or a program$/],
  ["Ctrl-C", ["SIGINT"], session, {}, {}, "terminated", /^SIGINT: /],
  ["kill, and a terminal that goes", ["SIGTERM", "SIGHUP"], session, {}, {}, "terminated", /by a person/],
  ["timeout(1) in a session", bySystemd, session, {}, {}, "terminated", /by a person/],
  ["timeout(1) in a scope", bySystemd, scope, {}, {}, "terminated", /by a person/],
  ["timeout(1) in a service", bySystemd, unit, {}, {}, "terminated", /by a person/],
  ["timeout(1) in a container", bySystemd, { kind: "none" }, { systemd: false }, {}, "terminated", /by a person/],
  ["a logout", byLogind, session, {}, {}, "killed-at-logout", /as its session ended$/],
  ["a logout, policy unknown", byLogind, session, { killed: "unknown" }, {}, "killed-at-logout", /session/],
  ["the idle stop", byLogind, session, { killed: "no", idleStopUs: 600e6 }, {}, "idle-stop", /idle for 10 min$/],
  [
    "terminate-session",
    byLogind,
    session,
    { killed: "no" },
    {},
    "unit-stopped",
    /systemd-logind, as its session was ended/,
  ],
  [
    "the last logout",
    bySystemd,
    scope,
    {},
    { states: managerStops },
    "user-manager-stopped",
    /stopped after the last logout$/,
  ],
  [
    "the last logout, where systemctl does not answer in time",
    bySystemd,
    scope,
    {},
    { silent: true },
    "user-manager-stopped",
    /stopped after the last logout$/,
  ],
  [
    "timeout(1) in a scope, where systemctl does not answer in time",
    bySystemd,
    scope,
    {},
    { silent: true, user: "STATE=active\nSESSIONS=3\n" },
    "terminated",
    /by a person/,
  ],
  [
    "restart of the user manager, lingering",
    bySystemd,
    scope,
    { linger: "yes" },
    { states: managerStops, lingers: true },
    "user-manager-ended",
    /somebody stopped the user manager$/,
  ],
  [
    "restart of the user manager, logged in",
    bySystemd,
    scope,
    {},
    { states: managerStops, user: "STATE=active\nSESSIONS=3\n" },
    "user-manager-ended",
    /somebody/,
  ],
  [
    "systemctl --user stop of our scope",
    bySystemd,
    scope,
    { linger: "yes" },
    { states: { "run-r29.scope": "deactivating" }, lingers: true },
    "terminated",
    /as run-r29\.scope was stopped$/,
  ],
  [
    "the end of a service of the user manager",
    bySystemd,
    userService,
    { killMode: "control-group" },
    { states: { "build.service": "deactivating" } },
    "unit-stopped",
    /as build\.service ended$/,
  ],
  [
    "the end of a service of the system",
    bySystemd,
    unit,
    { killMode: "control-group" },
    { states: { "deploy.service": "deactivating" } },
    "unit-stopped",
    /as deploy\.service ended$/,
  ],
  [
    "systemctl stop of a service that runs it in the foreground",
    bySystemd,
    unit,
    { killMode: "control-group" },
    { isMain: true, states: { "deploy.service": "deactivating" } },
    "terminated",
    /as deploy\.service was stopped$/,
  ],
  [
    "systemctl --user stop of a scope that it was put into from a service",
    bySystemd,
    scope,
    { killMode: "control-group", linger: "yes" },
    { states: { "run-r29.scope": "deactivating" }, lingers: true },
    "terminated",
    /as run-r29\.scope was stopped$/,
  ],
  ["poweroff, in a session", byLogind, session, {}, { host: "stopping" }, "host-shutdown", /host shuts down$/],
  [
    "poweroff, in a scope",
    bySystemd,
    scope,
    {},
    { host: "stopping", states: managerStops },
    "host-shutdown",
    /host shuts down$/,
  ],
  ["poweroff, in a service", bySystemd, unit, {}, { host: "stopping" }, "host-shutdown", /host shuts down$/],
];
for (const [what, signals, place, changes, moment, reason, detail] of signalRows) {
  end(`takes for ${reason}: ${what}`, async () => {
    const found = await judgeEnd(new Set(signals), place, factsOf({ place, ...changes }), worldAt(moment));
    assert.is(found.reason, reason);
    assert.match(found.detail, detail);
    for (const signal of signals) assert.match(found.detail, signal);
  });
}

end("asks nobody for a SIGTERM alone: it is to be gone soon", async () => {
  const world: World = { ...worldAt({}), run: () => assert.unreachable("it asked") as never };
  assert.is((await judgeEnd(new Set(["SIGTERM"]), scope, factsOf({ place: scope }), world)).reason, "terminated");
});

linger("refuses for a home that it cannot unlock", async () => {
  const facts = factsOf({ homed: true });
  await switchLingerOn(facts, worldOf({}));
  assert.match(facts.lingerRefused!, /lingering cannot unlock it/);
});

end("reads how often the kernel has killed for want of memory", () => {
  assert.is(
    readOomKills(() => "nr_free_pages 1\noom_kill 17\ndrop_pagecache 0\n"),
    17,
  );
  assert.is(
    readOomKills(() => undefined),
    undefined,
  );
});

for (const test of [choose, linger, end]) test.run();
