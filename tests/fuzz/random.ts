/** Chance that can be repeated: all that a fuzz case is made of comes from one seed. */

/** A pseudo-random integer from 0 to below `n`, the same ones for the same seed. */
export type Random = (n: number) => number;

/** mulberry32. */
export function createRandom(seed: number): Random {
  let state = seed;
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % n;
  };
}

/** Numbers from 0 to below 1, the same ones for the same seed. */
export function createFractions(seed: number): () => number {
  const random = createRandom(seed);
  return () => random(2 ** 32) / 2 ** 32;
}

export function pick<T>(random: Random, from: ArrayLike<T>): T {
  return from[random(from.length)]!;
}

/** Bytes that mean something somewhere: in a header, a line, JSON, UTF-8. */
const telling = Buffer.from(
  '\0\x01\n\r "\\{}[]:,0123456789eE+-./~utfn\x7f\x80\xbf\xc0\xc3\xe2\xed\xa0\xf0\xff',
  "latin1",
);

/** Changes bytes as a broken wire or an odd client does: some are flipped, left out, put in, said twice, or cut off. */
export function mutateBytes(random: Random, bytes: Buffer, changes = 1 + random(3)): Buffer {
  for (; changes > 0; changes--) {
    const at = random(bytes.length + 1);
    const to = Math.min(bytes.length, at + 1 + random(random(4) === 0 ? 40 : 3));
    const parts = [
      () => [bytes.subarray(0, at), Buffer.of(pick(random, telling)), bytes.subarray(at + 1)],
      () => [bytes.subarray(0, at), Buffer.of((bytes[at] ?? 0) ^ (1 << random(8))), bytes.subarray(at + 1)],
      () => [bytes.subarray(0, at), Buffer.of(pick(random, telling)), bytes.subarray(at)],
      () => [bytes.subarray(0, at), Buffer.of(random(256)), bytes.subarray(at)],
      () => [bytes.subarray(0, at), bytes.subarray(to)],
      () => [bytes.subarray(0, to), bytes.subarray(at)],
      () => [bytes.subarray(0, at)],
    ];
    bytes = Buffer.concat(pick(random, parts)());
  }
  return bytes;
}

/** Cuts bytes anywhere: mostly into a few pieces, now and then into single bytes; some pieces are empty. */
export function cutAnywhere(random: Random, bytes: Buffer): Buffer[] {
  const most = pick(random, [1, 3, 8, 64, bytes.length + 1, 2 * bytes.length + 1]);
  const chunks: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const size = random(16) === 0 ? 0 : 1 + random(most);
    chunks.push(bytes.subarray(at, at + size));
    at += size;
  }
  return chunks;
}
