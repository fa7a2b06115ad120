/** --status: server.status for people, on one screen. */

import { connectOwned } from "./control.ts";
import { clockWords, durationWords, sizeWords } from "./doctor.ts";
import { cleanText } from "./failure.ts";
import type { Lifetime } from "./lifetime.ts";
import type { ChildSummary } from "./processes.ts";
import type { Places } from "./socket.ts";

/** So many processes are listed; of more, only how many. */
const maxListed = 12;
const answerMs = 5000;

interface Status {
  version: string;
  instanceId: string;
  startedAt: number;
  pid: number;
  uptimeMs: number;
  rssBytes: number;
  connections: number;
  processes: ChildSummary[];
  log: string;
  socket: string;
  lifetime: Lifetime;
  /** Left out where there is no logind to tell. */
  logoutsOutlived?: number;
}

/** Asks the daemon and prints the answer. Returns the exit code. */
export async function printStatus(places: Places, json: boolean, say: (text: string) => number): Promise<number> {
  const { client, auth } = await connectOwned(places);
  try {
    const status = (await client.request("server.status", {}, auth, answerMs)) as Status;
    return say(json ? `${cleanText(JSON.stringify(status))}\n` : statusWords(status));
  } finally {
    client.close();
  }
}

function statusWords(status: Status): string {
  const { lifetime, processes } = status;
  const running = processes.filter((entry) => entry.running).length;
  const rows: [string, string][] = [
    ["daemon", `holdfast ${status.version}, pid ${status.pid}, instance ${status.instanceId}`],
    ["up", `${durationWords(status.uptimeMs)}, started ${clockWords(status.startedAt)}`],
    ["lives", lifetime.where],
    ["survives logout", lifetime.words],
    ...(status.logoutsOutlived === undefined
      ? []
      : [
          ["outlived", `${status.logoutsOutlived} ${status.logoutsOutlived === 1 ? "logout" : "logouts"} so far`] as [
            string,
            string,
          ],
        ]),
    ...lifetime.warnings.flatMap(({ message, hint }): [string, string][] => [
      ["warning", message],
      ["hint", hint],
    ]),
    ["connections", String(status.connections)],
    ["memory", sizeWords(status.rssBytes)],
    ["socket", status.socket],
    ["log", status.log],
    ["processes", `${running} running, ${processes.length - running} ended`],
  ];
  const listed = [...processes].sort((a, b) => Number(b.running) - Number(a.running)).slice(0, maxListed);
  const lines = rows.map(([name, text]) => `${name.padEnd(16)}${cleanText(text, 1000)}`);
  for (const entry of listed) lines.push(`  ${cleanText(entry.id, 24).padEnd(24)} ${processWords(entry)}`);
  if (processes.length > listed.length)
    lines.push(`  and ${processes.length - listed.length} more: --call process.list`);
  return `${lines.join("\n")}\n`;
}

function processWords({ pid, command, running, bytes, ageMs }: ChildSummary): string {
  return `${(running ? `pid ${pid}` : "ended").padEnd(12)} ${durationWords(ageMs).padEnd(8)} ${sizeWords(bytes).padStart(9)}  ${cleanText(command, 40)}`;
}
