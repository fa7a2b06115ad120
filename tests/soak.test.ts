// time limit: 420 s; long; beside the others
/**
 * The soak as a test: 3 minutes on CI, 15 s elsewhere (`npm run soak` for longer), at a quarter of a core. Mixed work, the daemon killed and
 * healed in between; then nothing is left, and nothing has grown. Before it, what it judges by.
 */

import { spawn } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { isAlive, outcomeOf, runsAll } from "./daemon.ts";
import type { Line } from "./soak/line.ts";
import { Wrong } from "./soak/line.ts";
import { createTrack, linesOf } from "./soak/lines.ts";
import type { Checkpoint } from "./soak/sample.ts";
import { judgeFlatness, leastCheckpoints } from "./soak/sample.ts";
import { soak } from "./soak/soak.ts";

const judges = suite("what the soak judges by");

/** Rests, 100 operations apart, with 100 KiB of noise and so much more with each operation. */
function restsWith(count: number, bytesPerOperation: number): Checkpoint[] {
  return Array.from({ length: count }, (_, index) => ({
    ...{
      at: index,
      pid: 1,
      pssKiB: 0,
      descriptors: 20,
      threads: 11,
      children: 0,
      cpuSeconds: 0,
      childCpuSeconds: 0,
      files: 3,
      logBytes: 0,
      resources: "",
    },
    rssKiB: 100_000,
    bufferBytes: 1 << 20,
    operations: index * 100,
    heapBytes: (5 << 20) + (index % 3) * (50 << 10) + index * 100 * bytesPerOperation,
  }));
}

for (const [name, rests, isFlat] of [
  ["noise is flat", restsWith(12, 0), true],
  ["2 KiB with each operation are not", restsWith(12, 2048), false],
  ["nor are 300 bytes, for long enough", restsWith(60, 300), false],
  ["what shrinks is flat", restsWith(12, -2048), true],
] as const) {
  judges(name, () =>
    assert.is(
      judgeFlatness(rests).every(({ middle, last, bound }) => last - middle <= bound),
      isFlat,
    ),
  );
}
judges("too few rests are not judged", () =>
  assert.equal(
    [judgeFlatness(restsWith(leastCheckpoints - 1, 1e6)).length, judgeFlatness(restsWith(leastCheckpoints, 0)).length],
    [0, 3],
  ),
);

type Message = { seq: number; stream: string; data?: string };
const said = (seq: number, from: number, to: number): Message => ({
  seq,
  stream: "stdout",
  data: linesOf(0, 4000).toString("base64", from, to),
});
const exit = (seq: number): Message => ({ seq, stream: "exit" });
const all = linesOf(0, 4000).length; // 36 000 bytes: more than a message has
for (const [name, firstSeq, messages, wrong] of [
  ["all that was said, in order", 1, [said(1, 0, 20_000), said(2, 20_000, all), exit(3)], undefined],
  ["a message twice", 1, [said(1, 0, 20_000), said(1, 0, 20_000)], /seq 1 after 1/],
  ["a message left out", 1, [said(1, 0, 20_000), exit(3)], /seq 3 after 1/],
  [
    "bytes left out",
    1,
    [said(1, 0, 20_000), said(2, 20_009, all), exit(3)],
    /seq 2: the 15991 bytes at 20000 are others/,
  ],
  ["bytes twice", 1, [said(1, 0, 20_000), said(2, 19_991, all), exit(3)], /bytes at 20000 are others/],
  ["no end", 1, [said(1, 0, 20_000), exit(2)], /20000 bytes were seen, it said 36000/],
  ["a gap that is named", 3, [said(3, 30_000, all), exit(4)], undefined],
  [
    "a gap that is larger than what is named",
    2,
    [said(2, 33_000, all), exit(3)],
    /1 messages are named, 33000 bytes are missing/,
  ],
] as const) {
  judges(`a process's words, with ${name}, are ${wrong === undefined ? "right" : "wrong"}`, async () => {
    let take: (message: object) => void = () => {};
    const line = {
      onStream: (_, listener) => (take = listener),
      request: async (_method, _params, now) => now?.({ found: true, firstSeq, lastSeq: 9 }),
    } as Partial<Line>;
    const track = createTrack("a", 1, 0, 4000);
    await track.takeUp(line as Line);
    for (const message of messages) take({ type: "stream", processId: "a", ...message });
    if (wrong === undefined) return track.check(true);
    assert.throws(
      () => track.check(true),
      (error: unknown) => error instanceof Wrong && wrong.test(error.message),
    );
  });
}

const long = suite("a daemon under mixed work for long");
const seconds = process.env.CI === "true" || runsAll ? 180 : 15;
const seed = process.env.CI === "true" ? 1 : Date.now() % 1_000_000; // elsewhere another each time: a failure says which

long(
  "answers as it must, is healed when it is killed, and has no more memory, descriptors, threads and children than in the beginning",
  async () => {
    const { problems, summary, rests, kills } = await soak({ seconds, seed, share: 0.25, progress: () => {} });
    assert.equal(problems, []);
    assert.ok(rests >= 2 && kills >= 1, `${rests} rests and ${kills} kills are too few`);
    console.log(`\nFIGURES seed ${seed}: ${summary}`);
  },
);

for (const one of [judges, long]) one.run();

const library = suite("an application with the library, over lines that are cut");

library("loses no byte, doubles none, waits for nothing for ever, and leaves no rejection to nobody", async () => {
  const minutes = String((process.env.CI === "true" || runsAll ? 60 : 5) / 60);
  const args = ["tests/soak/run.mjs", "--only", "library", "--minutes", minutes, "--seed", String(seed)];
  const child = spawn(process.execPath, args);
  const isOver = new Int32Array(new SharedArrayBuffer(4));
  process.once("exit", () => {
    child.kill("SIGTERM"); // it ends its daemon, and what that holds
    for (let waited = 0; waited < 10_000 && isAlive(child.pid!); waited += 20) Atomics.wait(isOver, 0, 0, 20);
  });
  const { code, stdout, stderr } = await outcomeOf(child, "", 400_000);
  console.log(`FIGURES ${stdout.toString().trim().split("\n").pop()}`);
  assert.is(code, 0, `${stdout}${stderr}`);
});
library.run();
