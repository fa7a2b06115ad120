/** Our terminal while it is a process's, as functions: which key leaves, what is set back, what is shown again. Over ssh: tests/host/terminal.test.ts. */

import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Failure } from "../failure.ts";
import {
  backFrom,
  createKeys,
  createModes,
  defaultKey,
  detachKeyOf,
  noteModes,
  replayOf,
  settleKeys,
  takeKeys,
} from "../terminal.ts";

/** All ways to cut a text in two, it whole, and it in single characters. */
const cutsOf = (text: string): string[][] => [
  [text],
  [...text],
  ...Array.from({ length: Math.max(0, text.length - 1) }, (_, at) => [text.slice(0, at + 1), text.slice(at + 1)]),
];

const keys = suite("takeKeys()");

/** What is typed, what of it is the process's, and whether it leaves then, or when nothing more comes. */
const typed: [what: string, key: string, text: string, passed: string, leaves: boolean][] = [
  ["passes what is typed", defaultKey, "ls -l\r\x03\x04\x1a\xe2\x82\xac", "ls -l\r\x03\x04\x1a\xe2\x82\xac", false],
  ["leaves by the key", defaultKey, "\x1c", "", true],
  ["passes what was typed before", defaultKey, "abc\x1c", "abc", true],
  ["drops what is typed after", defaultKey, "abc\x1cdef", "abc", true],
  ["leaves, though the key is typed again later", defaultKey, "\x1cab\x1c", "", true],
  ["makes one of two", defaultKey, "a\x1c\x1cb", "a\x1cb", false],
  ["makes one of two, and leaves by the third", defaultKey, "\x1c\x1c\x1c", "\x1c", true],
  ["makes two of four", defaultKey, "\x1c\x1c\x1c\x1c", "\x1c\x1c", false],
  ["passes an Escape, and what begins with one", defaultKey, "\x1b", "\x1b", false],
  [
    "passes keys with modifiers",
    defaultKey,
    "\x1b[1;5A\x1b[27;5;93~\x1b[93;5u\x1bOP",
    "\x1b[1;5A\x1b[27;5;93~\x1b[93;5u\x1bOP",
    false,
  ],
  ["passes a sequence that ends early", defaultKey, "\x1b[92", "\x1b[92", false],
  ["leaves by the key as modifyOtherKeys has it", defaultKey, "a\x1b[27;5;92~", "a", true],
  ["leaves by the key as kitty has it", defaultKey, "a\x1b[92;5u", "a", true],
  ["leaves by the key as kitty has it, with all that may stand in it", defaultKey, "\x1b[92::220;133:1u", "", true],
  ["does not take letting go for a press", defaultKey, "\x1b[92;5:1u\x1b[92;5:3u\x1b[92;5:1u", "\x1b[92;5:1u", false],
  ["makes one of two as kitty has it", defaultKey, "\x1b[92;5u\x1b[92;5ub", "\x1b[92;5ub", false],
  ["leaves by another key", "ctrl-a", "x\x1c\x01", "x\x1c", true],
  ["leaves by another key as kitty has it", "^]", "\x1b[93;5u", "", true],
  ["leaves by none", "none", "\x1c\x1b[92;5u\x1b", "\x1c\x1b[92;5u\x1b", false],
];
for (const [what, key, text, passed, leaves] of typed) {
  keys(`${what}, cut anywhere`, () => {
    for (const cut of cutsOf(text)) {
      const state = createKeys(detachKeyOf(key));
      let bytes = "";
      let left = false;
      for (const piece of [...cut.map((part) => Buffer.from(part, "latin1")), undefined]) {
        if (left) break;
        const taken = piece ? takeKeys(state, piece) : settleKeys(state);
        bytes += taken.bytes.toString("latin1");
        left = taken.leaves;
      }
      assert.equal([bytes, left], [passed, leaves], JSON.stringify(cut));
    }
  });
}

keys("does not hold what can be no part of the key", () => {
  const state = createKeys(detachKeyOf(defaultKey));
  for (const text of ["a", "\x1b[A", "\x1bx", "\x1b[200~a b", "\x1b]0;t"])
    assert.is(takeKeys(state, Buffer.from(text)).bytes.toString(), text);
});

for (const name of ["ctrl-a", "Ctrl-A", "^A", "^a", "C-a"])
  keys(`has ${name} for a key`, () => assert.is(detachKeyOf(name)!.name, "Ctrl-A"));
for (const name of ["a", "ctrl-", "ctrl-1", "ctrl-p,ctrl-q", "", "alt-x"])
  keys(`has not "${name}" for a key`, () =>
    assert.throws(
      () => detachKeyOf(name),
      (error: Failure) => error.exit === 64 && error.message.includes(`--detach-key "${name}"`),
    ),
  );

const modes = suite("noteModes()");

/** What a program says, and what sets it back. */
const said: [what: string, text: string, back: string][] = [
  ["words", "hello \x1b[31mred\x1b[m\r\n\x1b[2J\x1b[H\x1b[K\x1b]0;title\x07", ""],
  ["the alternate screen", "\x1b[?1049h", "\x1b[?1049l"],
  ["the alternate screen, and back", "\x1b[?1049h...\x1b[?1049l", ""],
  ["mouse and paste", "\x1b[?1000h\x1b[?1006;2004h", "\x1b[?1000l\x1b[?1006l\x1b[?2004l"],
  ["some of several", "\x1b[?1000;1002h\x1b[?1000l", "\x1b[?1002l"],
  ["the cursor and wrapping", "\x1b[?25l\x1b[?7l", "\x1b[?25h\x1b[?7h"],
  ["the cursor, and back", "\x1b[?25l\x1b[?12l\x1b[?25h", ""],
  ["keypad and cursor keys", "\x1b[?1h\x1b=", "\x1b[?1l\x1b>"],
  ["keypad, and back", "\x1b=\x1b>", ""],
  ["lines drawn", "\x1b(0qqq", "\x1b(B"],
  ["lines drawn, and back", "\x1b(0qqq\x1b(B", ""],
  ["a scroll region", "\x1b[2;20r", "\x1b7\x1b[r\x1b8"],
  ["a scroll region, and back", "\x1b[2;20r\x1b[r", ""],
  ["the cursor's shape", "\x1b[5 q", "\x1b[0 q"],
  ["keys", "\x1b[>4;2m\x1b[>1u", "\x1b[>4m\x1b[=0u"],
  ["keys, and back", "\x1b[>4;2m\x1b[>1u\x1b[<u\x1b[>4;m", ""],
  ["the screen last", "\x1b[?1049h\x1b[?2004h\x1b[>1u", "\x1b[?2004l\x1b[=0u\x1b[?1049l"],
  ["all of it, and a reset", "\x1b[?1049h\x1b[?2004h\x1b[>1u\x1bc", ""],
  ["what is unknown", "\x1b[?9999h\x1b[99h\x1b#8\x1b[?u\x1b[6n", ""],
];
for (const [what, text, back] of said)
  modes(`notes ${what}, cut anywhere`, () => {
    for (const cut of cutsOf(text)) {
      const state = createModes();
      for (const part of cut) noteModes(state, Buffer.from(part, "latin1"));
      assert.is(backFrom(state), `\x1b[m${back}`, JSON.stringify(cut));
    }
  });

modes("holds no sequence that does not end", () => {
  const state = createModes();
  noteModes(state, Buffer.from(`\x1b[${"1;".repeat(1000)}`));
  assert.ok(state.part!.length < 1000);
  noteModes(state, Buffer.from("m\x1b[?2004h"));
  assert.is(backFrom(state), "\x1b[m\x1b[?2004l");
});

const replays = suite("replayOf()");

/** What was said, and what of it is shown again. */
const again: [what: string, text: string, shown: string][] = [
  ["nothing", "", ""],
  ["lines", "a\r\n\x1b[31mb\x1b[m\r\n$ ", "a\r\n\x1b[31mb\x1b[m\r\n$ "],
  ["no question of where the cursor is", "a\x1b[6nb\x1b[?6nc\x1b[5nd", "abcd"],
  ["no question of what it is", "a\x1b[cb\x1b[0cc\x1b[>cd\x1b[>0;1ce\x1b[=cf\x1bZg\x1b[>0qh\x05", "abcdefgh"],
  ["no question of modes and keys", "a\x1b[?2026$pb\x1b[4$pc\x1b[?ud\x1b[x", "abcd"],
  ["no question of the window", "a\x1b[14tb\x1b[18tc\x1b[21td\x1b[22;0;0t", "abcd\x1b[22;0;0t"],
  ["no question of colours", "a\x1b]11;?\x07b\x1b]10;?\x1b\\c\x1b]4;1;?\x07d\x1b]11;#fff\x07", "abcd\x1b]11;#fff\x07"],
  ["no question of what it can", "a\x1bP+q544e\x1b\\b\x1bP$q q\x1b\\c\x1b_Gi=1,a=q;AAAA\x1b\\d", "abcd"],
  [
    "nothing that rings, notifies, or is for the clipboard",
    "a\x07b\x1b]52;c;aGk=\x07c\x1b]9;hi\x1b\\d\x1b]0;t\x07",
    "abcd\x1b]0;t\x07",
  ],
  ["colours, and keys that are set", "\x1b[38;5;1ma\x1b[>4;2m\x1b[2 q", "\x1b[38;5;1ma\x1b[>4;2m\x1b[2 q"],
  [
    "not what was on the alternate screen",
    "$ vi\r\n\x1b[?1049hvi\x1b[?1049l$ ls\r\n\x1b[?1049hless\x1b[?1049l$ ",
    "$ vi\r\n$ ls\r\n$ ",
  ],
  ["not the end of what was on the alternate screen", "vi\r\n~\r\n\x1b[?1049l$ ls\r\n", "$ ls\r\n"],
];
for (const [what, text, shown] of again)
  replays(`shows ${what}`, () => assert.is(replayOf(Buffer.from(text, "latin1")).toString("latin1"), shown));

replays("shows 64 KiB, from the start of a line", () => {
  const lines = Array.from({ length: 20_000 }, (_, at) => `line ${at}\r\n`).join("");
  const shown = replayOf(Buffer.from(`${lines}$ `)).toString();
  assert.ok(shown.length <= 65_536 && shown.length > 65_500, String(shown.length));
  assert.ok(`${lines}$ `.endsWith(shown));
  assert.match(shown, /^line \d+\r\n/);
});

replays("shows all of 64 KiB without a line", () => {
  assert.is(replayOf(Buffer.alloc(100_000, "x")).length, 65_536);
});

for (const test of [keys, modes, replays]) test.run();
