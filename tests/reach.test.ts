/** reach.ts: why there is no daemon, by its record, and what helps then. */

import { once } from "node:events";
import { readFileSync, renameSync } from "node:fs";
import { createServer } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { reachOtherwise } from "../control.ts";
import { Failure } from "../failure.ts";
import { readOomKills } from "../lifetime.ts";
import { explainAbsence, explainLoss, reachServer } from "../reach.ts";
import type { DaemonRecord, EndReason } from "../record.ts";
import { identify, writeRecord } from "../record.ts";
import { placesOf } from "../socket.ts";
import { withDirectory } from "./daemon.ts";

const absence = suite("explainAbsence()");

const dead = { ...identify(), pid: 4_000_000, startTime: "1" };
const recordOf = (socket: string, changes: Partial<DaemonRecord>): DaemonRecord => ({
  ...dead,
  version: "1",
  instance: "0".repeat(32),
  key: "k",
  tokenHashes: [],
  socket: { path: socket, bound: `${socket}.x`, dev: 1, ino: 1 },
  log: "/home/dev/log",
  startedAt: Date.now() - 60_000,
  command: ["node", "holdfast.js"],
  lifetime: { warnings: [] },
  ...changes,
});
const ended = (reason: EndReason, detail = "SIGCONT, SIGTERM: by systemd"): Partial<DaemonRecord> => ({
  ended: { at: Date.now() - 5000, reason, detail },
});
const masked = { warnings: [{ name: "ends-with-session", message: "m", hint: "as an administrator: mend it" }] };
const kills = readOomKills();

/** What the record says; the reason, its words, its hint, and whether a bridge starts another one. */
const absences: [string, Partial<DaemonRecord>, string, RegExp, RegExp, boolean][] = [
  ["a --stop", ended("stopped"), "stopped", /was stopped on purpose at/, /--serve --socket '[^']+'$/, false],
  ["a SIGTERM", ended("terminated", "SIGTERM: by a person"), "stopped", /was ended at .* by SIGTERM/, /--serve/, false],
  ["another one", ended("replaced"), "replaced", /was replaced by another one/, /--serve/, true],
  ["a logout", ended("killed-at-logout"), "killed-at-logout", /as the session ended/, /--enable-linger$/, true],
  [
    "a logout, without a user manager: lingering would not help",
    { ...ended("killed-at-logout"), lifetime: masked },
    "killed-at-logout",
    /as the session ended/,
    /^as an administrator: mend it$/,
    true,
  ],
  ["an idle session", ended("idle-stop"), "idle-stop", /had been idle for too long/, /--enable-linger$/, true],
  [
    "its unit",
    ended("unit-stopped", "SIGCONT, SIGTERM: by systemd, as build.service ended"),
    "unit-stopped",
    /with the unit that it was in \(.*build\.service ended\)/,
    /--enable-linger$/,
    true,
  ],
  [
    "the last logout",
    ended("user-manager-stopped"),
    "user-manager-stopped",
    /after the last logout/,
    /--enable-linger$/,
    true,
  ],
  [
    "somebody who stopped the user manager: lingering is on",
    ended("user-manager-ended"),
    "user-manager-ended",
    /as somebody stopped the user manager/,
    /--serve --socket '[^']+'$/,
    true,
  ],
  ["a shutdown", ended("host-shutdown"), "host-shutdown", /as the host was shut down/, /--serve/, true],
  ["an error of its own", ended("crashed", "no"), "crashed", /an error of its own: no; its log/, /--serve/, true],
  ["SIGKILL", {}, "crashed", /without a word: killed by SIGKILL/, /--serve/, true],
  [
    "the kernel, for want of memory",
    { oomKills: (kills ?? 0) - 2 },
    "out-of-memory",
    /has killed 2 processes for want of memory/,
    /^journalctl --dmesg/,
    true,
  ],
  [
    "SIGKILL, long after the kernel had killed another",
    { oomKills: kills },
    "crashed",
    /killed by SIGKILL/,
    /--serve/,
    true,
  ],
  ["a new boot", { bootId: "another" }, "rebooted", /booted again since/, /--serve/, true],
  [
    "nothing: it is on another host",
    { bootId: "another", machineId: "0".repeat(32), host: "alpha" },
    "other-host",
    /was started on host "alpha"/,
    /^ssh alpha/,
    false,
  ],
  ["SIGKILL, and the host has another name now", { host: "alpha" }, "crashed", /SIGKILL/, /--serve/, true],
  [
    "what a newer version calls otherwise",
    ended("eaten" as EndReason),
    "stopped",
    /stopped on purpose/,
    /--serve/,
    false,
  ],
];
for (const [what, changes, reason, words, hint, healable] of absences) {
  absence(`says ${reason} where a daemon was ended by ${what}`, () =>
    withDirectory(async ({ directory }) => {
      const places = placesOf({ socket: `${directory}/rpc.sock` });
      writeRecord(places.record, recordOf(places.socket, changes));
      const found = explainAbsence(places);
      assert.equal([found.reason, found.healable], [reason, healable]);
      assert.match(found.message, words);
      assert.match(found.hint, hint);
    }),
  );
}

const refused = { error: Object.assign(new Error("refused"), { code: "ECONNREFUSED" }) };
for (const [what, changes, reason, words, healable] of [
  ["gone, as nobody listens", {}, "crashed", /does not listen any more \(it runs in another pid namespace/, true],
  ["told to stop", { stoppingAt: Date.now() + 5000 }, "stopped", /was told to stop, and ends at/, false],
  ["stopped", ended("stopped"), "stopped", /was stopped on purpose at/, false],
] as [string, Partial<DaemonRecord>, string, RegExp, boolean][]) {
  absence(`says of a daemon whose process cannot be seen that it is ${what}`, () =>
    withDirectory(async ({ directory }) => {
      const places = placesOf({ socket: `${directory}/rpc.sock` });
      writeRecord(places.record, recordOf(places.socket, { pidNamespace: "another", ...changes }));
      const found = explainAbsence(places, refused);
      assert.equal([found.reason, found.healable], [reason, healable]);
      assert.match(found.message, words);
      const { data, message } = await explainLoss(places, "0".repeat(32));
      assert.is(data.reason, reason);
      assert.match(message, words);
    }),
  );
}

absence(
  "looks again where the first attempt did not tell: a daemon that died in the middle of it refuses by then",
  () =>
    withDirectory(async ({ directory }) => {
      const places = placesOf({ socket: `${directory}/rpc.sock` });
      const record = recordOf(places.socket, { pidNamespace: "another" });
      const server = createServer().listen(`${directory}/other`);
      await once(server, "listening");
      renameSync(`${directory}/other`, record.socket.bound); // as a killed daemon leaves it: nobody listens there
      server.close();
      writeRecord(places.record, record);
      const reset = { error: Object.assign(new Error("reset"), { code: "ECONNRESET" }) };
      assert.is(explainAbsence(places, reset).reason, "not-answering");
      const found = await reachOtherwise(places, reset, undefined);
      assert.ok(found instanceof Failure && found.data.reason === "crashed", String(found));
    }),
);

absence("is what docs/survival.md says of the bridge: which reasons have it start another one", () => {
  const rows = readFileSync("docs/survival.md", "utf8").matchAll(
    /^\| `([a-z-]+)` \| [^|]* \| (starts it|tells)\b[^|]* \|/gm,
  );
  const healed = [...rows].filter(([, , does]) => does === "starts it").map(([, reason]) => reason);
  assert.equal(healed.sort(), [...new Set(absences.filter((row) => row[5]).map((row) => row[2]))].sort());
});

absence("of one that ends while it is connected to is seen by looking again, not told as an errno", () =>
  withDirectory(async ({ socket }) => {
    const server = createServer().listen(socket);
    await once(server, "listening");
    const reaching = reachServer(placesOf({ socket }));
    server.close(); // it has not taken the connection
    assert.is(await reaching, undefined);
  }),
);

absence.run();
