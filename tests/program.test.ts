/** Which program it is: the command that runs it again, seen by what a daemon was started with. */

import { copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { childEnvironment, daemonEnvironment } from "../program.ts";
import { builtFile, withDirectory } from "./daemon.ts";

/** Of every daemon's node: see program.ts. */
const young = "--max-semi-space-size=2";

const command = suite("daemonCommand()");

command("is the runtime, its flags and the file as it was called", async () => {
  await withDirectory(async (site) => {
    const directory = join(site.directory, "a program");
    mkdirSync(directory);
    const program = join(directory, "server");
    copyFileSync(builtFile, program);
    const link = join(site.directory, "link.js");
    symlinkSync(program, link);
    for (const [flags, file, added = [young]] of [
      [[], program],
      [["--no-warnings", "--stack-size=800"], program],
      [["--max-semi-space-size=8"], program, []],
      [[young, "--no-warnings"], program, []],
      [[], link],
    ] as const) {
      const started = await site.command([process.execPath, ...flags, file, "--serve", "--socket", site.socket]);
      assert.is(started.code, 0, started.stderr);
      const words = readFileSync(`/proc/${site.record().pid}/cmdline`, "utf8").split("\0").slice(0, -1);
      const expected = [process.execPath, ...flags, ...added, file, "--serve", "--launched", "--socket", site.socket];
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
    assert.equal(words, [process.execPath, young, program, "--serve", "--launched", "--socket", site.socket]);
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
