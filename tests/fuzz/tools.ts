/** What systemd's tools say, damaged: a verdict in words, never an exception; and nothing is known that was not said. */

import type { CommandResult, Facts, World } from "../../host.ts";
import { probeHost } from "../../host.ts";
import { chooseLaunch, describeVerdict } from "../../lifetime.ts";
import { oddNames } from "./json.ts";
import type { Random } from "./random.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Target } from "./target.ts";
import { demand } from "./target.ts";

export const toolsTarget: Target = { name: "tools", run: async (useCheck) => useCheck(checkTools) };

const cgroups = [
  "0::/user.slice/user-1000.slice/session-3.scope\n",
  "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1.scope\n",
  "0::/user.slice/user-1000.slice/user@1000.service/app.slice/build.service\n",
  "0::/user.slice/user-1001.slice/session-c1.scope\n",
  "9:name=systemd:/system.slice/ssh.service\n0::/\n",
  "0::/system.slice/deploy.service\n",
  "0::/system.slice/slurmstepd.scope/job_4711/step_extern\n",
  "1:name=elogind:/c3\n0::/\n",
  "0::/system.slice/sshd@7-10.0.0.1:22-10.0.0.2:5000.service\n",
  "0::/\n",
];

/** What each says of a whole host, by the beginning of its command line. */
const sayings: [command: string, stdout: string][] = [
  [
    "loginctl --no-ask-password show-user --all",
    "KillOnlyUsers=\nKillExcludeUsers=ann dev\nKillUserProcesses=yes\nUserStopDelayUSec=1min 3.500000s\nRemoveIPC=yes\nStopIdleSessionUSec=infinity\n",
  ],
  ["loginctl --no-ask-password show-user --property=Name", "Name=dev\nLinger=yes\n"],
  [
    "loginctl --no-ask-password show-session",
    "Type=tty\nTTY=pts/1\nClass=user\nService=sshd\nLeader=90\nState=active\n",
  ],
  ["systemd-run --version", "systemd 252 (252.39-1~deb12u2)\n+PAM +AUDIT\n"],
  [
    "systemctl",
    "LoadState=loaded\nActiveState=active\nKillMode=process\nPartOf=a.target\nBindsTo=\nRuntimeMaxUSec=1h\n",
  ],
];

export async function checkTools(random: Random): Promise<void> {
  const said = new Map(sayings.map(([command, stdout]) => [command, damage(random, stdout)]));
  const cgroup = random(3) === 0 ? mutateText(random, pick(random, cgroups)) : pick(random, cgroups);
  const files = new Map([
    ["/etc/userdb/1000.user", mutateText(random, '{"userName":"dev","killProcesses":true,"stopDelayUSec":5000000}')],
    ["/proc/self/uid_map", mutateText(random, "0 1000 1\n1 100000 65536\n")],
    ["/proc/sys/kernel/osrelease", pick(random, ["6.1.0-28-amd64\n", "5.15.90.1-microsoft-standard-WSL2\n"])],
  ]);
  const absent: CommandResult = { code: null, stdout: "", stderr: "", problem: "is not installed" };
  const world: World = {
    uid: 1000,
    user: "dev",
    exists: (path) => path.startsWith("/run/systemd") || path === "/var/lib/systemd",
    readFile: (path) => (path.endsWith("/cgroup") ? cgroup : files.get(path)),
    run: async (command) => [...said].find(([begin]) => command.join(" ").startsWith(begin))?.[1] ?? absent,
  };
  const facts = await probeHost(world, { tryScope: random(2) === 0 });
  const policy = said.get(sayings[0]![0])!.stdout;
  demand(
    facts.place.kind === "none" ||
      facts.killed === "unknown" ||
      facts.policy.startsWith("killProcesses=") ||
      /^KillUserProcesses=(yes|no)$/m.test(policy),
    "A policy is known that nobody named",
    policy,
    facts,
  );
  demand(JSON.stringify(JSON.parse(JSON.stringify(facts))) === JSON.stringify(facts), "The facts do not travel", facts);
  demandWords(facts);
}

function damage(random: Random, stdout: string): CommandResult {
  switch (random(6)) {
    case 0:
      return {
        code: null,
        stdout: "",
        stderr: "",
        problem: pick(random, ["is not installed", "did not answer within 2000 ms"]),
      };
    case 1:
      return {
        code: 1,
        stdout: random(2) === 0 ? "" : stdout,
        stderr: mutateText(random, "Failed to connect to bus: Host is down\n"),
      };
    case 2:
      return { code: 0, stdout, stderr: "" };
    case 3:
      return { code: 0, stdout: `${pick(random, oddNames)}=${pick(random, oddNames)}\n${stdout}`, stderr: "" };
    default:
      return { code: 0, stdout: mutateText(random, stdout), stderr: "" };
  }
}

function mutateText(random: Random, text: string): string {
  return mutateBytes(random, Buffer.from(text)).toString();
}

function demandWords(facts: Facts): void {
  const { launch, verdict } = chooseLaunch(facts);
  const told = describeVerdict(verdict);
  const words = [told.where, told.words, ...told.warnings.flatMap(({ message, hint }) => [message, hint])];
  demand(
    words.every((word) => word !== "" && !/undefined|NaN|Infinity|\[object|function/.test(word)),
    "Its words are those of an error of ours",
    facts,
    words,
  );
  demand(launch === "detach" || facts.scope !== "no", "It takes a scope that cannot be made", facts);
  demand(told.survivesLogout === "yes" || told.warnings.length > 0, "It warns of nothing, and may end", facts, told);
}
