// time limit: 420 s; beside the others
/**
 * The soak as a test: 3 minutes on CI, 25 s elsewhere (`npm run soak` for longer), at a quarter of a core. Mixed work, the daemon killed and
 * healed in between; then nothing is left, and nothing has grown.
 */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import { soak } from "./soak/soak.ts";
import { runsAll } from "./daemon.ts";

const seconds = process.env.CI === "true" || runsAll ? 180 : 25;
const seed = Date.now() % 1_000_000; // another each time: a failure says which

const test = suite("a daemon under mixed work for long");

test("answers as it must, is healed when it is killed, and has no more memory, descriptors, threads and children than in the beginning", async () => {
  const { problems, summary, rests, kills } = await soak({ seconds, seed, share: 0.25, progress: () => {} });
  assert.equal(problems, []);
  assert.ok(rests >= 2 && kills >= 1, `${rests} rests and ${kills} kills are too few`);
  console.log(`\nFIGURES seed ${seed}: ${summary}`);
});

test.run();
