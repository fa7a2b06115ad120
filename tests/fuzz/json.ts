/**
 * JSON texts, rich in what breaks readers of JSON: names of every object's members, numbers that no double has, half surrogate pairs, members
 * given twice, white space and escapes where few write them, arrays and objects in each other.
 */

import type { Random } from "./random.ts";
import { pick } from "./random.ts";

/** As a method, a parameter, a process id, a variable. */
export const oddNames = [
  "__proto__",
  "constructor",
  "prototype",
  "toString",
  "hasOwnProperty",
  "valueOf",
  "toJSON",
  "then",
  "length",
  "",
  "0",
  "a",
  "é€😀",
];

const oddNumbers = [
  "0",
  "-0",
  "1",
  "-1",
  "0.5",
  "1e3",
  "1E-7",
  "2147483648",
  "4294967297",
  "9007199254740991",
  "9007199254740992",
  "9007199254740993",
  "-9007199254740993",
  "123456789012345678901234567890",
  "1e308",
  "1e999",
  "-1e999",
  "0.1234567890123456789",
  "1e-999",
];
const oddStrings = [
  '""',
  '"a"',
  '"\\ud800"',
  '"\\udc00\\ud800"',
  '"a\\u0000b"',
  '"\\u001b[31m\\n\\r"',
  '"\\u202e"',
  '"\\/\\b\\f\\t\\"\\\\"',
  '"é€😀"',
  '"2.0"',
  `"${"x".repeat(119)}😀"`,
  `"${"y".repeat(300)}"`,
];
const literals = ["null", "true", "false"];
const spaces = ["", "", "", "", " ", "\n", "\t\r\n "];

export function randomJson(random: Random, depth = 0): string {
  const kind = random(depth > 4 ? 4 : 7);
  if (kind === 0) return pick(random, literals);
  if (kind === 1) return pick(random, oddNumbers);
  if (kind === 2) return pick(random, oddStrings);
  if (kind === 3) return randomString(random, pick(random, oddNames));
  if (kind === 4)
    return writeArray(
      random,
      Array.from({ length: random(4) }, () => randomJson(random, depth + 1)),
    );
  if (kind === 5)
    return writeObject(
      random,
      Array.from({ length: random(4) }, () => [pick(random, oddNames), randomJson(random, depth + 1)]),
    );
  const deep = pick(random, [1, 10, 60]);
  return random(2) === 0 ? nest(deep, "[", "]", "") : nest(deep, '{"a":', "}", "1");
}

/** Writes a string, now and then with escapes that it does not need. */
export function randomString(random: Random, text: string): string {
  if (random(8) > 0) return JSON.stringify(text);
  return `"${Array.from({ length: text.length }, (_, at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, "0")}`).join("")}"`;
}

export function writeArray(random: Random, items: string[]): string {
  const space = pick(random, spaces);
  return `[${space}${items.join(`,${space}`)}${space}]`;
}

/** Writes an object; the same name may come twice, and then the last counts. */
export function writeObject(random: Random, members: [name: string, text: string][]): string {
  const space = pick(random, spaces);
  return `{${space}${members.map(([name, text]) => `${randomString(random, name)}${space}:${text}`).join(`,${space}`)}${space}}`;
}

/** Makes a valid request odd: members left out, given twice, put in, replaced by any JSON, in another order. */
export function mutateMembers(random: Random, members: [name: string, text: string][]): [name: string, text: string][] {
  const changed = [...members];
  for (let changes = pick(random, [0, 0, 1, 1, 2, 4]); changes > 0; changes--) {
    const at = random(changed.length + 1);
    const name = changed[at]?.[0] ?? pick(random, oddNames);
    const change = random(4);
    if (change === 0) changed.splice(at, 1);
    else if (change === 1) changed.splice(at, 1, [name, randomJson(random)]);
    else if (change === 2) changed.push([name, randomJson(random)]);
    else changed.splice(random(changed.length + 1), 0, ...changed.splice(at, 1));
  }
  return changed;
}

function nest(deep: number, open: string, close: string, inside: string): string {
  return `${open.repeat(deep)}${inside}${close.repeat(deep)}`;
}
