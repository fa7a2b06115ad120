import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Message, Place, Room, RoomOptions, Spool } from "../spool.ts";
import {
  appendOutput,
  createRoom,
  createSpool,
  dropOutput,
  findExit,
  heldBytes,
  loadSpool,
  placeAt,
  readMessages,
  removeSpool,
  restSpool,
  skipTo,
} from "../spool.ts";
import { canMount } from "./daemon.ts";

interface Site {
  path: string;
  log: string[];
  room(options?: RoomOptions): Room;
}

function withSite(run: (site: Site) => unknown): () => Promise<void> {
  return async () => {
    const path = mkdtempSync(join(tmpdir(), "holdfast-spool-"));
    const log: string[] = [];
    const rooms: Room[] = [];
    const room = (options: RoomOptions = {}): Room => {
      rooms.push(createRoom((line) => log.push(line), { path, ...options }));
      return rooms.at(-1)!;
    };
    try {
      await run({ path, log, room });
    } finally {
      for (const { spools } of rooms) for (const spool of spools) restSpool(spool);
      rmSync(path, { recursive: true, force: true });
    }
  };
}

const memory: RoomOptions = { path: undefined };
/** Two segments of 128 KiB, wherever it is. */
const small: RoomOptions = { spoolBytes: 256 << 10, memoryBytes: 256 << 10 };
const segmentBytes = 128 << 10;
const recordBytes = 15;

function readAll(spool: Spool, seq = spool.firstSeq): Message[] {
  const place = placeAt(spool, seq, false);
  const found: Message[] = [];
  for (let some = readMessages(spool, place); some.length > 0; some = readMessages(spool, place)) found.push(...some);
  spool.places.delete(place);
  return found;
}

/** What is said as message n: some bytes, by which they can be told apart. */
function textOf(seq: number, bytes: number): Buffer {
  return Buffer.alloc(bytes, `${seq},`);
}

function say(spool: Spool, count: number, bytes: number): void {
  for (let turn = 0; turn < count; turn++) appendOutput(spool, "stdout", textOf(spool.lastSeq + 1, bytes));
}

/** The messages from one to another, each with its own bytes. */
function check(messages: Message[], from: number, to: number, bytes: number): void {
  assert.equal([messages[0]?.seq, messages.at(-1)?.seq, messages.length], [from, to, to - from + 1]);
  for (const { seq, stream, data } of messages)
    assert.ok(stream === "stdout" && data.equals(textOf(seq, bytes)), `message ${seq}`);
}

const spools = suite("spools");

for (const [where, options] of [
  ["on disk", {}],
  ["in memory", memory],
] as const) {
  spools(
    `hold what they are given, ${where}, cut into messages`,
    withSite(({ room }) => {
      const spool = createSpool(room(options), "a");
      assert.equal([spool.firstSeq, spool.lastSeq, readAll(spool)], [1, 0, []]);
      const chunk = Buffer.alloc(150_000, "0123456789");
      const made = appendOutput(spool, "stderr", chunk);
      appendOutput(spool, "gap", Buffer.from('{"maxBytes":5}'));
      appendOutput(spool, "exit", Buffer.from('{"exitCode":0}'));
      assert.equal(
        made.map(({ seq, data }) => [seq, data.length]),
        [1, 2, 3, 4, 5].map((seq) => [seq, seq < 5 ? 32_768 : 18_928]),
      );
      const found = readAll(spool);
      assert.equal(
        found.map(({ seq, stream }) => `${seq} ${stream}`),
        ["1 stderr", "2 stderr", "3 stderr", "4 stderr", "5 stderr", "6 gap", "7 exit"],
      );
      assert.ok(Buffer.concat(found.slice(0, 5).map(({ data }) => data)).equals(chunk));
      assert.is(found[6]!.data.toString(), '{"exitCode":0}');
    }),
  );
  for (const bytes of [1, 100, 4000, 32_768]) {
    spools(
      `hold the newest, ${where}, in messages of ${bytes} bytes, and are read from any place`,
      withSite(({ room }) => {
        const spool = createSpool(room({ ...options, ...small }), "a");
        const perSegment = Math.floor(segmentBytes / (bytes + recordBytes));
        say(spool, 5 * perSegment, bytes);
        assert.ok(heldBytes(spool) <= 2 * segmentBytes, `${heldBytes(spool)} bytes`);
        assert.is(spool.firstSeq, 3 * perSegment + 1);
        for (const seq of [0, 1, perSegment - 1, perSegment, perSegment + 1, 2 * perSegment - 1])
          check(readAll(spool, spool.firstSeq + seq), spool.firstSeq + seq, spool.lastSeq, bytes);
        assert.equal(readAll(spool, spool.lastSeq + 1), []);
        assert.equal(readAll(spool, 1), [], "what is gone is not read");
      }),
    );
  }
  spools(
    `do not overwrite, ${where}, what one who is waited for has not read`,
    withSite(({ room }) => {
      const spool = createSpool(room({ ...options, ...small }), "a");
      say(spool, 4, 30_000);
      const places: Place[] = [placeAt(spool, 2, true), placeAt(spool, 1, false)];
      say(spool, 40, 30_000);
      assert.is(spool.firstSeq, 1);
      for (let seq = 2; seq < 40; ) {
        const some = readMessages(spool, places[0]!);
        check(some, seq, some.at(-1)!.seq, 30_000);
        seq = some.at(-1)!.seq + 1;
      }
      say(spool, 8, 30_000);
      assert.ok(spool.firstSeq > 36 && heldBytes(spool) <= 3 * segmentBytes, `from ${spool.firstSeq}`);
      assert.equal(readMessages(spool, places[1]!), []);
    }),
  );
}
spools(
  "are 0600 in a directory of their own, 0700, and in as many files as they may have",
  withSite(({ room, path }) => {
    const spool = createSpool(room(small), "a");
    say(spool, 40, 30_000);
    assert.is(statSync(spool.directory!).mode & 0o777, 0o700);
    assert.is(readdirSync(path).length, 1);
    const files = readdirSync(spool.directory!);
    assert.is(files.length, 2);
    for (const file of files) {
      assert.is(statSync(join(spool.directory!, file)).mode & 0o777, 0o600);
      assert.ok(statSync(join(spool.directory!, file)).size <= segmentBytes);
    }
    removeSpool(spool);
    assert.equal(readdirSync(path), []);
  }),
);
spools(
  "of 0 bytes write nothing to disk",
  withSite(({ room }) => {
    const spool = createSpool(room({ spoolBytes: 0 }), "a");
    say(spool, 10, 100);
    assert.equal(readdirSync(spool.directory!), []);
    check(readAll(spool), 1, 10, 100);
  }),
);
spools(
  "grow in memory with what is said: a child that says little costs little",
  withSite(({ room }) => {
    const all = room(memory);
    for (let turn = 0; turn < 100; turn++) say(createSpool(all, "a"), 1, 10);
    assert.ok(all.usedMemoryBytes <= 100 * 4096, `${all.usedMemoryBytes} bytes`);
  }),
);
spools(
  "keep the exit when their output is dropped",
  withSite(({ room }) => {
    for (const options of [{}, memory]) {
      const spool = createSpool(room(options), "a");
      say(spool, 3, 100);
      appendOutput(spool, "exit", Buffer.from("{}"));
      dropOutput(spool);
      assert.equal(
        readAll(spool).map(({ seq, stream }) => [seq, stream]),
        [[4, "exit"]],
      );
      assert.equal([spool.firstSeq, spool.lastSeq], [4, 4]);
    }
  }),
);
spools(
  "share what there is: first goes the output of the ended, the first of them first, then of whoever has most",
  withSite(({ room, path }) => {
    for (const options of [
      { path, allDiskBytes: 400_000 },
      { ...memory, allMemoryBytes: 500_000 },
    ]) {
      const all = room({ ...small, ...options });
      const [first, second, most, least] = ["a", "b", "c", "d"].map((name) => createSpool(all, name)) as [
        Spool,
        Spool,
        Spool,
        Spool,
      ];
      for (const [at, spool] of [second, first].entries()) {
        say(spool, 3, 30_000);
        appendOutput(spool, "exit", Buffer.from("{}"));
        spool.endedAt = 10 - at; // the first has ended first
      }
      say(least, 2, 10_000);
      say(most, 8, 30_000);
      assert.equal([first.firstSeq, second.firstSeq, most.firstSeq, least.firstSeq], [4, second.firstSeq, 1, 1]);
      say(createSpool(all, "e"), 8, 30_000);
      assert.equal([first.firstSeq, second.firstSeq, least.firstSeq], [4, 4, 1]);
      assert.ok(most.firstSeq > 1);
    }
  }),
);
spools.run();

const loading = suite("loadSpool()");

/** Another daemon's view of the same directory. */
function reload({ room }: Site, { directory }: Spool, options: RoomOptions = small): Spool {
  return loadSpool(room(options), "a", directory!);
}

for (const [bytes, count] of [
  [100, 1],
  [100, 3],
  [30_000, 4],
  [30_000, 5],
  [30_000, 41],
  [1, 20_000],
] as const) {
  loading(
    `goes on where ${count} messages of ${bytes} bytes end`,
    withSite((site) => {
      const spool = createSpool(site.room(small), "a");
      say(spool, count, bytes);
      restSpool(spool);
      const loaded = reload(site, spool);
      assert.equal([loaded.firstSeq, loaded.lastSeq], [spool.firstSeq, spool.lastSeq]);
      say(loaded, 5, bytes);
      check(readAll(loaded), loaded.firstSeq, count + 5, bytes);
      check(readAll(reload(site, spool)), loaded.firstSeq, count + 5, bytes);
    }),
  );
}
for (const [what, bytes, isHeld] of [
  ["was the last", 0, true],
  ["was not", 100, true],
  ["is in a segment before the newest", 150_000, true],
  ["was overwritten", 600_000, false],
] as const) {
  loading(
    `an exit message that ${what} is ${isHeld ? "" : "not "}found by its seq`,
    withSite((site) => {
      const spool = createSpool(site.room(small), "a");
      say(spool, 3, 100);
      const [{ seq }] = appendOutput(spool, "exit", Buffer.from('{"exitCode":7}')) as [Message];
      appendOutput(spool, "stdout", Buffer.alloc(bytes));
      restSpool(spool);
      assert.is(findExit(reload(site, spool), seq), isHeld);
      const loaded = reload(site, spool);
      assert.is(findExit(loaded, 2), bytes === 0, "another message is none");
      for (const seq of [-1, 1e300, 2.5, "x", null] as number[]) assert.is(findExit(loaded, seq), bytes === 0);
    }),
  );
}
loading(
  "cuts a torn record off, wherever it is torn",
  withSite((site) => {
    const spool = createSpool(site.room(small), "a");
    say(spool, 3, 20);
    restSpool(spool);
    const file = join(spool.directory!, "0");
    const whole = readFileSync(file);
    for (let length = 2 * 35; length < 3 * 35; length++) {
      writeFileSync(file, whole.subarray(0, length));
      const loaded = reload(site, spool);
      assert.is(loaded.lastSeq, 2, `${length} bytes`);
      say(loaded, 1, 20);
      restSpool(loaded);
      check(readAll(reload(site, spool)), 1, 3, 20);
      writeFileSync(file, whole);
      // or what follows is of the ring's last round
      const torn = Buffer.from(whole);
      torn.fill("x", length);
      writeFileSync(file, torn);
      assert.is(reload(site, spool).lastSeq, 2);
      writeFileSync(file, whole);
    }
  }),
);
loading(
  "finds the end among records of the ring's last round",
  withSite((site) => {
    for (let count = 9; count < 14; count++) {
      const spool = createSpool(site.room(small), "a");
      say(spool, count, 30_000); // 4 in each segment, and the newest has some of an older one behind them
      restSpool(spool);
      check(readAll(reload(site, spool)), spool.firstSeq, count, 30_000);
    }
  }),
);
loading(
  "knows a segment that was renamed and not yet written to",
  withSite((site) => {
    const spool = createSpool(site.room(small), "a");
    say(spool, 8, 30_000);
    restSpool(spool);
    renameSync(join(spool.directory!, "0"), join(spool.directory!, "2"));
    const loaded = reload(site, spool);
    check(readAll(loaded), 5, 8, 30_000);
    say(loaded, 1, 30_000);
    check(readAll(loaded), 5, 9, 30_000);
  }),
);
for (const [what, damage, from] of [
  ["a segment is missing", (directory: string) => rmSync(join(directory, "1")), 9],
  ["its beginning is zeros", (directory: string) => writeFileSync(join(directory, "1"), Buffer.alloc(100_000)), 9],
  ["its middle is cut", (directory: string) => truncateSync(join(directory, "1"), 40_000), 9],
] as const) {
  loading(
    `drops what is before and in a damaged segment, when it is come to: ${what}`,
    withSite((site) => {
      const spool = createSpool(site.room({ spoolBytes: 384 << 10 }), "a");
      say(spool, 12, 30_000);
      restSpool(spool);
      damage(spool.directory!);
      const loaded = reload(site, spool, { spoolBytes: 384 << 10 });
      assert.is(loaded.lastSeq, 12);
      const place = placeAt(loaded, loaded.firstSeq, false);
      let last: Message[] = [];
      for (let some = readMessages(loaded, place); some.length > 0; some = readMessages(loaded, place)) last = some;
      assert.ok(loaded.firstSeq === from || last.at(-1)!.seq === 12, `${loaded.firstSeq}`);
      check(readAll(loaded, from), from, 12, 30_000);
    }),
  );
}
loading(
  "of nothing, of empty files and of files that are none of ours begins anew",
  withSite((site) => {
    const spool = createSpool(site.room(), "a");
    for (const [name, text] of Object.entries({ 0: "", 1: "short", "01": "x", about: "{}", "1.5": "x", "-1": "x" }))
      writeFileSync(join(spool.directory!, name), text);
    const loaded = reload(site, spool);
    assert.equal([loaded.firstSeq, loaded.lastSeq, readAll(loaded)], [1, 0, []]);
    say(loaded, 2, 10);
    check(readAll(reload(site, spool)), 1, 2, 10);
    assert.is(readFileSync(join(spool.directory!, "01"), "utf8"), "x");
  }),
);
loading(
  "finds the exit",
  withSite((site) => {
    const spool = createSpool(site.room(), "a");
    say(spool, 2, 10);
    appendOutput(spool, "exit", Buffer.from('{"exitCode":7}'));
    assert.is(reload(site, spool).exit!.data.toString(), '{"exitCode":7}');
  }),
);
loading(
  "refuses a segment that is a link, a directory or a FIFO of somebody's",
  withSite((site) => {
    const elsewhere = join(site.path, "elsewhere");
    writeFileSync(elsewhere, "secret");
    for (const plant of [
      (path: string) => symlinkSync(elsewhere, path),
      (path: string) => mkdirSync(path),
      (path: string) => symlinkSync("/no/such/file", path),
    ]) {
      const spool = createSpool(site.room(), "a");
      say(spool, 2, 10);
      plant(join(spool.directory!, "1"));
      assert.throws(
        () => reload(site, spool),
        (error: Error) => /ELOOP|regular file|EISDIR/.test(error.message),
      );
      assert.is(readFileSync(elsewhere, "utf8"), "secret");
    }
  }),
);
loading(
  "after what was in memory goes on behind it",
  withSite((site) => {
    const spool = createSpool(site.room(), "a");
    say(spool, 3, 10);
    const loaded = reload(site, spool);
    skipTo(loaded, 2);
    assert.equal([loaded.firstSeq, loaded.lastSeq], [1, 3]);
    skipTo(loaded, 4096);
    assert.equal([loaded.firstSeq, loaded.lastSeq, readAll(loaded)], [4097, 4096, []]);
    say(loaded, 1, 10);
    check(readAll(reload(site, spool)), 4097, 4097, 10);
  }),
);
loading.run();

const failing = suite("a disk that fails");

failing(
  "leaves what is on it, and what comes in memory; said once",
  withSite(({ room, log }) => {
    const spool = createSpool(room(small), "a");
    say(spool, 5, 30_000);
    mkdirSync(join(spool.directory!, "2")); // where the next segment is to be
    writeFileSync(join(spool.directory!, "2", "x"), "");
    say(spool, 20, 30_000);
    assert.ok(spool.isInMemory);
    assert.match(log.join("\n"), /^\[Process\] The output of "a" is held in memory from now on: [^\n]*$/);
    check(readAll(spool), spool.firstSeq, 25, 30_000);
  }),
);
failing(
  "while its directory is gone: what was in other files is named as dropped, what comes is held",
  withSite(({ room }) => {
    const spool = createSpool(room(small), "a");
    say(spool, 6, 30_000);
    rmSync(spool.directory!, { recursive: true });
    say(spool, 4, 30_000);
    while (readAll(spool).length === 0); // a segment each time
    assert.is(spool.firstSeq, 9);
    check(readAll(spool), spool.firstSeq, 10, 30_000);
    assert.not.ok(existsSync(spool.directory!));
  }),
);
(canMount() ? failing : failing.skip)(
  "is full: a tmpfs of 1 MiB",
  withSite(({ path, room, log }) => {
    const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", "size=1M", "tmpfs", path]);
    assert.is(status, 0);
    try {
      const spool = createSpool(room(), "a");
      say(spool, 100, 30_000);
      assert.ok(spool.isInMemory);
      assert.match(log.join("\n"), /^[^\n]*there is no more room for it on the disk$/);
      assert.ok(spool.firstSeq <= 5, "what was on the disk gives room, what came since is there");
      check(readAll(spool), spool.firstSeq, 100, 30_000);
      writeFileSync(join(path, "all"), Buffer.alloc(600_000)); // the rest of it
      spawnSync("dd", ["if=/dev/zero", `of=${join(path, "rest")}`, "bs=4096", "status=none"], { stdio: "ignore" });
      const other = createSpool(room(), "b");
      log.length = 0;
      say(other, 3, 30_000);
      check(readAll(other), 1, 3, 30_000);
      assert.match(log.join("\n"), /^[^\n]*(no space left on device \(ENOSPC\)|the disk took \d+)$/);
      restSpool(spool);
      restSpool(other);
    } finally {
      spawnSync("umount", ["-l", path]);
    }
  }),
);
failing.run();
