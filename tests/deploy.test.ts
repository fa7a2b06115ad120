// time limit: 180 s
/** deploy() on this machine: a command that runs what it is given in a home of its own, as ssh would. The same over ssh: host/deploy.test.ts. */

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connect, deploy as deployFrom } from "../deploy.ts";
import type { Deployment, DeployOptions, HoldfastError } from "../library.ts";
import { builtFile, eventually, holdfast, processesWith, removeAll } from "./daemon.ts";

interface Host {
  home: string;
  ssh: string[];
  /** With the built file, which stands beside no module here. */
  deploy(options?: Partial<DeployOptions>): Promise<Deployment>;
}

async function withHost(use: (host: Host) => Promise<void>): Promise<void> {
  const home = mkdtempSync(join(tmpdir(), "holdfast-deploy-"));
  const env = ["-u", "XDG_STATE_HOME", `HOME=${home}`, `PATH=${join(process.execPath, "..")}:/usr/bin:/bin`];
  const ssh = ["env", "-C", home, ...env, "sh", "-c"];
  const deploy: Host["deploy"] = (options) => deployFrom({ ssh, program: builtFile, ...options });
  try {
    await use({ home, ssh, deploy });
  } finally {
    // a start that was given up by its caller may come through later
    await eventually(async () => {
      const { stdout } = await holdfast(["--stop", "--now"], { env: { HOME: home, XDG_STATE_HOME: "" } });
      assert.match(stdout.toString(), /^(stopped|none)/);
      return processesWith(`HOME=${home}`).length === 0;
    }, "the end of all that was started in this home");
    await removeAll(home);
  }
}

async function refusal(promise: Promise<unknown>): Promise<HoldfastError> {
  try {
    await promise;
  } catch (error) {
    return error as HoldfastError;
  }
  throw new Error("it was not rejected");
}

/** The built file, but of another version: its hash stands in it, and differs. */
function otherBuild(home: string): string {
  const path = join(home, "other.js");
  const text = readFileSync(builtFile, "utf8").replace(/sha256: "[0-9a-f]{8}/, 'sha256: "00000000');
  writeFileSync(path, text.replace(/version: "[^"]*"/, 'version: "99.0.0"'));
  return path;
}

const test = suite("deploy()");

test("copies the file, starts, connects; and the next time only connects", () =>
  withHost(async ({ home, deploy }) => {
    const first = await deploy();
    assert.equal([first.copied, first.served.how], [true, "started"]);
    assert.is((await first.run({ command: "pwd" })).stdout, `${home}\n`);
    assert.ok(readFileSync(join(home, ".holdfast/holdfast.js")).equals(readFileSync(builtFile)));
    assert.is(statSync(join(home, ".holdfast/holdfast.js")).mode & 0o777, 0o700);
    const again = await deploy();
    assert.equal([again.copied, again.served.how, again.instanceId], [false, "joined", first.instanceId]);
    for (const there of [first, again]) await there.close();
  }));

test("joins an older daemon that has work, and replaces it on request", () =>
  withHost(async ({ home, deploy }) => {
    const first = await deploy();
    await first.spawn({ id: "work", command: "sleep", args: ["1000"] });
    const program = otherBuild(home);
    const joined = await deploy({ program });
    assert.equal([joined.copied, joined.served.how, joined.instanceId], [true, "joined", first.instanceId]);
    const replaced = await deploy({ program, replace: true });
    assert.equal([replaced.copied, replaced.served.version], [false, "99.0.0"]);
    assert.ok(replaced.instanceId !== first.instanceId);
    for (const there of [first, joined, replaced]) await there.close();
  }));

test("makes room where an older one has nothing to do", () =>
  withHost(async ({ home, deploy }) => {
    const first = await deploy();
    const other = await deploy({ program: otherBuild(home) });
    assert.equal([other.copied, other.served.how, other.served.version], [true, "started", "99.0.0"]);
    for (const there of [first, other]) await there.close();
  }));

test("copies once when ten deploy at once", () =>
  withHost(async ({ home, deploy }) => {
    const all = await Promise.all(Array.from({ length: 10 }, () => deploy()));
    assert.is(all.filter(({ copied }) => copied).length, 1);
    assert.is(new Set(all.map(({ instanceId }) => instanceId)).size, 1);
    assert.equal(readdirSync(join(home, ".holdfast")), ["holdfast.js"]);
    for (const there of all) await there.close();
  }));

test("says which failed, and why", () =>
  withHost(async ({ home, deploy }) => {
    mkdirSync(join(home, "empty"));
    const nowhere = ["env", "-C", home, `HOME=${home}`, `PATH=${join(home, "bin")}`, "/bin/sh", "-c"];
    // what the script needs, but no runtime
    mkdirSync(join(home, "bin"));
    for (const name of ["sh", "grep", "mkdir", "cat", "wc", "chmod", "rm", "ln", "mv", "sleep"])
      copyFileSync(`/bin/${name}`, join(home, "bin", name));
    const cases: [Partial<DeployOptions>, RegExp, string | undefined, number | null | undefined][] = [
      [{ ssh: ["sh", "-c", "echo Host key verification failed. >&2; exit 255"] }, /host key/i, "host-key", 255],
      [{ ssh: [join(home, "none")] }, /no such file/, "no-command", null],
      [{ program: "/etc/hostname" }, /carries no hash/, undefined, undefined],
      [{ program: "/no/such" }, /there is no such file/, undefined, undefined],
      [{ directory: "a b" }, /letters, digits/, undefined, undefined],
      [{ directory: "/proc/none" }, /exit code 73/, undefined, 73],
      [{ ssh: ["sleep", "1000", ";"] }, /sleep: invalid time/, undefined, 1],
      [{ ssh: ["sh", "-c", "sleep 1000"], deployTimeoutMs: 100 }, /not ended within 0.1 s/, "time-limit", undefined],
      [{ ssh: ["sh", "-c", "echo hello"] }, /said no JSON: hello/, undefined, 0],
    ];
    for (const [options, words, reason, exitCode] of cases) {
      const error = await refusal(deploy(options));
      assert.match(error.message, words);
      if (reason) assert.is(error.reason, reason);
      assert.is(error.exitCode, exitCode, error.message);
    }
    assert.not.ok(existsSync(join(home, ".holdfast")));
    if (!existsSync("/usr/local/bin/node") && !existsSync("/opt/homebrew/bin/node")) {
      const bare = await refusal(deploy({ ssh: nowhere }));
      assert.equal([bare.reason, bare.exitCode], ["no-runtime", 127], bare.message);
      assert.match(bare.hint ?? "", /put a node/);
    }
  }));

test("begins nothing for a signal that is aborted already", () =>
  withHost(async ({ deploy }) => {
    const children = (): number => process.getActiveResourcesInfo().filter((name) => name === "ProcessWrap").length;
    const before = children();
    const deployed = refusal(deploy({ signal: AbortSignal.abort() }));
    const connected = refusal(connect({ command: ["sleep", "1000"], signal: AbortSignal.abort() }));
    assert.is(children(), before);
    assert.equal([(await deployed).name, (await connected).name], ["AbortError", "AbortError"]);
  }));

test.run();
