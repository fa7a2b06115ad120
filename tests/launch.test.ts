/** launch.ts with a systemd-run of our own in PATH: what is started, where, what it is handed, and what happens when there is no scope. */

import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Failure } from "../failure.ts";
import type { CommandResult, Facts, World } from "../host.ts";
import { realWorld } from "../host.ts";
import { launchDaemon, moveRunning } from "../launch.ts";
import type { Launch } from "../lifetime.ts";
import { sleep } from "./daemon.ts";

const uid = process.getuid!();

const factsOf = (changes: Partial<Facts>): Facts => ({
  uid,
  user: "dev",
  systemd: true,
  systemdVersion: 252,
  place: { kind: "session", owner: uid, unit: "session-3.scope" },
  killed: "yes",
  policy: "KillUserProcesses=yes",
  stopDelayUs: 10_000_000,
  linger: "no",
  scope: "unknown",
  ...changes,
});

interface Options {
  /** What the tool does before it executes what stands after "--": shell, with $n, the number of this call. */
  systemdRun?: string;
  facts?: Partial<Facts>;
  only?: Launch;
  /** What the daemon does after its word. */
  last?: string;
  /** What it says instead; nothing where this is empty. */
  says?: string;
  /** A word more in its command line. */
  word?: string;
}

interface Launched {
  facts: Facts;
  /** What the daemon was handed. */
  handed: { token: string; facts: Facts };
  /** The command lines of systemd-run, each up to "--". */
  asked: string[];
  pid: number;
}

/** Launches a shell that is a daemon as far as this module knows, under a systemd-run that is a script. */
async function launchBy({
  systemdRun = "",
  facts: changes = {},
  only,
  last = "",
  says,
  word = "w",
}: Options): Promise<Launched> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-launch-"));
  const path = process.env.PATH;
  try {
    const tool = join(directory, "systemd-run");
    const take = 'options=; while [ "$1" != -- ]; do options="$options $1"; shift; done; shift';
    const count = `echo "$options" >>'${directory}/asked'; n=$(wc -l <'${directory}/asked')`;
    writeFileSync(tool, `#!/bin/sh\n${take}\n${count}\n${systemdRun}\nexec "$@"\n`);
    chmodSync(tool, 0o755);
    writeFileSync(join(directory, "asked"), "");
    process.env.PATH = `${directory}:${path}`;
    const facts = factsOf(changes);
    const said = says ?? '{"ok":true,"pid":\'$$\',"instance":"i"}';
    const script = `cat <&3 >'${directory}/taken'; ${said === "" ? ":" : `echo '${said}' >&4`}; ${last}`;
    const start = { command: ["/bin/sh", "-c", script, word], handover: { token: "t" }, log: join(directory, "log") };
    const world: World = { ...realWorld(), run: async () => ({ code: 0, stdout: "ActiveState=active\n", stderr: "" }) };
    const { pid } = await launchDaemon(start, facts, only, world);
    const handed = JSON.parse(readFileSync(join(directory, "taken"), "utf8"));
    const asked = readFileSync(join(directory, "asked"), "utf8")
      .split("\n")
      .slice(0, -1)
      .map((line) => line.trim());
    return { facts, handed, asked, pid };
  } finally {
    process.env.PATH = path;
    rmSync(directory, { recursive: true });
  }
}

const launch = suite("launchDaemon()");

launch("makes a scope around the daemon, whose pid it has, and hands over through a descriptor", async () => {
  const { facts, handed, asked, pid } = await launchBy({ facts: { linger: "yes" } });
  assert.equal(asked, ["--user --scope --quiet --collect --property=TimeoutStopSec=10 --property=OOMPolicy=continue"]);
  assert.is(facts.scope, "yes");
  assert.equal(handed, { token: "t", facts });
  assert.ok(pid > 1);
});

launch("leaves out what an older user manager does not know", async () => {
  const old = await launchBy({ facts: { systemdVersion: 247 } });
  assert.equal(old.asked, ["--user --scope --quiet --collect --property=TimeoutStopSec=10"]);
  // of a newer tool with an older manager: one that has not been executed anew after an update
  const refuses = 'case "$options" in *OOMPolicy*) echo "Unknown assignment: OOMPolicy=continue" >&2; exit 1 ;; esac';
  const mixed = await launchBy({ systemdRun: refuses });
  assert.is(mixed.asked.length, 2);
  assert.not.match(mixed.asked[1]!, "OOMPolicy");
  assert.is(mixed.facts.scope, "yes");
});

launch("has no $ expanded, where systemd would: from 254 on there is an option for it", async () => {
  const of = async (systemdVersion: number, word: string) =>
    (await launchBy({ facts: { systemdVersion }, word })).asked[0]!;
  assert.match(await of(262, "a$b"), / --expand-environment=no$/);
  assert.not.match(await of(252, "a$b"), "expand");
});

const cannot = (words: string): string => `echo "${words}" >&2; exit 1`;
const noBus = "Failed to connect to bus: No such file or directory";

for (const [linger, refusals, tries, made] of [
  ["yes", 0, 1, true],
  ["no", 0, 1, true],
  ["yes", 3, 4, true],
  ["no", 1, 1, false],
] as const) {
  const does = made ? `makes the scope at try ${tries}` : "detaches";
  launch(`${does}, when the user manager refuses ${refusals} times, and lingering is ${linger}`, async () => {
    const systemdRun = `[ "$n" -gt ${refusals} ] || { ${cannot(noBus)}; }`;
    const { facts, handed, asked } = await launchBy({ systemdRun, facts: { linger } });
    assert.equal(
      [asked.length, facts.scope, facts.scopeProblem],
      [tries, made ? "yes" : "no", made ? undefined : noBus],
    );
    assert.equal(handed.facts, facts, "the daemon is told what was found");
  });
}

/** What the tool does that makes no scope, and what is said of it. */
const failures: [string, string, string][] = [
  [
    "refuses, 257",
    cannot("Failed to connect to user scope bus via local transport: No such file or directory"),
    "Failed to connect to user scope bus via local transport: No such file or directory",
  ],
  [
    "refuses in colours, 247",
    "printf '\\033[0;1;31mFailed to connect to bus: No medium found\\033[0m\\n' >&2; exit 1",
    "Failed to connect to bus: No medium found",
  ],
  ["fails in silence, as without a system bus", "exit 1", '"systemd-run" ended with exit code 1'],
  ["is killed", "kill -9 $$", '"systemd-run" ended by SIGKILL'],
];
for (const [name, systemdRun, words] of failures) {
  launch(`takes the next best place, and says why, when systemd-run ${name}`, async () => {
    const { facts, handed } = await launchBy({ systemdRun });
    assert.equal([facts.scope, facts.scopeProblem, facts.manager], ["no", words, "active"]);
    assert.equal(handed.facts, facts);
  });
}

launch("takes none but the scope that it was told to take", async () => {
  const failed = await launchBy({ systemdRun: cannot(noBus), only: "scope" }).catch((error: Failure) => error);
  assert.is((failed as Failure).message, `Cannot start in a scope: ${noBus}`);
  const none = await launchBy({ facts: { scope: "no", scopeProblem: "it hangs" }, only: "scope" }).catch(
    (error: Failure) => error,
  );
  assert.is((none as Failure).message, "Cannot start in a scope: it hangs");
});

launch("throws the daemon's own reason, in a scope too, and does not start it twice", async () => {
  for (const only of ["scope", "detach", undefined] as const) {
    const says = '{"ok":false,"exit":75,"message":"Cannot publish","hint":"wait"}';
    const failure = (await launchBy({ says, only }).catch((error: Failure) => error)) as Failure;
    assert.equal([failure.message, failure.exit, failure.hint], ["Cannot publish", 75, "wait"]);
  }
});

launch("tells of a runtime that ends without a word, by what it wrote", async () => {
  const failure = (await launchBy({ says: "", last: "echo node: bad option >&2; exit 9", only: "detach" }).catch(
    (error: Failure) => error,
  )) as Failure;
  assert.match(failure.message, /^Cannot start the daemon: "sh" ended with exit code 9: node: bad option$/);
});

launch("leaves nothing open: who has launched a daemon can end", async () => {
  const open = () =>
    process
      .getActiveResourcesInfo()
      .filter((kind) => /Pipe|Process|Timeout/.test(kind))
      .sort();
  await sleep(200); // what others have left closes
  const before = open();
  const { pid } = await launchBy({ last: "exec sleep 30" });
  try {
    await sleep(200);
    assert.equal(open(), before);
  } finally {
    process.kill(pid, "SIGKILL");
  }
});

const move = suite("moveRunning()");

interface Moved {
  asked: string[];
  facts: Facts;
}

/** By a user manager that answers in turn, and moves the process with its last answer where that is good. */
async function moveBy(answers: CommandResult[], changes: Partial<Facts> = {}, hasBus = true): Promise<Moved> {
  const asked: string[] = [];
  let unit = "session-3.scope";
  const world: World = {
    ...realWorld(),
    exists: () => hasBus,
    readFile: () =>
      `0::/user.slice/user-${uid}.slice/${unit === "session-3.scope" ? unit : `user@${uid}.service/app.slice/${unit}`}\n`,
    run: async (command) => {
      if (command[0] !== "busctl") return { code: 0, stdout: "LoadState=loaded\nActiveState=active\n", stderr: "" };
      asked.push(command.join(" "));
      const answer = answers[Math.min(asked.length, answers.length) - 1]!;
      if (answer.code === 0) unit = command[8]!;
      return answer;
    },
  };
  const facts = factsOf(changes);
  await moveRunning([4711, 4712], facts, world);
  return { asked, facts };
}

const good: CommandResult = { code: 0, stdout: 'o "/org/freedesktop/systemd1/job/20"\n', stderr: "" };
const bad: CommandResult = { code: 1, stdout: "", stderr: "Call failed: Connection refused\n" };

move(
  "asks the user manager for a scope of the daemon and its processes, and looks whether they are there",
  async () => {
    const { asked, facts } = await moveBy([good]);
    assert.match(
      asked[0]!.replace(/holdfast-4711-\w+\.scope/, "NAME"),
      /^busctl --user call org\.freedesktop\.systemd1 \/org\/freedesktop\/systemd1 org\.freedesktop\.systemd1\.Manager StartTransientUnit ssa\(sv\)a\(sa\(sv\)\) NAME fail 4 PIDs au 2 4711 4712 TimeoutStopUSec t 10000000 CollectMode s inactive-or-failed OOMPolicy s continue 0$/,
    );
    assert.equal([facts.place.kind, facts.scope, facts.scopeProblem], ["user-manager", "yes", undefined]);
    assert.not.match((await moveBy([good], { systemdVersion: 247 })).asked[0]!, "OOMPolicy");
  },
);

move("waits for the user manager of one whose lingering was just switched on", async () => {
  const { asked, facts } = await moveBy([bad, bad, good], { linger: "yes", lingerSwitchedOn: true });
  assert.equal([asked.length, facts.scope], [3, "yes"]);
  const refused = await moveBy([bad, good]);
  assert.equal(
    [refused.asked.length, refused.facts.scope, refused.facts.scopeProblem],
    [1, "no", "the running daemon could not be moved: Call failed: Connection refused"],
  );
});

move("does not ask where the user has no bus, and says so", async () => {
  const { asked, facts } = await moveBy([good], {}, false);
  assert.equal(asked, []);
  assert.is(facts.scopeProblem, `the running daemon could not be moved: there is no "/run/user/${uid}/bus"`);
  assert.is(facts.lacksBus, true);
});

for (const test of [launch, move]) test.run();
