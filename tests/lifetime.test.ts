/** lifetime.ts with plain values: every row of the table of places, with facts as they were measured on real hosts. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  chooseLaunch, describeVerdict, judgePlace, judgePolicy, judgeSignals, launchDaemon, parsePlace, parsePolicy, placeOf, probeHost, realWorld, scopeCommand, switchLingerOn,
} from "../lifetime.ts";
import type { CommandResult, Facts, Place, World } from "../lifetime.ts";

const session: Place = { kind: "session", owner: 1000, unit: "session-3.scope" };
const scope: Place = { kind: "user-manager", owner: 1000, unit: "run-r29.scope" };
const perConnection = "sshd@7-10.0.0.1:22-10.0.0.2:5000.service";

const factsOf = (changes: Partial<Facts> = {}): Facts => ({
  uid: 1000, user: "dev", systemd: true, systemdVersion: 252, place: session, killed: "yes", policy: "KillUserProcesses=yes", stopDelayUs: 10_000_000,
  linger: "no", scope: "yes", ...changes,
});

const parse = suite("parsePlace()");

const cgroups: [string, string, Place][] = [
  ["a session, unified", "0::/user.slice/user-1000.slice/session-3.scope\n", { kind: "session", owner: 1000, unit: "session-3.scope" }],
  ["a session of a service's login", "0::/user.slice/user-1001.slice/session-c1.scope\n", { kind: "session", owner: 1001, unit: "session-c1.scope" }],
  ["a session, hybrid", "9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n8:pids:/\n0::/user.slice/user-1000.slice/session-3.scope\n", session],
  ["a session, legacy", "9:name=systemd:/user.slice/user-1000.slice/session-3.scope\n1:cpu:/\n0::/\n", session],
  ["a scope of the user manager", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r29.scope\n", scope],
  ["a scope, 257", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-p148-i97127.scope\n", { kind: "user-manager", owner: 1000, unit: "run-p148-i97127.scope" }],
  ["a tmux pane", "0::/user.slice/user-1000.slice/user@1000.service/tmux-spawn-1f.scope\n", { kind: "user-manager", owner: 1000, unit: "tmux-spawn-1f.scope" }],
  ["the user manager itself", "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", { kind: "user-manager", owner: 1000, unit: "init.scope" }],
  ["sshd without PAM", "0::/system.slice/ssh.service\n", { kind: "unit", unit: "ssh.service" }],
  ["sshd per connection", `0::/system.slice/system-sshd.slice/${perConnection}\n`, { kind: "unit", unit: perConnection }],
  ["a container", "0::/\n", { kind: "none" }],
  ["a container, hybrid", "9:name=systemd:/\n8:pids:/\n0::/\n", { kind: "none" }],
  ["docker in the host's view", "0::/docker/4f2a\n", { kind: "none" }],
  ["nothing that is known", "", { kind: "unknown" }],
  ["a controller's path, which says nothing", "4:memory:/user.slice/user-1000.slice/session-3.scope\n0::/\n", { kind: "none" }],
];
for (const [name, text, place] of cgroups) parse(`reads ${name}`, () => assert.equal(parsePlace(text), place));

parse("is not asked where systemd is not the init: the cgroups of another mean nothing", () => {
  const world = { exists: () => false, readFile: () => "0::/user.slice/user-1000.slice/session-3.scope\n" };
  assert.equal(placeOf("self", world), { kind: "none" });
});

const policy = suite("judgePolicy()");

policy("reads the four properties as busctl prints them", () => {
  assert.equal(parsePolicy('b true\nas 0\nas 1 "dev"\nt 10000000\n'), { killUserProcesses: true, only: [], exclude: ["dev"], stopDelayUs: 10_000_000 });
  assert.equal(parsePolicy('b false\nas 2 "a" "b"\nas 0\nt 18446744073709551615\n'), { killUserProcesses: false, only: ["a", "b"], exclude: [], stopDelayUs: "infinity" });
  assert.equal(parsePolicy("nonsense"), { stopDelayUs: undefined });
});

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
policy("does not know without the settings", () => assert.is(judgePolicy({}, "dev", 1000)[0], "unknown"));

const choose = suite("chooseLaunch()");

/** What is given, which launch, what --serve says of it, and its warnings. */
const rows: [string, Partial<Facts>, "detach" | "scope", string, string[]][] = [
  ["session, not killed, no linger: not a scope", { killed: "no" }, "detach", "yes", []],
  ["session, not killed, linger", { killed: "no", linger: "yes" }, "detach", "yes", []],
  ["session, killed, linger", { linger: "yes" }, "scope", "yes", []],
  ["session, killed, stop delay infinite", { stopDelayUs: "infinity" }, "scope", "yes", []],
  ["session, killed, no linger", {}, "scope", "until about 10 s after your last session ends", ["ends-after-last-logout"]],
  ["session, killed, no linger, stop delay 1 s", { stopDelayUs: 1_000_000 }, "scope", "until about 1 s after your last session ends", ["ends-after-last-logout"]],
  ["session, killed, linger refused", { lingerRefused: "Access denied" }, "scope", "until about 10 s after your last session ends", ["ends-after-last-logout"]],
  ["session, killed, linger, no scope", { linger: "yes", scope: "no", scopeProblem: "it hangs" }, "detach", "no", ["ends-with-session"]],
  ["session, killed, no linger, no scope", { scope: "no" }, "detach", "no", ["ends-with-session"]],
  ["session, unknown, no linger", { killed: "unknown" }, "detach", "unknown", ["may-end-with-session"]],
  ["session, unknown, linger", { killed: "unknown", linger: "yes" }, "scope", "yes", []],
  ["session, unknown, linger unknown", { killed: "unknown", linger: "unknown" }, "detach", "unknown", ["may-end-with-session"]],
  ["session, killed, linger unknown", { linger: "unknown" }, "scope", "unknown", ["may-end-with-session"]],
  ["another's session, killed, no manager of ours", { place: { ...session, owner: 1001 }, owner: "ann", scope: "no" }, "detach", "no", ["ends-with-session"]],
  ["another's session, killed, we linger", { place: { ...session, owner: 1001 }, owner: "ann", linger: "yes" }, "scope", "yes", []],
  ["user manager, linger", { place: scope, linger: "yes" }, "detach", "yes", []],
  ["user manager, no linger", { place: scope, killed: "no", policy: "KillUserProcesses=no" }, "detach", "until about 10 s after your last session ends", ["ends-after-last-logout"]],
  ["another's user manager, lingering", { place: { ...scope, owner: 1001 }, owner: "ann", ownerLinger: "yes", scope: "no" }, "detach", "yes", []],
  ["another's user manager, not lingering", { place: { ...scope, owner: 1001 }, owner: "ann", ownerLinger: "no", linger: "yes", scope: "no" }, "detach", "until about 10 s after your last session ends", ["ends-after-last-logout"]],
  ["sshd without PAM", { place: { kind: "unit", unit: "ssh.service" }, killMode: "process", scope: "no" }, "detach", "yes", []],
  ["cron", { place: { kind: "unit", unit: "cron.service" }, killMode: "control-group", scope: "no" }, "detach", "yes", []],
  ["sshd per connection, no linger", { place: { kind: "unit", unit: perConnection }, killMode: "control-group", scope: "no" }, "detach", "no", ["ends-with-connection"]],
  ["sshd per connection, linger", { place: { kind: "unit", unit: perConnection }, killMode: "control-group", linger: "yes" }, "scope", "yes", []],
  ["sshd per connection, KillMode=process", { place: { kind: "unit", unit: perConnection }, killMode: "process", scope: "no" }, "detach", "yes", []],
  ["no systemd", { systemd: false, place: { kind: "none" }, scope: "no" }, "detach", "yes", []],
  ["systemd 255, linger", { linger: "yes", systemdVersion: 255 }, "scope", "yes", ["lingering-unreliable"]],
  ["systemd 257, linger", { linger: "yes", systemdVersion: 257 }, "scope", "yes", []],
];
for (const [name, changes, launch, words, warnings] of rows) {
  choose(`takes the right place: ${name}`, () => {
    const choice = chooseLaunch(factsOf(changes));
    assert.is(choice.launch, launch);
    assert.is(choice.verdict.words, words);
    assert.equal(choice.verdict.warnings.map((warning) => warning.name), warnings);
    for (const { message, hint } of choice.verdict.warnings) assert.ok(message.length > 20 && hint.length > 10);
  });
}

choose("names cause and command in its warnings", () => {
  const warningOf = (changes: Partial<Facts>) => chooseLaunch(factsOf(changes)).verdict.warnings[0]!;
  assert.match(warningOf({}).message, /KillUserProcesses=yes.*dev is not lingering/);
  assert.is(warningOf({}).hint, "loginctl enable-linger dev");
  assert.match(warningOf({ lingerRefused: "Access denied" }).message, /could not be switched on: Access denied/);
  assert.match(warningOf({ lingerRefused: "Access denied" }).hint, /^ask an administrator for: loginctl enable-linger dev$/);
  assert.match(warningOf({ scope: "no", scopeProblem: "it hangs" }).message, /no scope could be made to leave it: it hangs/);
  assert.is(warningOf({ scope: "no", scopeProblem: "no bus", manager: "inactive" }).hint, "loginctl enable-linger dev", "lingering starts what is merely not there");
  for (const changes of [{ manager: "masked" }, { manager: "active", linger: "yes" }, { scopeProblem: "systemd-run is not installed" }] as Partial<Facts>[]) {
    assert.match(warningOf({ scope: "no", owner: "ann", ...changes }).hint, /^as an administrator: .*KillExcludeUsers=root ann\\n/, JSON.stringify(changes));
  }
});

choose("names the unit whose stop would end it, unless that unit leaves its processes alone", () => {
  const where = (killMode: string) => judgePlace({ kind: "unit", unit: "cron.service" }, factsOf({ killMode })).where;
  assert.match(where("control-group"), /cron\.service/);
  assert.not.match(where("process"), /cron\.service/);
});

choose("is described in full for server.capabilities", () => {
  assert.equal(describeVerdict(judgePlace(scope, factsOf({ linger: "yes" }))), {
    placement: "user-manager", unit: "run-r29.scope", survivesLogout: "yes", words: "yes", where: "in run-r29.scope under your user manager", warnings: [],
  });
});

/** A host that answers commands from a table, by the first word and the last; what is not in it is not installed. */
function worldOf(answers: Record<string, Partial<CommandResult>>, files: Record<string, string> = {}): World & { asked: string[] } {
  const asked: string[] = [];
  const all: Record<string, string> = { "/run/systemd/system": "", "/var/lib/systemd": "", "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n", ...files };
  return {
    uid: 1000, user: "dev", asked, exists: (path) => path in all, readFile: (path) => all[path],
    run: async (command) => {
      asked.push(command.join(" "));
      const answer = Object.entries(answers).find(([key]) => command.join(" ").startsWith(key))?.[1];
      return { code: null, stdout: "", stderr: "", ...(answer === undefined ? { problem: "is not installed" } : { code: 0, ...answer }) };
    },
  };
}

const properties = (kill: boolean) => ({ stdout: `b ${kill}\nas 0\nas 0\nt 10000000\n` });
const probe = suite("probeHost()");

probe("measures a whole host; what only a scope needs where it is asked to, or is under a user manager", async () => {
  const world = worldOf({
    "busctl --system get-property": properties(true), "loginctl show-user 1000": { stdout: "yes\n" }, "systemd-run --version": { stdout: "systemd 252 (252.39-1)\n" },
    "systemd-run --user": {},
  });
  assert.equal(await probeHost(world, { tryScope: true }), { ...factsOf({ linger: "yes" }), scope: "yes" });
  const { systemdVersion: _, ...withoutScope } = factsOf({ linger: "yes" });
  assert.equal(await probeHost(world), { ...withoutScope, scope: "unknown" });
  const managed = { "systemd-run --version": { stdout: "systemd 255 (255.4)\n" } };
  assert.is((await probeHost(worldOf(managed, { "/proc/self/cgroup": "0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope\n" }))).systemdVersion, 255);
});

probe("does not try a scope, unless it is asked to", async () => {
  const answers = { "busctl --system get-property": properties(false), "loginctl show-user 1000": { stdout: "no\n" } };
  const world = worldOf(answers);
  assert.is((await probeHost(world)).scope, "unknown");
  assert.is(world.asked.filter((command) => command.startsWith("systemd-run --user")).length, 0);
  assert.is((await probeHost(worldOf(answers), { tryScope: true })).scope, "no");
});

probe("asks loginctl for the policy where there is no busctl, and a file for lingering where there is neither", async () => {
  const byLoginctl = await probeHost(worldOf({ "loginctl show-user -p KillUserProcesses": { stdout: "yes\n" }, "loginctl show-user 1000": { code: 1 } }));
  assert.equal([byLoginctl.killed, byLoginctl.linger], ["yes", "no"]);
  const byFile = await probeHost(worldOf({}, { "/var/lib/systemd/linger/dev": "" }));
  assert.equal([byFile.killed, byFile.linger], ["unknown", "yes"]);
});

probe("takes the owner of the session, not our user, and that owner's policy", async () => {
  const world = worldOf({ "busctl --system get-property": properties(true) }, { "/proc/self/cgroup": "0::/user.slice/user-0.slice/session-c1.scope\n", "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n" });
  const { owner, killed } = await probeHost(world);
  assert.equal([owner, killed], ["root", "no"]);
});

probe("tells why a scope cannot be made, in systemd's words", async () => {
  const of = async (answer: Partial<CommandResult>) => (await probeHost(worldOf({ "busctl --system": properties(true), "systemd-run --user": answer }), { tryScope: true })).scopeProblem;
  assert.match((await of({ code: 1, stderr: "Failed to connect to bus: No medium found" })) ?? "", /failed: Failed to connect to bus: No medium found$/);
  assert.match((await of({ code: 1 })) ?? "", /exit code 1, without a reason$/);
  assert.match((await of({ code: null, problem: "did not answer within 2000 ms" })) ?? "", /did not answer within 2000 ms$/);
});

const linger = suite("switchLingerOn()");

linger("asks by name, without a password prompt, and only where it helps", async () => {
  const world = worldOf({ "loginctl --no-ask-password": {} });
  const facts = factsOf();
  await switchLingerOn(facts, world);
  assert.equal(world.asked, ["loginctl --no-ask-password enable-linger dev"]);
  assert.equal([facts.linger, facts.lingerSwitchedOn, chooseLaunch(facts).verdict.words], ["yes", true, "yes"]);
  for (const changes of [{ linger: "yes" }, { killed: "no" }, { systemd: false, place: { kind: "none" } }] as Partial<Facts>[]) {
    const other = worldOf({ "loginctl --no-ask-password": {} });
    await switchLingerOn(factsOf(changes), other);
    assert.equal(other.asked, [], JSON.stringify(changes));
  }
});

linger("keeps the refusal in its words", async () => {
  const facts = factsOf();
  await switchLingerOn(facts, worldOf({ "loginctl --no-ask-password": { code: 1, stderr: "Could not enable linger: Access denied" } }));
  assert.equal([facts.linger, facts.lingerRefused], ["no", "Could not enable linger: Access denied"]);
  await switchLingerOn(facts, worldOf({}));
  assert.is(facts.lingerRefused, "loginctl is not installed");
});

const command = suite("scopeCommand()");

command("uses what the version at hand has: an unknown property or option would be fatal", () => {
  const of = (systemdVersion: number) => scopeCommand(["node", "a $b"], factsOf({ systemdVersion })).join(" ");
  assert.is(of(247), "systemd-run --user --scope --quiet --collect -p TimeoutStopSec=10 -- node a $b");
  assert.is(of(252), "systemd-run --user --scope --quiet --collect -p TimeoutStopSec=10 -p OOMPolicy=continue -- node a $b");
  assert.is(of(253), of(252));
  assert.is(of(254), "systemd-run --user --scope --quiet --collect -p TimeoutStopSec=10 -p OOMPolicy=continue --expand-environment=no -- node a $b");
  assert.is(of(262), of(254));
});

const launch = suite("launchDaemon()");

/** By a systemd-run that fails so often, as it does while the user manager is starting, and then runs the command. */
for (const [linger, failures, tries, left] of [
  ["yes", 1, 2, undefined], ["yes", 3, 4, undefined], ["no", 1, 1, /ended with exit code 1: Failed to connect to bus$/], ["yes", 1000, undefined, /Failed to connect to bus$/],
] as const) {
  const name = left === undefined ? `makes the scope at try ${tries}` : "detaches";
  launch(`${name}, when the user manager refuses ${failures} times, and lingering is ${linger === "yes" ? "on" : "off"}`, async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-launch-"));
    const { PATH } = process.env;
    try {
      const [log, tried] = [join(directory, "log"), join(directory, "tried")];
      writeFileSync(join(directory, "systemd-run"), `#!/bin/sh
echo >>'${tried}'
if [ "$(wc -l <'${tried}')" -le ${failures} ]; then echo Failed to connect to bus >&2; exit 1; fi
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
`, { mode: 0o755 });
      process.env.PATH = `${directory}:${PATH}`;
      const facts = factsOf({ linger, uid: process.getuid!() });
      const command = ["/bin/sh", "-c", `cat <&3 >'${directory}/taken'; echo '{"ok":true,"pid":'$$',"instance":"i"}' >&4`];
      const { instance } = await launchDaemon({ command, handover: () => "handed over", log }, facts, undefined, realWorld());
      assert.equal([instance, readFileSync(join(directory, "taken"), "utf8")], ["i", "handed over"]);
      if (tries !== undefined) assert.is(readFileSync(tried, "utf8").length, tries);
      else assert.ok(readFileSync(tried, "utf8").length > 3);
      if (left === undefined) assert.equal([facts.scope, facts.scopeProblem], ["yes", undefined]);
      else assert.match(facts.scopeProblem!, left);
    } finally {
      process.env.PATH = PATH;
      rmSync(directory, { recursive: true });
    }
  });
}

/** By a busctl that moves the daemon, refuses or is silent, on some version of systemd. */
for (const [name, version, answer, calls, launched] of [
  ["moves it, with what 252 knows", 252, { code: 0 }, ["OOMPolicy"], "user-manager"],
  ["moves it by a second call without what 247 does not know", 247, { code: 1, stderr: "Cannot set property OOMPolicy, or unknown property." }, ["OOMPolicy", ""], "user-manager"],
  ["stays where it is when nobody answers, and does not try another way", 252, { code: null, problem: "did not answer within 2000 ms" }, ["OOMPolicy"], "session"],
] as const) {
  launch(`${name}`, async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-launch-"));
    try {
      const asked: string[] = [];
      let unit = "";
      const world: World = {
        ...realWorld(), exists: () => true,
        readFile: () => (unit !== "" ? `0::/user.slice/user-1000.slice/user@1000.service/app.slice/${unit}\n` : "0::/user.slice/user-1000.slice/session-3.scope\n"),
        run: async ([program, ...args]) => {
          const result = { code: 0, stdout: "", stderr: "" };
          if (program === "systemd-run") return { ...result, stdout: `systemd ${version} (${version}.1)\n` };
          if (program !== "busctl") return { ...result, code: 1 };
          asked.push(args.includes("OOMPolicy") ? "OOMPolicy" : "");
          const outcome = args.includes("OOMPolicy") ? { ...result, ...answer } : result;
          if (outcome.code === 0) unit = args.find((word) => word.endsWith(".scope"))!;
          return outcome;
        },
      };
      const { systemdVersion: _, ...facts } = factsOf({ linger: "no", uid: process.getuid!() });
      const command = ["/bin/sh", "-c", `cat <&3 >'${directory}/taken'; echo '{"ok":true,"pid":'$$',"instance":"i"}' >&4`];
      await launchDaemon({ command, handover: (measured) => JSON.stringify(measured), log: join(directory, "log") }, facts, undefined, world);
      assert.equal(asked, calls);
      const handed = JSON.parse(readFileSync(join(directory, "taken"), "utf8")) as Facts;
      assert.equal([handed.scope, handed.systemdVersion, unit !== ""], [launched === "session" ? "no" : "yes", version, launched === "user-manager"]);
      assert.is(handed.scopeProblem, launched === "session" ? "busctl did not answer within 2000 ms" : undefined);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}

const signals = suite("judgeSignals()");
for (const [seen, reason] of [
  [["SIGTERM"], "terminated"], [["SIGINT"], "terminated"], [["SIGTERM", "SIGHUP"], "terminated"],
  [["SIGTERM", "SIGCONT"], "user-manager-stopped"], [["SIGHUP", "SIGCONT", "SIGTERM"], "killed-at-logout"],
] as const) {
  signals(`takes ${seen.join(" + ")} for ${reason}`, () => {
    const judged = judgeSignals(new Set(seen));
    assert.is(judged.reason, reason);
    for (const signal of seen) assert.match(judged.detail, signal);
  });
}

for (const test of [parse, policy, choose, probe, linger, command, launch, signals]) test.run();
