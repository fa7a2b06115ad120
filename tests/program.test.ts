/** Which program it is: the command that runs it again, seen by what a daemon was started with. */

import { copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { getHeapSpaceStatistics } from "node:v8";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { childEnvironment, daemonEnvironment, keepYoungSmall } from "../program.ts";
import { builtFile, withDirectory } from "./daemon.ts";

const youngSize = () => getHeapSpaceStatistics().find((space) => space.space_name === "new_space")!.space_size;

// first of all: what it has grown to it keeps
const young = suite("keepYoungSmall()");

young("keeps V8's young generation at its size, whatever outlives a collection", async () => {
  const before = youngSize();
  assert.ok(before <= 8 * 2 ** 20, `${before} bytes are too much already to show anything`);
  await keepYoungSmall();
  for (let round = 0; round < 5; round++) Array.from({ length: 300_000 }, (_, at) => ({ at }));
  assert.is(youngSize(), before);
});

young.run();

const command = suite("daemonCommand()");

command("is the runtime, its flags and the file as it was called", async () => {
  await withDirectory(async (site) => {
    const directory = join(site.directory, "a program");
    mkdirSync(directory);
    const program = join(directory, "server");
    copyFileSync(builtFile, program);
    const link = join(site.directory, "link.js");
    symlinkSync(program, link);
    for (const [flags, file] of [
      [[], program],
      [["--no-warnings", "--stack-size=800"], program],
      [[], link],
    ] as const) {
      const started = await site.command([process.execPath, ...flags, file, "--serve", "--socket", site.socket]);
      assert.is(started.code, 0, started.stderr);
      const words = readFileSync(`/proc/${site.record().pid}/cmdline`, "utf8").split("\0").slice(0, -1);
      const expected = [process.execPath, ...flags, file, "--serve", "--launched", "--socket", site.socket];
      assert.equal(words, expected);
      assert.is((await site.run(["--stop", "--now"])).code, 0);
    }
  });
});

command("of an import is the file that was imported, without the flags of the importer", async () => {
  await withDirectory(async (site) => {
    const program = join(site.directory, "holdfast.cjs");
    const script = join(site.directory, "app.cjs");
    copyFileSync(builtFile, program);
    writeFileSync(script, `require("./holdfast.cjs").serve({ socket: "${site.socket}" }).then(() => process.exit())`);
    const { code, stderr } = await site.command([process.execPath, "--no-warnings", script]);
    assert.is(code, 0, stderr);
    const words = readFileSync(`/proc/${site.record().pid}/cmdline`, "utf8").split("\0").slice(0, -1);
    assert.equal(words, [process.execPath, program, "--serve", "--launched", "--socket", site.socket]);
  });
});

command.run();

const debugged = suite("daemonEnvironment()");

for (const [given, ours] of [
  [{}, {}],
  [{ NODE_OPTIONS: "--no-warnings" }, { NODE_OPTIONS: "--no-warnings" }],
  [{ NODE_OPTIONS: "--inspect" }, { NODE_OPTIONS: "" }],
  [{ NODE_OPTIONS: "--a --inspect=0:1 --b" }, { NODE_OPTIONS: "--a --b" }],
  [{ NODE_OPTIONS: '"--inspect=0:1" --b' }, { NODE_OPTIONS: "--b" }],
  [{ NODE_OPTIONS: "--inspect-port 0 --inspect_brk --b" }, { NODE_OPTIONS: "--b" }],
  [{ BUN_INSPECT: "localhost:0" }, {}],
] as const) {
  debugged(`of ${JSON.stringify(given)} has no debugger in it, and the processes get it back`, () => {
    const env = daemonEnvironment({ A: "1", ...given });
    const seen = Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith("HOLDFAST_")));
    assert.equal(seen, { A: "1", ...ours });
    assert.equal(childEnvironment(env), { A: "1", ...given });
    assert.equal(
      childEnvironment(daemonEnvironment(env)),
      { A: "1", ...given },
      "of a daemon that is started again, too",
    );
  });
}
debugged("has no client's token in it", () => {
  assert.equal(daemonEnvironment({ A: "1", CLAUDE_RPC_TOKEN: "secret" }), { A: "1" });
});
debugged.run();
