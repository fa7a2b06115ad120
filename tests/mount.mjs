/**
 * A file system that a test can stop, by SIGSTOP: `node tests/mount.mjs DIRECTORY` mounts it there, needs root and /dev/fuse, and says "mounted".
 *
 * It has a file with "hello\n" in it, an executable one and two symbolic links, and speaks as much of FUSE as it takes to list, stat, read, follow and run them
 * (linux/fuse.h): a request is a header of 40 bytes and what its opcode says, an answer one of 16.
 */

import { spawnSync } from "node:child_process";
import { existsSync, openSync, readSync, writeSync } from "node:fs";

const files = [
  ["file", "hello\n", 0o100644],
  ["tool", "#!/bin/sh\necho ran\n", 0o100755],
  ["to-file", "file", 0o120777],
  ["to-here", ".", 0o120777],
].map(([name, text, mode], i) => ({ name, mode, bytes: Buffer.from(text), id: BigInt(i + 2) }));
const opcodes = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  readlink: 5,
  open: 14,
  read: 15,
  statfs: 17,
  release: 18,
  flush: 25,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  access: 34,
  interrupt: 36,
  batchForget: 42,
};
if (!existsSync("/dev/fuse")) spawnSync("mknod", ["/dev/fuse", "c", "10", "229"]);
const device = openSync("/dev/fuse", "r+");
const options = `fd=3,rootmode=40000,user_id=0,group_id=0,allow_other`;
const { status } = spawnSync("mount", ["--internal-only", "-t", "fuse", "-o", options, "silent", process.argv[2]], {
  stdio: ["ignore", "inherit", "inherit", device],
});
if (status !== 0) process.exit(1);
console.log("mounted");

const request = Buffer.alloc(1 << 20);
for (;;) {
  let length;
  try {
    length = readSync(device, request);
  } catch (error) {
    if (error.code === "ENODEV") break; // unmounted
    if (error.code === "ENOENT" || error.code === "EINTR") continue; // a request was given up
    throw error;
  }
  const opcode = request.readUInt32LE(4);
  const unique = request.readBigUInt64LE(8);
  const node = request.readBigUInt64LE(16);
  if (opcode === opcodes.forget || opcode === opcodes.batchForget || opcode === opcodes.interrupt) continue;
  const [errno, body] = answer(opcode, node, length);
  const head = Buffer.alloc(16);
  head.writeUInt32LE(16 + body.length);
  head.writeInt32LE(-errno, 4);
  head.writeBigUInt64LE(unique, 8);
  try {
    writeSync(device, Buffer.concat([head, body]));
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
}

/** @returns errno, 0 for none, and the body. */
function answer(opcode, node, length) {
  const file = files.find(({ id }) => id === node);
  switch (opcode) {
    case opcodes.init: {
      const body = Buffer.alloc(64);
      body.writeUInt32LE(7);
      body.writeUInt32LE(31, 4);
      body.writeUInt32LE(65_536, 20); // max_write
      return [0, body];
    }
    case opcodes.lookup: {
      const found = files.find(({ name }) => name === request.toString("utf8", 40, length - 1));
      if (found === undefined) return [2, Buffer.alloc(0)];
      const entry = Buffer.alloc(40);
      entry.writeBigUInt64LE(found.id);
      return [0, Buffer.concat([entry, attributes(found)])];
    }
    case opcodes.getattr:
      return [0, Buffer.concat([Buffer.alloc(16), attributes(file)])];
    case opcodes.readlink:
      return [0, file.bytes];
    case opcodes.open:
    case opcodes.opendir:
      return [0, Buffer.alloc(16)];
    case opcodes.read: {
      const at = Number(request.readBigUInt64LE(48));
      return [0, file.bytes.subarray(at, at + request.readUInt32LE(56))];
    }
    case opcodes.readdir:
      return [0, request.readBigUInt64LE(48) === 0n ? Buffer.concat(files.map(directoryEntry)) : Buffer.alloc(0)];
    case opcodes.statfs:
      return [0, Buffer.alloc(80)];
    case opcodes.release:
    case opcodes.releasedir:
    case opcodes.flush:
    case opcodes.access:
      return [0, Buffer.alloc(0)];
    default:
      return [38, Buffer.alloc(0)]; // ENOSYS
  }
}

/** fuse_attr, with no time for which it is good: each look at it asks. The root has no file. */
function attributes(file) {
  const body = Buffer.alloc(88);
  body.writeBigUInt64LE(file?.id ?? 1n);
  body.writeBigUInt64LE(BigInt(file?.bytes.length ?? 0), 8);
  body.writeUInt32LE(file?.mode ?? 0o40755, 60);
  body.writeUInt32LE(1, 64);
  return body;
}

function directoryEntry({ name, id, mode }, at) {
  const entry = Buffer.alloc(Math.ceil((24 + name.length) / 8) * 8);
  entry.writeBigUInt64LE(id);
  entry.writeBigUInt64LE(BigInt(at + 1), 8);
  entry.writeUInt32LE(name.length, 16);
  entry.writeUInt32LE(mode >> 12, 20); // DT_REG, DT_LNK
  entry.write(name, 24);
  return entry;
}
